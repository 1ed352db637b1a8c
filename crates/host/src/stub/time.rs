//! The processor time of stubs, which belongs to those whose work they do.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those that there are, and what those had used that are no more.
static ALL: Mutex<(Vec<libc::pid_t>, u64)> = Mutex::new((Vec::new(), 0));

thread_local! {
    /// The calling thread's; 0 if it has none.
    static OWN: Cell<libc::pid_t> = const { Cell::new(0) };
}

fn all() -> MutexGuard<'static, (Vec<libc::pid_t>, u64)> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread has a stub.
pub(super) fn begin(stub: libc::pid_t) {
    OWN.set(stub);
    all().0.push(stub);
}

/// A stub is about to end.
pub(super) fn end(stub: libc::pid_t) {
    let (stubs, ended) = &mut *all();
    stubs.retain(|&other| other != stub);
    *ended += of(stub);
}

/// The processor time, in nanoseconds, that the calling thread's stub has used.
pub fn thread_ns() -> u64 {
    match OWN.get() {
        0 => 0,
        stub => of(stub),
    }
}

/// What all of this process's have used.
pub fn process_ns() -> u64 {
    let (stubs, ended) = &*all();
    ended + stubs.iter().copied().map(of).sum::<u64>()
}

/// What a child has used; 0 if it has ended.
pub(super) fn of(stub: libc::pid_t) -> u64 {
    // SAFETY: plain numbers, of which zero is one.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // The clock of a process, by its number (clock_getcpuclockid(3), as Linux does it).
    let clock = !stub << 3 | 2;
    // SAFETY: the result is ours. If the child has ended it stays zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    crate::time::ns(rustix::time::Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec })
}
