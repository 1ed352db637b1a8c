//! The dirty log: which guest frames were written since one last asked.
//!
//! One bit per slot of the layout. Marking and harvesting are atomic, so a mark is in this harvest or in the next and
//! never lost. A writer marks *after* its bytes have landed: a harvester that sees the mark sees the bytes, and one that
//! comes in between is told in the next harvest. What cached translations add to this stands in `guest.rs`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use x86::bits::index;

use crate::MemoryError;
use crate::zeroed::Table;

/// Which slots of a layout were written.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    on: AtomicBool,
    words: Table<AtomicU64>,
}

impl DirtyLog {
    /// A log, switched off, of `slots` slots. Costs memory only where frames are marked.
    pub(crate) fn new(slots: u64) -> Result<Self, MemoryError> {
        Ok(Self { on: AtomicBool::new(false), words: Table::new(slots.div_ceil(64))? })
    }

    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Starts with an empty log, or stops.
    pub(crate) fn switch(&self, on: bool) {
        if on {
            self.take(|_| {});
        }
        // A full barrier: a writer that still read "off" had its bytes landed before (see `GuestMemory::note_write`).
        self.on.store(on, Ordering::SeqCst);
    }

    pub(crate) fn mark(&self, slot: u64) {
        if let Some(word) = self.words.get(index(slot / 64)) {
            let bit = 1 << (slot % 64);
            // Release: the bytes before the mark. A set bit must be set again, or a harvest under way could take the
            // old one and miss the bytes just written.
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Empties the log, calling `each` for every marked slot in ascending order.
    pub(crate) fn take(&self, mut each: impl FnMut(u64)) {
        for (number, word) in (0u64..).zip(self.words.iter()) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                each(number * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(log: &DirtyLog) -> Vec<u64> {
        let mut slots = Vec::new();
        log.take(|slot| slots.push(slot));
        slots
    }

    #[test]
    fn each_mark_is_harvested_once_in_order() {
        let log = DirtyLog::new(200).unwrap();
        log.switch(true);
        for slot in [199, 64, 0, 63, 64] {
            log.mark(slot);
        }
        log.mark(100_000);
        assert_eq!(taken(&log), [0, 63, 64, 199]);
        assert_eq!(taken(&log), []);
    }

    #[test]
    fn a_new_log_starts_empty() {
        let log = DirtyLog::new(10).unwrap();
        log.switch(true);
        log.mark(3);
        log.switch(false);
        log.switch(true);
        assert_eq!(taken(&log), []);
    }
}
