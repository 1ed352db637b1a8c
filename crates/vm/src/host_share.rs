//! The vCPUs' share of the host's processors, as the guest is told of it: see [`chipset::kvm_sched`].
//!
//! How long a vCPU was kept waiting is in the kernel's account of its thread. It is read on that thread when an interrupt is
//! delivered, but not more often than a guest looks at it, and so just before the guest's own accounting, which its timer
//! drives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use chipset::apic::VcpuIndex;
use chipset::kvm_sched::KvmSched;
use engine::VcpuId;
use host::thread::RunDelay;

use crate::gate::Doorbell;
use crate::platform::index;

/// The least time between two readings, in milliseconds: a reading costs about a microsecond.
const PERIOD_MS: u64 = 1;

/// All vCPUs' share.
pub(crate) struct HostShare {
    sched: Arc<KvmSched>,
    vcpus: Vec<Account>,
    /// Ticks of the host's TSC between two readings.
    period: u64,
}

#[derive(Default)]
#[repr(align(64))]
struct Account {
    /// The account of the vCPU's thread, if the kernel keeps one.
    delay: OnceLock<Option<RunDelay>>,
    /// The host's TSC at which it is due for reading.
    due: AtomicU64,
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
            account.delay.get_or_init(RunDelay::of_this_thread);
        }
    }

    /// Tells the guest how long the vCPU has waited, if that is due; on its thread.
    pub(crate) fn account(&self, vcpu: VcpuId) {
        let Some(account) = self.vcpus.get(vcpu.0 as usize) else { return };
        let now = host::time::rdtsc();
        if now < account.due.load(Ordering::Relaxed) {
            return;
        }
        account.due.store(now.saturating_add(self.period), Ordering::Relaxed);
        if let Some(waited_ns) = account.delay.get().and_then(|delay| delay.as_ref()?.ns()) {
            self.sched.account(index(vcpu), waited_ns);
        }
    }

    /// Waits at the bell of a vCPU that has nothing to execute.
    pub(crate) fn sit(&self, vcpu: VcpuId, bell: &Doorbell) {
        self.sched.park(index(vcpu));
        bell.sit();
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
