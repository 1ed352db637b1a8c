//! What changes of memory mean for compositions of the guest's table and the P2M.

use memory::{Change, GuestMemory};
use x86::Gfn;

/// What has to be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard {
    /// All.
    Everything,
    /// What leads to this guest frame.
    Frame(Gfn),
}

/// Hands what happened to the P2M since epoch `seen` to `act`. Code, the dirty log and traces concern the right to cache a
/// writable translation, for which memory is asked each time; compositions do not hold it.
#[inline]
pub(crate) fn hear(memory: &GuestMemory, seen: &mut u64, mut act: impl FnMut(Heard)) {
    let now = memory.epoch();
    if now == *seen {
        return;
    }
    let since = std::mem::replace(seen, now);
    for change in memory.changes(since, now) {
        match change {
            Change::Everything => act(Heard::Everything),
            Change::Remapped(gfn) => act(Heard::Frame(gfn)),
            Change::Logged | Change::Watched(_) | Change::Written(_) | Change::Nothing => {}
        }
    }
}
