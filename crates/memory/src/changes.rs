//! What happened to guest memory that caches of it must hear of, in order.
//!
//! A ring of the latest events. Its count of events is the *epoch*; who remembers the epoch up to which it has heard
//! asks for what came after. Who has slept through more events than the ring holds, or comes while an event is being
//! written, is told that everything may have changed, which is always right.

use std::sync::atomic::{AtomicU64, Ordering};

use x86::{Gfn, Mfn};

/// Something that makes cached translations or cached code wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Anything: drop every translation.
    Everything,
    /// What this guest frame is has changed in the P2M: drop translations that lead to it.
    Remapped(Gfn),
    /// Writes have to be logged anew: drop writable translations.
    Logged,
    /// Writes to this frame have to be noticed from now on, because it holds code or is traced: drop writable
    /// translations of it.
    Watched(Mfn),
    /// Watched code of this frame was written: what was made of it is worth nothing.
    Written(Mfn),
    /// Nothing: somebody wants all to come to a block boundary.
    Nothing,
}

/// Events remembered. A vCPU that was idle hears what happened meanwhile: of a few thousand events in less time than it takes
/// to translate one page anew, and to hear of everything costs it all of its translations.
const SLOTS: usize = 4096;
const FRAME_BITS: u32 = 40;
const KIND_BITS: u32 = 3;
const KIND_MASK: u64 = (1 << KIND_BITS) - 1;
const FRAME_MASK: u64 = (1 << FRAME_BITS) - 1;

#[derive(Debug)]
pub(crate) struct ChangeLog {
    /// Events so far, and 1: a count of zero is left to mean "never heard".
    count: AtomicU64,
    /// Frame, kind, and the low bits of the event's number.
    slots: [AtomicU64; SLOTS],
}

const fn stamp(number: u64) -> u64 {
    number << (FRAME_BITS + KIND_BITS)
}

impl ChangeLog {
    pub(crate) fn new() -> Self {
        Self { count: AtomicU64::new(1), slots: [const { AtomicU64::new(0) }; SLOTS] }
    }

    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Adds an event; returns the epoch that includes it.
    pub(crate) fn push(&self, change: Change) -> u64 {
        let (kind, frame) = match change {
            Change::Everything => (0, 0),
            Change::Watched(mfn) => (1, mfn.0),
            Change::Written(mfn) => (2, mfn.0),
            Change::Nothing => (3, 0),
            Change::Remapped(gfn) => (4, gfn.0),
            Change::Logged => (5, 0),
        };
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let word = stamp(number) | kind << FRAME_BITS | frame & FRAME_MASK;
        if let Some(slot) = self.slots.get(x86::bits::index(number) % SLOTS) {
            slot.store(word, Ordering::Release);
        }
        number.wrapping_add(1)
    }

    /// The events from epoch `seen` to epoch `now`.
    pub(crate) fn between(&self, seen: u64, now: u64) -> impl Iterator<Item = Change> {
        let lost = now.wrapping_sub(seen) > SLOTS as u64;
        let numbers = if lost { now.wrapping_sub(1)..now } else { seen..now };
        numbers.map(move |number| if lost { Change::Everything } else { self.event(number) })
    }

    fn event(&self, number: u64) -> Change {
        let slot = self.slots.get(x86::bits::index(number) % SLOTS);
        let word = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
        let frame = word & FRAME_MASK;
        match (
            word >> (FRAME_BITS + KIND_BITS) == stamp(number) >> (FRAME_BITS + KIND_BITS),
            word >> FRAME_BITS & KIND_MASK,
        ) {
            (true, 1) => Change::Watched(Mfn(frame)),
            (true, 2) => Change::Written(Mfn(frame)),
            (true, 3) => Change::Nothing,
            (true, 4) => Change::Remapped(Gfn(frame)),
            (true, 5) => Change::Logged,
            // Overwritten, or not yet there.
            _ => Change::Everything,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(log: &ChangeLog, seen: u64) -> Vec<Change> {
        log.between(seen, log.epoch()).collect()
    }

    #[test]
    fn events_are_heard_in_order_once() {
        let log = ChangeLog::new();
        let start = log.epoch();
        assert_eq!(heard(&log, start), []);
        log.push(Change::Watched(Mfn(7)));
        log.push(Change::Written(Mfn(FRAME_MASK)));
        log.push(Change::Everything);
        log.push(Change::Nothing);
        log.push(Change::Remapped(Gfn(9)));
        log.push(Change::Logged);
        let all = [
            Change::Watched(Mfn(7)),
            Change::Written(Mfn(FRAME_MASK)),
            Change::Everything,
            Change::Nothing,
            Change::Remapped(Gfn(9)),
            Change::Logged,
        ];
        assert_eq!(heard(&log, start), all);
        assert_eq!(heard(&log, start + 2), all[2..]);
    }

    #[test]
    fn who_slept_too_long_hears_everything() {
        let log = ChangeLog::new();
        let start = log.epoch();
        for n in 0..=SLOTS as u64 {
            log.push(Change::Written(Mfn(n)));
        }
        assert_eq!(heard(&log, start), [Change::Everything]);
        assert_eq!(heard(&log, start + 1).len(), SLOTS);
        assert!(!heard(&log, start + 1).contains(&Change::Everything));
    }
}
