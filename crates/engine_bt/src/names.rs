//! What profilers call translated code.

use host::perf::{self, PerfMap};
use translate::Mode;

use crate::cache::{Cache, Key};

/// Tells `perf` of every block, if that is wanted.
pub(crate) struct Names(Option<&'static PerfMap>);

impl Names {
    /// Begins with what all blocks share.
    ///
    /// # Errors
    /// If they are wanted, and the map cannot be written.
    pub(crate) fn new(wanted: bool, cache: &Cache) -> Result<Self, host::HostError> {
        if !wanted {
            return Ok(Self(None));
        }
        let map = perf::map()?;
        map.add(&cache.shared(), "umbra:routines");
        Ok(Self(Some(map)))
    }

    /// A block has been placed: the translation of the code at `rip`.
    #[inline]
    pub(crate) fn placed(&self, cache: &Cache, number: u32, rip: u64) {
        if let Some(map) = self.0
            && let Some(block) = cache.block(number)
        {
            map.add(&cache.range(block), &name(block.key, rip));
        }
    }
}

/// `guest:user:0x7f12…`, by the address at which the code was first met.
fn name(key: Key, rip: u64) -> String {
    let privilege = if key.mode.has(Mode::USER) { "user" } else { "kernel" };
    format!("guest:{privilege}:{rip:#x}")
}
