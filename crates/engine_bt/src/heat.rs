//! Which code has come by often enough to be worth translating.
//!
//! A counter per hashed place: places that share one are translated a little early. Code that is written again and again
//! has to prove itself anew each time, and longer each time: else more would be translated than executed.

use crate::cache::Key;

const COUNTERS: usize = 1 << 15;

#[derive(Debug)]
pub(crate) struct Heat {
    counters: Box<[u8]>,
    /// How often the code of a hashed place became stale.
    relapses: Box<[u8]>,
    hot_after: u8,
}

impl Heat {
    /// Code is hot when it has come by `hot_after` times.
    pub(crate) fn new(hot_after: u8) -> Self {
        let zeros = || vec![0; COUNTERS].into_boxed_slice();
        Self { counters: zeros(), relapses: zeros(), hot_after }
    }

    /// Counts a visit; true as long as there have been few.
    pub(crate) fn is_cold(&mut self, key: Key) -> bool {
        let place = place(key);
        let (Some(counter), Some(&relapses)) = (self.counters.get_mut(place), self.relapses.get(place))
        else {
            return true;
        };
        *counter = counter.saturating_add(1);
        let patience = u32::from(self.hot_after) << u32::from(relapses).min(MAX_PATIENCE);
        u32::from(*counter) <= patience.min(u32::from(u8::MAX) - 1)
    }

    /// The code there has been written.
    pub(crate) fn cool(&mut self, key: Key) {
        let place = place(key);
        if let (Some(counter), Some(relapses)) = (self.counters.get_mut(place), self.relapses.get_mut(place))
        {
            *counter = 0;
            *relapses = relapses.saturating_add(1);
        }
    }
}

/// How often patience doubles.
const MAX_PATIENCE: u32 = 4;

/// The counter of a place.
fn place(key: Key) -> usize {
    x86::bits::index(key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49)
}
