//! The figures of a vCPU, read while it runs.
//!
//! What a vCPU counts is its own while it runs, and it counts without a thought for others. Who wants to know asks and rings its
//! doorbell; the vCPU's thread answers where it is between two runs, with a copy, and goes on. So the VM is not
//! stopped for it: no gate is shut, no vCPU waits for another, and each is out of its guest for as long as the copy takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::handle::VcpuFigures;

/// Where a question and its answer are left.
#[derive(Default)]
pub(crate) struct Meter {
    asked: AtomicBool,
    answer: Mutex<Option<VcpuFigures>>,
    changed: Condvar,
}

impl Meter {
    /// Asks. What was answered before and not taken is forgotten. The vCPU's doorbell has to be rung afterwards.
    pub(crate) fn ask(&self) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.asked.store(true, Ordering::SeqCst);
    }

    /// The vCPU's thread, between two runs: answers if somebody has asked.
    pub(crate) fn answer(&self, figures: impl FnOnce() -> VcpuFigures) {
        if self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::SeqCst) {
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures());
            self.changed.notify_all();
        }
    }

    /// The answer; none if it has not come within this time.
    pub(crate) fn wait(&self, limit: Duration) -> Option<VcpuFigures> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(answer, limit, |answer| answer.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::VcpuStats;

    use super::*;

    fn figures(interrupts: u64) -> VcpuFigures {
        let common = VcpuStats { interrupts, ..VcpuStats::default() };
        VcpuFigures { common, counters: Vec::new() }
    }

    #[test]
    fn who_asks_is_answered_once() {
        let meter = Arc::new(Meter::default());
        meter.answer(|| panic!("nobody has asked"));
        meter.ask();
        let vcpu = meter.clone();
        let thread = std::thread::spawn(move || vcpu.answer(|| figures(7)));
        assert_eq!(meter.wait(Duration::from_secs(60)), Some(figures(7)));
        thread.join().unwrap();
        meter.answer(|| panic!("it has been answered"));
        assert_eq!(meter.wait(Duration::ZERO), None);
    }

    #[test]
    fn an_old_answer_is_not_taken_for_a_new_one() {
        let meter = Meter::default();
        meter.ask();
        meter.answer(|| figures(1));
        meter.ask();
        assert_eq!(meter.wait(Duration::ZERO), None);
        meter.answer(|| figures(2));
        assert_eq!(meter.wait(Duration::ZERO), Some(figures(2)));
    }
}
