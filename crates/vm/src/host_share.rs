//! The vCPUs' share of the host's processors, as the guest is told of it: see [`chipset::kvm_sched`].
//!
//! Whatever of the time that has passed since a vCPU's thread began it has neither run nor waited of its own accord, the vCPU was
//! kept waiting for a processor, or for the host's memory. That is found out on the thread when an interrupt is delivered, but
//! not more often than a guest looks at it, and so just before the guest's own accounting, which its timer drives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chipset::apic::VcpuIndex;
use chipset::kvm_sched::KvmSched;
use engine::VcpuId;
use host::stub;
use host::time::monotonic_ns;

use crate::gate::Doorbell;
use crate::platform::index;

/// The least time between two readings, in milliseconds: a reading costs half a microsecond.
const PERIOD_MS: u64 = 1;

/// All vCPUs' share.
pub(crate) struct HostShare {
    sched: Arc<KvmSched>,
    vcpus: Vec<Account>,
    /// Ticks of the host's TSC between two readings.
    period: u64,
}

/// For how long the calling thread has run on a processor, or a process in its stead, in nanoseconds.
fn ran_ns() -> u64 {
    host::time::thread_cpu_ns() + stub::time::thread_ns()
}

#[derive(Default)]
#[repr(align(64))]
struct Account {
    /// When the vCPU's thread began ([`host::time::monotonic_ns`]); 0 before.
    began: AtomicU64,
    /// For how long it has waited of its own accord, in nanoseconds.
    idle: AtomicU64,
    /// For how long it was kept waiting, as it was last found; never less than before.
    kept: AtomicU64,
    /// The host's TSC at which that is due.
    due: AtomicU64,
}

impl Account {
    /// For how long the calling thread, whose account it is, was kept waiting, in nanoseconds.
    fn kept_ns(&self) -> u64 {
        let (began, idle) = (self.began.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed));
        // In this order: what passes in between is not time kept waiting.
        let passed = monotonic_ns().saturating_sub(began);
        let kept = passed.saturating_sub(idle).saturating_sub(ran_ns());
        self.kept.fetch_max(kept, Ordering::Relaxed).max(kept)
    }
}

impl HostShare {
    /// That of `vcpus` processors whose threads have not begun.
    pub(crate) fn new(vcpus: usize, sched: Arc<KvmSched>) -> Self {
        let vcpus = (0..vcpus).map(|_| Account::default()).collect();
        Self { sched, vcpus, period: host::time::tsc_khz() * PERIOD_MS }
    }

    /// The calling thread is the vCPU's from now on.
    pub(crate) fn begin(&self, vcpu: VcpuId) {
        if let Some(account) = self.vcpus.get(vcpu.0 as usize) {
            account.began.store(monotonic_ns(), Ordering::Relaxed);
        }
    }

    /// Waits, on the vCPU's thread, for what has nothing to do with the host's processors.
    pub(crate) fn aside<T>(&self, vcpu: VcpuId, wait: impl FnOnce() -> T) -> T {
        let (since, ran) = (monotonic_ns(), ran_ns());
        let outcome = wait();
        if let Some(account) = self.vcpus.get(vcpu.0 as usize) {
            let passed = monotonic_ns().saturating_sub(since);
            account.idle.fetch_add(passed.saturating_sub(ran_ns().saturating_sub(ran)), Ordering::Relaxed);
        }
        outcome
    }

    /// Tells the guest how long the vCPU has waited, if that is due; on its thread.
    pub(crate) fn account(&self, vcpu: VcpuId) {
        let Some(account) = self.vcpus.get(vcpu.0 as usize) else { return };
        let now = host::time::rdtsc();
        if now < account.due.load(Ordering::Relaxed) {
            return;
        }
        account.due.store(now.saturating_add(self.period), Ordering::Relaxed);
        self.sched.account(index(vcpu), account.kept_ns());
    }

    /// Waits at the bell of a vCPU that has nothing to execute.
    pub(crate) fn sit(&self, vcpu: VcpuId, bell: &Doorbell) {
        self.sched.park(index(vcpu));
        self.aside(vcpu, || bell.sit());
    }

    /// Before the vCPU executes anything after that, or for the first time: whether its TLB has to be flushed.
    #[must_use]
    pub(crate) fn rise(&self, vcpu: VcpuId) -> bool {
        self.sched.unpark(index(vcpu))
    }

    /// Ends the present or the next halt of a vCPU, which has to be roused after this. False if there is none of that number.
    pub(crate) fn wake(&self, vcpu: VcpuIndex) -> bool {
        self.sched.wake(vcpu)
    }

    /// What the guest has registered.
    pub(crate) fn sched(&self) -> &KvmSched {
        &self.sched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_unasked_was_kept_waiting() {
        let account = Account { began: AtomicU64::new(monotonic_ns() - ran_ns()), ..Account::default() };
        let nap = std::time::Duration::from_millis(20);
        std::thread::sleep(nap);
        let kept = account.kept_ns();
        assert!(kept >= 20_000_000, "{kept} ns");
        account.idle.store(1 << 60, Ordering::Relaxed);
        assert_eq!(account.kept_ns(), kept, "it never gets less");
    }
}
