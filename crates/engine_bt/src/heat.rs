//! Which code has come by often enough to be worth translating.
//!
//! A counter per hashed place, never cleared: places that share one are translated a little early.

use crate::cache::Key;

const COUNTERS: usize = 1 << 15;

#[derive(Debug)]
pub(crate) struct Heat {
    counters: Box<[u8]>,
    hot_after: u8,
}

impl Heat {
    /// Code is hot when it has come by `hot_after` times.
    pub(crate) fn new(hot_after: u8) -> Self {
        Self { counters: vec![0; COUNTERS].into_boxed_slice(), hot_after }
    }

    /// Counts a visit; true as long as there have been few.
    pub(crate) fn is_cold(&mut self, key: Key) -> bool {
        let hash = key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        let Some(counter) = self.counters.get_mut(x86::bits::index(hash)) else { return true };
        *counter = counter.saturating_add(1);
        *counter <= self.hot_after
    }
}
