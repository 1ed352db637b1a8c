//! Where threads run, and how long they waited to.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How long a thread has been ready to run while the kernel did not let it, since it began.
#[derive(Debug)]
pub struct RunDelay(OwnedFd);

impl RunDelay {
    /// The calling thread's, which any thread may ask for from then on; `None` if the kernel keeps no account
    /// (`CONFIG_SCHED_INFO`, or no `/proc`).
    pub fn of_this_thread() -> Option<Self> {
        let file =
            rustix::fs::open("/proc/thread-self/schedstat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        file.ok().map(Self).filter(|delay| delay.ns().is_some())
    }

    /// Nanoseconds; never less than before. `None` once the thread has ended.
    pub fn ns(&self) -> Option<u64> {
        // Time on a processor, time waited for one, turns.
        let mut text = [0; 96];
        let bytes = rustix::io::pread(&self.0, &mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..bytes)?).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    }
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
    fn a_thread_that_shares_its_processor_waits() {
        // The kernel may keep no account, or not let us have all on one processor.
        let Some(here) = RunDelay::of_this_thread() else { return };
        let before = here.ns().unwrap();
        let work = || pin(0) && std::hint::black_box((0..50_000_000_u64).fold(0, |sum, n| sum ^ n * n)) != 1;
        let workers = [(); 3].map(|()| std::thread::spawn(work));
        let pinned = pin(0) && work();
        assert!(workers.into_iter().all(|worker| worker.join().unwrap()) || !pinned);
        let waited = here.ns().unwrap() - before;
        assert!(!pinned || waited > 0, "{waited} ns");
    }

    #[test]
    fn a_thread_is_pinned_to_one_processor() {
        let pinned = std::thread::spawn(|| pin(1000).then(|| sched_getaffinity(None).unwrap().count()));
        // The kernel may refuse, but not do something else.
        assert!(pinned.join().unwrap().is_none_or(|count| count == 1));
    }
}
