//! Where a stub and its thread run: on the same processor.
//!
//! One of them waits whenever the other runs, and so the kernel wakes each on a processor that is idle, if there is one: which
//! takes several times as long as to go on with the other where the first has stopped. So both are kept where the thread is, for as long as
//! there are visits. But the kernel cannot move what is kept: if the two do not get their processor for themselves, they are let go for
//! a while, so that they find another.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Nanoseconds for which the two are kept before it is looked how they do.
const KEPT: u64 = 4_000_000;
/// And let go, if they do not do well.
const FREE: u64 = 50_000_000;

/// Where a stub and its thread are kept.
#[derive(Debug)]
pub(super) struct Place {
    stub: Option<Pid>,
    /// The processor that the stub may run on, if it is only one.
    processor: Option<usize>,
    /// What the thread was allowed before it was kept; since when, and what the two had run by then.
    kept: Option<(CpuSet, u64, u64)>,
    /// Until when nothing is kept anywhere.
    free_until: u64,
}

impl Place {
    pub(super) fn new(stub: libc::pid_t) -> Self {
        Self { stub: Pid::from_raw(stub), processor: None, kept: None, free_until: 0 }
    }

    /// Keeps the calling thread where it is, and the stub there, too. Where the kernel refuses, all is only slower. `run` says for how long
    /// the two have run, in nanoseconds.
    pub(super) fn keep(&mut self, now: u64, run: impl Fn() -> u64) {
        if let Some((_, since, before)) = &self.kept {
            let taken = now.saturating_sub(*since);
            if taken < KEPT {
                return;
            }
            let well = run().saturating_sub(*before) >= taken / 2;
            let allowed = self.release();
            if !well {
                self.free_until = now + FREE;
                self.processor = None;
                let _ = allowed.map(|allowed| sched_setaffinity(self.stub, &allowed));
            }
        }
        if now < self.free_until {
            return;
        }
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let here = sched_getcpu();
        let mut one = CpuSet::new();
        one.set(here);
        if sched_setaffinity(None, &one).is_ok() {
            self.kept = Some((allowed, now, run()));
            if self.processor != Some(here) && sched_setaffinity(self.stub, &one).is_ok() {
                self.processor = Some(here);
            }
        }
    }

    /// The calling thread may run where it was allowed to before: there.
    pub(super) fn release(&mut self) -> Option<CpuSet> {
        let (allowed, ..) = self.kept.take()?;
        let _ = sched_setaffinity(None, &allowed);
        Some(allowed)
    }
}
