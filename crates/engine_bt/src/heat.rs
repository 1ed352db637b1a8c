//! Which code has come by often enough to be worth translating.
//!
//! To translate costs a few visits' worth of interpretation, so code is translated when it is met, unless it has been written
//! since an earlier translation. Then there is a counter per hashed place, with a few bits that say whose it is: a place that
//! takes the counter of another begins anew, so
//! that a large program does not make all code hot by and by. Code that is written again and again has to prove itself
//! anew each time, and longer each time: else more would be translated than executed.

use crate::cache::Key;

/// Binary logarithm of the number of counters.
const COUNTERS: u32 = 18;
/// Binary logarithm of the number of relapse counters.
const RELAPSES: u32 = 15;

/// A place's visits.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    tag: u8,
    visits: u8,
}

#[derive(Debug)]
pub(crate) struct Heat {
    counters: Box<[Counter]>,
    /// How often the code of a hashed place became stale.
    relapses: Box<[u8]>,
    hot_after: u8,
}

impl Heat {
    /// Code is hot when it has come by `hot_after` times, at first.
    pub(crate) fn new(hot_after: u8) -> Self {
        let counters = vec![Counter::default(); 1 << COUNTERS].into_boxed_slice();
        Self { counters, relapses: vec![0; 1 << RELAPSES].into_boxed_slice(), hot_after }
    }

    /// Counts a visit; true as long as there have been few.
    pub(crate) fn is_cold(&mut self, key: Key) -> bool {
        let Some(&relapses) = self.relapses.get(place(key, RELAPSES)) else { return true };
        let patience = match u32::from(relapses) {
            0 => u32::from(self.hot_after),
            relapses => FIRST_PATIENCE << relapses.min(MAX_PATIENCE),
        };
        let Some(counter) = self.counters.get_mut(place(key, COUNTERS)) else { return true };
        let tag = tag(key);
        if counter.tag != tag {
            *counter = Counter { tag, visits: 0 };
        }
        counter.visits = counter.visits.saturating_add(1);
        u32::from(counter.visits) <= patience.min(u32::from(u8::MAX) - 1)
    }

    /// The code there has been written.
    pub(crate) fn cool(&mut self, key: Key) {
        if let Some(counter) = self.counters.get_mut(place(key, COUNTERS)) {
            counter.visits = 0;
        }
        if let Some(relapses) = self.relapses.get_mut(place(key, RELAPSES)) {
            *relapses = relapses.saturating_add(1);
        }
    }
}

/// How often code has to come by that was written for the first time.
const FIRST_PATIENCE: u32 = 16;
/// How often patience doubles.
const MAX_PATIENCE: u32 = 4;

fn hash(key: Key) -> u64 {
    key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The counter of a place, in a table of `1 << bits`.
fn place(key: Key, bits: u32) -> usize {
    x86::bits::index(hash(key) >> (64 - bits))
}

/// What tells places apart that share a counter.
fn tag(key: Key) -> u8 {
    x86::bits::low8(hash(key) >> 32)
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
    fn many_cold_places_do_not_make_each_other_hot() {
        let mut heat = Heat::new(4);
        let hot = (0..1 << 19).filter(|&mfn| !heat.is_cold(key(mfn))).count();
        assert!(hot < 1 << 13, "{hot}");
    }

    #[test]
    fn code_that_is_rewritten_has_to_come_by_more_often() {
        let mut heat = Heat::new(4);
        let visits = |heat: &mut Heat| (1..).find(|_| !heat.is_cold(key(7))).unwrap();
        assert_eq!(visits(&mut heat), 5);
        heat.cool(key(7));
        assert_eq!(visits(&mut heat), 1 + (FIRST_PATIENCE << 1));
    }
}
