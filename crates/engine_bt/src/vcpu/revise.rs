//! What a vCPU does about code that changes too often to be watched: [`crate::fluid`], [`crate::variants`].

use std::ops::Range;

use host::HostError;
use translate::SelfCheck;
use x86::{Mfn, PAGE_SIZE};

use super::BtVcpu;
use crate::cache::Key;
use crate::sites::PlacedSite;
use crate::variants::{Remedy, Variant};

impl BtVcpu {
    /// The rest of a page of code, as it is now.
    fn code_of(&self, key: Key, bytes: &mut [u8; PAGE_SIZE as usize]) -> usize {
        let rest = bytes.get_mut(usize::from(key.offset)..).unwrap_or_default();
        self.slow.memory().frames().copy_out(key.mfn, key.offset.into(), rest);
        usize::from(key.offset)
    }

    /// Translates code of a fluid frame.
    pub(super) fn translate_fluid(&mut self, key: Key, rip: u64) -> Result<Option<u32>, HostError> {
        if !self.slow.memory().is_fluid(key.mfn) {
            return Ok(None);
        }
        let mut bytes = [0; PAGE_SIZE as usize];
        let start = self.code_of(key, &mut bytes);
        self.translate_checking(key, bytes.get(start..).unwrap_or_default(), Vec::new(), rip)
    }

    /// A block that checks itself.
    fn translate_checking(
        &mut self,
        key: Key,
        code: &[u8],
        loose: Vec<Range<u16>>,
        rip: u64,
    ) -> Result<Option<u32>, HostError> {
        let page = self.slow.memory().frames().host_ptr(key.mfn) as u64;
        let check = SelfCheck { page, loose };
        let Some(mut block) = self.translation(key, code, rip, Some(&check)).filter(|_| page != 0) else {
            return Ok(None);
        };
        let fields = std::mem::take(&mut block.fields);
        let bytes = code.get(..block.checked_bytes.into()).unwrap_or_default().into();
        let number = self.place(key, None, block, rip)?;
        let SelfCheck { loose, .. } = check;
        self.cache.variants.add(key, Variant { number, offset: key.offset, bytes, fields, loose });
        Ok(Some(number))
    }

    /// A block has found that the code, at `rip`, is not what it is a translation of; `site` says so.
    /// The block to go on with, if there is one: a known translation of the code as it is, or a new one.
    pub(super) fn revise(&mut self, site: &PlacedSite, rip: u64) -> Result<Option<u32>, HostError> {
        let number = site.block;
        let flushes = self.cache.stats.flushes;
        self.catch_up()?;
        let Some(block) = self.cache.block(number).copied().filter(|_| self.has_kept(number, flushes)) else {
            return Ok(None);
        };
        let key = block.key;
        let mut bytes = [0; PAGE_SIZE as usize];
        let start = self.code_of(key, &mut bytes);
        let code = bytes.get(start..).unwrap_or_default();
        let known = self.cache.variants.find(key, code);
        let next = match known {
            Some(known) => Some(known),
            None => match self.cache.variants.remedy(key, code) {
                Remedy::Another => self.translate_checking(key, code, Vec::new(), rip)?,
                Remedy::Loosen(loose) => {
                    self.cache.retire(key)?;
                    self.translate_checking(key, code, loose, rip)?
                }
                Remedy::GiveUp => None,
            },
        };
        match next {
            // Only onwards: so a chain of variants has an end.
            Some(next) if next > number && self.has_kept(number, flushes) => {
                self.cache.lead(site, next)?;
            }
            Some(_) => {}
            None => {
                self.cache.retire(key)?;
                self.heat.cool(key);
            }
        }
        Ok(next)
    }

    /// Data was written beside code of a frame. True if the frame is not watched any more.
    pub(super) fn data_beside_code(&mut self, mfn: Mfn) -> bool {
        let memory = self.slow.memory();
        let counts = memory.is_code(mfn) && !memory.is_traced(mfn);
        counts && self.fluid.data_written(mfn, self.stats.entries) && self.make_fluid(mfn)
    }

    /// Code of these frames was written: those where that has been too often are not watched any more.
    pub(super) fn count_code_writes(&mut self, written: &[Mfn], epoch: u64) {
        for &mfn in written {
            if self.fluid.code_written(mfn, epoch) {
                self.make_fluid(mfn);
            }
        }
    }

    fn make_fluid(&mut self, mfn: Mfn) -> bool {
        let begun = self.fluid.begin(mfn, self.stats.entries);
        if begun {
            self.stats.fluid += 1;
            self.slow.memory().make_fluid(mfn);
        }
        begun
    }

    /// Lets frames be watched again whose spells have ended.
    #[cold]
    pub(super) fn end_spells(&mut self) -> Result<(), HostError> {
        for mfn in self.fluid.end(self.stats.entries) {
            self.slow.memory().make_solid(mfn);
            self.cache.make_stale(mfn, |_| {})?;
        }
        Ok(())
    }
}
