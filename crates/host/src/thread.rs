//! Where threads run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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
