//! Which code is worth translating.
//!
//! To translate costs a few visits' worth of interpretation, so code is translated when it is met, as a rule. A place whose
//! code was written after it had been translated has to prove itself: it must come by a few times first, and more often
//! each time, else more would be translated than executed. Such places are remembered in a table by hash, with a few bits
//! that say whose a slot is.

use crate::cache::Key;

/// Binary logarithm of the number of slots.
const SLOTS: u32 = 16;

/// A place whose code was written.
#[derive(Clone, Copy, Debug, Default)]
struct Relapsed {
    tag: u16,
    /// How often; zero in a free slot.
    times: u8,
    /// Visits since.
    visits: u8,
}

#[derive(Debug)]
pub(crate) struct Heat {
    slots: Box<[Relapsed]>,
}

impl Heat {
    pub(crate) fn new() -> Self {
        Self { slots: vec![Relapsed::default(); 1 << SLOTS].into_boxed_slice() }
    }

    /// Counts a visit; true if the place's code is to be interpreted.
    pub(crate) fn is_cold(&mut self, key: Key) -> bool {
        let Some(slot) = self.slots.get_mut(place(key)).filter(|slot| slot.times > 0 && slot.tag == tag(key))
        else {
            return false;
        };
        slot.visits = slot.visits.saturating_add(1);
        u32::from(slot.visits) <= PATIENCE << u32::from(slot.times).min(MOST_TIMES)
    }

    /// The code there has been written.
    pub(crate) fn cool(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(place(key)) else { return };
        let times = if slot.tag == tag(key) { slot.times } else { 0 };
        *slot = Relapsed { tag: tag(key), times: times.saturating_add(1), visits: 0 };
    }
}

/// Twice as often as this a place has to come by whose code was written once; then twice as often each time.
const PATIENCE: u32 = 2;
/// After how many times that is no longer doubled: below what is counted.
const MOST_TIMES: u32 = 6;

fn hash(key: Key) -> u64 {
    key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn place(key: Key) -> usize {
    x86::bits::index(hash(key) >> (64 - SLOTS))
}

/// What tells places apart that share a slot.
fn tag(key: Key) -> u16 {
    x86::bits::low16(hash(key) >> 24)
}

#[cfg(test)]
mod tests {
    use translate::Mode;
    use x86::Mfn;

    use super::*;

    fn key(mfn: u64) -> Key {
        Key { mfn: Mfn(mfn), offset: 0x123, mode: Mode::USER }
    }

    #[test]
    fn code_that_is_rewritten_has_to_come_by_more_often() {
        let mut heat = Heat::new();
        let visits = |heat: &mut Heat| (1..).find(|_| !heat.is_cold(key(7))).unwrap();
        let found = [(); 8].map(|()| {
            let visits = visits(&mut heat);
            heat.cool(key(7));
            visits
        });
        assert_eq!(found, [1, 5, 9, 17, 33, 65, 129, 129]);
    }

    #[test]
    fn code_that_was_written_makes_no_other_cold() {
        let mut heat = Heat::new();
        (0..1 << 16).for_each(|mfn| heat.cool(key(mfn)));
        assert!((1 << 16..1 << 18).filter(|&mfn| heat.is_cold(key(mfn))).count() < 64);
    }
}
