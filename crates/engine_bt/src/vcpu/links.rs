//! What a vCPU does about jumps to places that it knows: links those within a page, builds bridges ([`translate`]'s `bridge`) for the others, or
//! gives them up; and finds where transfers to another privilege and the plain rests of blocks go on.

use host::HostError;
use translate::{Form, Mode};
use x86::bits::low16;
use x86::{Gva, PAGE_MASK};

use super::{BtVcpu, Next};
use crate::cache::Key;
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

    /// Where to go on with a transfer whose target is in the jump cache now, if it is.
    pub(super) fn transfer_code(
        &mut self,
        target: u64,
        mode: Mode,
        site: &PlacedSite,
    ) -> Result<Option<u64>, HostError> {
        let (here, drops) = (self.mode, self.views.drops());
        let flushes = self.cache.stats.flushes;
        self.catch_up()?;
        let known = self.views.code_mode(mode.table()) == mode && Gva(target).is_canonical();
        self.mode = mode;
        let found = if known { self.find_code(target)? } else { None };
        self.mode = here;
        let kept = drops == self.views.drops() && self.has_kept(site.block, flushes);
        if found.is_none() || target == 0 || !kept {
            return Ok(None);
        }
        Ok(self.cache.again(site))
    }

    /// The plain translation of the rest of a block.
    pub(super) fn plain_block(&mut self, from: u32, rip: u64) -> Result<Option<u32>, HostError> {
        let Some(block) = self.cache.block(from).filter(|block| !block.stale) else { return Ok(None) };
        let mode = self.mode.with(Mode::PLAIN, true);
        let key = Key { mfn: block.key.mfn, offset: low16(rip & PAGE_MASK), mode };
        let flushes = self.cache.stats.flushes;
        self.catch_up()?;
        let number = self.find_or_translate(key, rip)?;
        Ok(number.filter(|_| self.has_kept(from, flushes)))
    }

    /// The block of a place, translated if it has none yet.
    pub(super) fn find_or_translate(&mut self, key: Key, rip: u64) -> Result<Option<u32>, HostError> {
        match self.cache.find(key) {
            Some(number) => Ok(Some(number)),
            None => self.translate(key, rip),
        }
    }

    /// Whether a block is still in the cache, which had been flushed `flushes` times, and not stale.
    pub(super) fn has_kept(&self, block: u32, flushes: u64) -> bool {
        self.cache.stats.flushes == flushes && self.cache.block(block).is_some_and(|block| !block.stale)
    }
}
