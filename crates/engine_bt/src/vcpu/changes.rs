//! What a vCPU does about changes of guest memory: rule 3 of [`memory::guest`].

use host::HostError;
use memory::{Change, GuestMemory};
use x86::{Gfn, Mfn};

use super::BtVcpu;
use crate::direct::Space;
use crate::views::{Stale, Views};

impl BtVcpu {
    #[cold]
    pub(super) fn hear_changes(&mut self) -> Result<(), HostError> {
        let memory = self.slow.memory();
        let now = memory.epoch();
        let seen = std::mem::replace(&mut self.seen, now);
        let (mut everything, mut remapped, mut written) = (false, Vec::new(), Vec::new());
        for change in memory.changes(seen, now) {
            match change {
                Change::Everything => everything = true,
                Change::Remapped(gfn) => remapped.push(gfn),
                Change::Logged => drop_writable(&mut self.views, &mut self.space, memory, None),
                Change::Watched(mfn) => drop_writable(&mut self.views, &mut self.space, memory, Some(mfn)),
                Change::Written(mfn) => {
                    let heat = &mut self.heat;
                    self.cache.make_stale(mfn, |key| heat.cool(key))?;
                    self.space.iter_mut().for_each(|space| space.drop_code(mfn));
                    written.push(mfn);
                }
                Change::Nothing => {}
            }
        }
        if everything {
            drop_writable(&mut self.views, &mut self.space, memory, None);
            self.views.clear_memory();
            self.space.iter_mut().for_each(Space::empty);
            // Who cannot say what was written may have missed that code was.
            self.drop_code();
        }
        if !remapped.is_empty() {
            remapped.sort_unstable();
            self.forget_frames(&remapped)?;
        }
        self.count_code_writes(&written, now);
        self.slow.sync_memory();
        // Both caches of translations have heard at least this.
        self.seat.hear(now);
        Ok(())
    }

    /// Drops what leads to guest frames that have become something else, and code of theirs. They ascend: a balloon changes
    /// hundreds at a time, and what is cached is looked through once.
    fn forget_frames(&mut self, frames: &[Gfn]) -> Result<(), HostError> {
        self.views.drop_frames(self.slow.memory(), frames);
        self.space.iter_mut().for_each(|space| space.drop_frames(self.slow.memory(), frames));
        for &gfn in frames {
            let mfn = self.slow.memory().entry(gfn).mfn;
            let heat = &mut self.heat;
            self.cache.make_stale(mfn, |key| heat.cool(key))?;
        }
        self.forget_code();
        Ok(())
    }

    /// Drops all translations.
    pub(super) fn drop_code(&mut self) {
        self.cache.clear();
        self.forget_code();
    }

    /// Forgets whatever translations are found by.
    pub(super) fn forget_code(&mut self) {
        self.views.clear_code();
        self.empty_shadows(Stale { supervisor: true, user: true });
    }
}

/// Drops translations for writes, of one frame or of all.
fn drop_writable(views: &mut Views, space: &mut Option<Space>, memory: &GuestMemory, frame: Option<Mfn>) {
    views.drop_writable(memory, frame);
    if let Some(space) = space {
        space.drop_writable(memory, frame);
    }
}
