//! What a vCPU does about direct jumps: links those within a page, and builds bridges ([`translate`]'s `bridge`) for the others, or
//! gives them up.

use host::HostError;
use translate::{Form, Mode};

use super::{BtVcpu, Next};
use crate::sites::PlacedSite;

impl BtVcpu {
    /// Lets a direct jump lead to its target, if that has been or can be translated; the target's number, if so.
    pub(super) fn link(
        &mut self,
        from: u32,
        jump: u32,
        form: Form,
        rip: u64,
    ) -> Result<Option<u32>, HostError> {
        let Some(source) = self.cache.block(from).copied() else { return Ok(None) };
        let flushes = self.cache.stats.flushes;
        if source.stale || source.key.mode.without(Mode::PLAIN) != self.mode {
            return Ok(None);
        }
        self.catch_up()?;
        let target = self.block_at(source.key.mfn, rip)?.filter(|_| self.has_kept(from, flushes));
        if let Some(target) = target {
            self.cache.link(from, jump, form, target)?;
        }
        Ok(target)
    }

    /// A bridge leads to another frame than before, or to the first: the page at linear address `page`. The way on is the way
    /// round, this time.
    pub(super) fn bridge(&mut self, site: &PlacedSite, jump: u32, page: u64) -> Result<Next, HostError> {
        let flushes = self.cache.stats.flushes;
        match self.cache.unbuilt(site) {
            None => self.cache.give_up(site)?,
            Some(offset) => {
                let to = self.far_block(page.wrapping_add(offset.into()))?;
                if let Some(to) = to.filter(|_| self.has_kept(site.block, flushes)) {
                    self.cache.build(site, jump, to)?;
                }
            }
        }
        // The way round needs nothing that the block has found out before.
        let kept = self.has_kept(site.block, flushes);
        Ok(if kept { Next::Resume(self.cache.way_round(site)) } else { Next::Dispatch })
    }

    /// The block at a linear address, in the current mode, if it can be found by translated code from now on.
    fn far_block(&mut self, target: u64) -> Result<Option<u32>, HostError> {
        self.catch_up()?;
        if self.views.code_mode(self.mode.table()) != self.mode {
            return Ok(None);
        }
        self.find_block(target)
    }
}
