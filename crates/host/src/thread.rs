//! Threads: how they come into being, and where they run.

use std::io;
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::jail::{self, Role};

/// Starts a thread of this name in its role: where the process is jailed, the body may do what the role may do.
///
/// # Errors
/// If the host has no thread for us.
pub fn spawn<T: Send + 'static>(
    name: &str,
    role: Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_prepared(name, role, || {}, body)
}

/// The same, for a thread that does something first which its role may not: makes a process, say.
///
/// # Errors
/// If the host has no thread for us.
pub fn spawn_prepared<T: Send + 'static>(
    name: &str,
    role: Role,
    prepare: impl FnOnce() + Send + 'static,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    jail::expect_one();
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        // When a thread first takes memory, some C libraries look into a file how many processors there are.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(64)));
        prepare();
        jail::enter(role);
        body()
    });
    thread.inspect_err(|_| jail::one_less())
}

/// Lets the calling thread run on one processor only: the one of this number among those it may run on, counted round and
/// round. For threads that are to run at the same time; false if the kernel refuses.
pub fn pin(number: usize) -> bool {
    let Ok(allowed) = sched_getaffinity(None) else { return false };
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor));
    let count = processors.clone().count();
    let Some(chosen) = number.checked_rem(count).and_then(|index| processors.nth(index)) else {
        return false;
    };
    let mut one = CpuSet::new();
    one.set(chosen);
    sched_setaffinity(None, &one).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_one_processor() {
        let pinned = std::thread::spawn(|| pin(1000).then(|| sched_getaffinity(None).unwrap().count()));
        // The kernel may refuse, but not do something else.
        assert!(pinned.join().unwrap().is_none_or(|count| count == 1));
    }
}
