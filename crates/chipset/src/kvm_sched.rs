//! What a guest is told of how its vCPUs share the host's processors: KVM's steal time, wake-ups and deferred TLB flushes.
//!
//! A guest registers 64 bytes per vCPU (`kvm_steal_time`). There it finds how long the vCPU was ready and the host did not let
//! it run, under a version that is odd while the time is being changed; and a byte that says whether the vCPU is idle on the
//! host (`preempted`). Another vCPU that wants an idle one's TLB flushed puts that into the byte by a locked instruction,
//! instead of waking it by an interrupt: so the byte is only ever exchanged atomically, and who finds the request when the
//! vCPU goes on flushes its TLB first. A running vCPU's byte is zero, so nobody puts anything there.
//!
//! A *wake-up* (KVM_HC_KICK_CPU) ends the present or the next halt of a vCPU that waits for a lock, with interrupts off too.
//!
//! Each vCPU has a lock of its own, held for a few accesses to memory; it is the last in any order.
//!
//! Reference: Linux, `Documentation/virt/kvm/x86/msr.rst` (MSR_KVM_STEAL_TIME) and `hypercalls.rst`.

use std::sync::{Arc, Mutex, MutexGuard};

use bus::{Device, Lifecycle, Region};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::{Gpa, msr};

use crate::apic::{MsrOutcome, VcpuIndex};
use crate::kvm_version;
use crate::sync::lock;

/// Bit 0 of the MSR.
const ENABLE: u64 = 1;
/// Bits 5:1, which must be zero.
const RESERVED: u64 = 0x3e;

// Offsets in `kvm_steal_time`.
const VERSION: u64 = 8;
const PREEMPTED: u64 = 16;

// Bits of `preempted`.
const IDLE: u8 = 1 << 0;
const FLUSH_TLB: u8 = 1 << 1;

/// The paravirtual scheduling state of all vCPUs.
pub struct KvmSched {
    memory: Arc<GuestMemory>,
    vcpus: Vec<Mutex<Vcpu>>,
}

#[derive(Clone, Default)]
struct Vcpu {
    /// What the host's account of waiting showed last; of this host only.
    waited_ns: Option<u64>,
    saved: SavedVcpu,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct SavedVcpu {
    /// The MSR: an address, and whether it is in use.
    msr: u64,
    version: u32,
    steal_ns: u64,
    woken: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedSched {
    vcpus: Vec<SavedVcpu>,
}

impl Saved for SavedSched {
    const NAME: &'static str = "kvm-sched";
    const VERSION: u16 = 1;
}

impl Vcpu {
    /// Where the guest has its structure, if it has one.
    fn place(&self) -> Option<Gpa> {
        (self.saved.msr & ENABLE != 0).then_some(Gpa(self.saved.msr & !ENABLE))
    }

    /// Does something to the guest's structure; where there is no memory, there is none from then on.
    fn touch<R>(&mut self, act: impl FnOnce(&mut SavedVcpu, Gpa) -> Result<R, MemoryError>) -> Option<R> {
        let at = self.place()?;
        let result = act(&mut self.saved, at).ok();
        if result.is_none() {
            self.saved.msr &= !ENABLE;
        }
        result
    }

    /// Writes the time.
    fn publish(&mut self, memory: &GuestMemory) {
        self.touch(|saved, at| {
            kvm_version::publish(memory, at.wrapping_add(VERSION), &mut saved.version, || {
                memory.write_word::<u64>(at, saved.steal_ns)
            })
        });
    }

    /// Replaces the idle byte; what was there.
    fn mark(&mut self, memory: &GuestMemory, byte: u8) -> u8 {
        self.touch(|_, at| memory.swap_word(at.wrapping_add(PREEMPTED), byte)).unwrap_or(0)
    }
}

impl KvmSched {
    /// Those of `vcpus` processors, with nothing registered.
    pub fn new(vcpus: usize, memory: Arc<GuestMemory>) -> Arc<Self> {
        Arc::new(Self { memory, vcpus: (0..vcpus).map(|_| Mutex::default()).collect() })
    }

    fn vcpu(&self, vcpu: VcpuIndex) -> Option<MutexGuard<'_, Vcpu>> {
        self.vcpus.get(vcpu.0 as usize).map(lock)
    }

    /// RDMSR on a vCPU.
    pub fn read_msr(&self, vcpu: VcpuIndex, register: u32) -> MsrOutcome<u64> {
        match self.vcpu(vcpu) {
            Some(vcpu) if register == msr::KVM_STEAL_TIME => MsrOutcome::Done(vcpu.saved.msr),
            _ => MsrOutcome::Unknown,
        }
    }

    /// WRMSR on a vCPU, on its own thread.
    pub fn write_msr(&self, vcpu: VcpuIndex, register: u32, value: u64) -> MsrOutcome<()> {
        let Some(mut vcpu) = self.vcpu(vcpu).filter(|_| register == msr::KVM_STEAL_TIME) else {
            return MsrOutcome::Unknown;
        };
        if value & RESERVED != 0 {
            return MsrOutcome::Fault;
        }
        vcpu.saved.msr = value;
        vcpu.mark(&self.memory, 0);
        vcpu.publish(&self.memory);
        MsrOutcome::Done(())
    }

    /// The host's account says that the vCPU's thread has waited so long for a processor, in all. What is new since the last
    /// call was stolen from the guest.
    pub fn account(&self, vcpu: VcpuIndex, waited_ns: u64) {
        let Some(mut vcpu) = self.vcpu(vcpu) else { return };
        let before = vcpu.waited_ns.replace(waited_ns).unwrap_or(waited_ns);
        let stolen = waited_ns.saturating_sub(before);
        if stolen > 0 && vcpu.place().is_some() {
            vcpu.saved.steal_ns = vcpu.saved.steal_ns.wrapping_add(stolen);
            vcpu.publish(&self.memory);
        }
    }

    /// The vCPU is about to wait, and executes nothing before [`KvmSched::unpark`].
    pub fn park(&self, vcpu: VcpuIndex) {
        if let Some(mut vcpu) = self.vcpu(vcpu) {
            vcpu.mark(&self.memory, IDLE);
        }
    }

    /// The vCPU goes on. True if its TLB has to be flushed first.
    #[must_use]
    pub fn unpark(&self, vcpu: VcpuIndex) -> bool {
        self.vcpu(vcpu).is_some_and(|mut vcpu| vcpu.mark(&self.memory, 0) & FLUSH_TLB != 0)
    }

    /// Ends the present or the next halt of a vCPU, which has to be told after this. False if there is no such vCPU.
    pub fn wake(&self, vcpu: VcpuIndex) -> bool {
        self.vcpu(vcpu).map(|mut vcpu| vcpu.saved.woken = true).is_some()
    }

    /// Whether somebody has ended the vCPU's halt; takes that away.
    pub fn take_wakeup(&self, vcpu: VcpuIndex) -> bool {
        self.vcpu(vcpu).is_some_and(|mut vcpu| std::mem::take(&mut vcpu.saved.woken))
    }

    /// The vCPU acts on INIT: what it has registered is void.
    pub fn init(&self, vcpu: VcpuIndex) {
        if let Some(mut vcpu) = self.vcpu(vcpu) {
            *vcpu = Vcpu::default();
        }
    }
}

/// [`KvmSched`] as a device without registers of its own, for the sake of its life.
pub struct KvmSchedDevice(Arc<KvmSched>);

impl KvmSchedDevice {
    /// The device of `sched`.
    pub fn new(sched: Arc<KvmSched>) -> Self {
        Self(sched)
    }
}

impl Device for KvmSchedDevice {
    fn regions(&self) -> Vec<Region> {
        Vec::new()
    }

    fn read(&mut self, _region: usize, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: usize, _offset: u64, _data: &[u8]) {}
}

impl Lifecycle for KvmSchedDevice {
    fn name(&self) -> &'static str {
        SavedSched::NAME
    }

    fn reset(&mut self) {
        self.0.vcpus.iter().for_each(|vcpu| *lock(vcpu) = Vcpu::default());
    }

    fn save(&self) -> Record {
        Record::encode(&SavedSched {
            vcpus: self.0.vcpus.iter().map(|vcpu| lock(vcpu).saved.clone()).collect(),
        })
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let SavedSched { vcpus } = record.decode()?;
        if vcpus.len() != self.0.vcpus.len() {
            let reason = format!("it is of {} vCPUs, this machine has {}", vcpus.len(), self.0.vcpus.len());
            return Err(StateError::Damaged { name: SavedSched::NAME, reason });
        }
        for (vcpu, saved) in self.0.vcpus.iter().zip(vcpus) {
            *lock(vcpu) = Vcpu { waited_ns: None, saved };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Rig};
    use memory::RamRange;

    const FIRST: VcpuIndex = VcpuIndex(0);
    const SECOND: VcpuIndex = VcpuIndex(1);
    const NOBODY: VcpuIndex = VcpuIndex(2);
    const AT: u64 = 0x1040;

    fn sched() -> (Arc<KvmSched>, Arc<GuestMemory>) {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 1 << 20)]).unwrap());
        (KvmSched::new(2, memory.clone()), memory)
    }

    /// With the second vCPU's structure registered.
    fn registered() -> (Arc<KvmSched>, Arc<GuestMemory>) {
        let (sched, memory) = sched();
        assert_eq!(sched.write_msr(SECOND, msr::KVM_STEAL_TIME, AT | ENABLE), MsrOutcome::Done(()));
        (sched, memory)
    }

    /// Time, version and idle byte.
    fn told(memory: &GuestMemory) -> (u64, u32, u8) {
        let (time, version) =
            (memory.read_word(Gpa(AT)).unwrap(), memory.read_word(Gpa(AT + VERSION)).unwrap());
        (time, version, memory.read_word(Gpa(AT + PREEMPTED)).unwrap())
    }

    #[test]
    fn what_the_thread_has_waited_since_was_stolen() {
        let (sched, memory) = registered();
        assert_eq!(told(&memory), (0, 2, 0));
        sched.account(SECOND, 5_000);
        assert_eq!(told(&memory), (0, 2, 0), "waited before there was a guest");
        sched.account(SECOND, 5_700);
        sched.account(FIRST, 0);
        sched.account(FIRST, 9_999);
        assert_eq!(told(&memory), (700, 4, 0));
        sched.account(SECOND, 5_700);
        sched.account(SECOND, 5_699);
        assert_eq!(told(&memory), (700, 4, 0), "nothing to tell, and the account never goes back");
    }

    #[test]
    fn a_flush_is_left_with_who_is_idle_and_found_when_it_goes_on() {
        let (sched, memory) = registered();
        sched.park(SECOND);
        assert_eq!(told(&memory).2, IDLE);
        assert!(!sched.unpark(SECOND));
        sched.park(SECOND);
        memory.write_word(Gpa(AT + PREEMPTED), IDLE | FLUSH_TLB).unwrap();
        assert!(sched.unpark(SECOND));
        assert_eq!(told(&memory).2, 0);
        assert!(!sched.unpark(SECOND) && !sched.unpark(FIRST), "once, and only where it was asked for");
    }

    #[test]
    fn a_wakeup_waits_for_the_halt() {
        let (sched, _) = sched();
        assert!(sched.wake(FIRST) && !sched.wake(NOBODY));
        assert!(!sched.take_wakeup(SECOND) && sched.take_wakeup(FIRST) && !sched.take_wakeup(FIRST));
    }

    #[test]
    fn the_register_has_reserved_bits_and_init_clears_it() {
        let (sched, memory) = registered();
        assert_eq!(sched.write_msr(SECOND, msr::KVM_STEAL_TIME, AT | 2), MsrOutcome::Fault);
        assert_eq!(sched.read_msr(SECOND, msr::KVM_STEAL_TIME), MsrOutcome::Done(AT | ENABLE));
        assert_eq!(sched.read_msr(SECOND, msr::KVM_SYSTEM_TIME), MsrOutcome::Unknown);
        assert_eq!(sched.write_msr(NOBODY, msr::KVM_STEAL_TIME, 0), MsrOutcome::Unknown);
        sched.init(SECOND);
        sched.park(SECOND);
        assert_eq!(told(&memory).2, 0);
        assert_eq!(sched.read_msr(SECOND, msr::KVM_STEAL_TIME), MsrOutcome::Done(0));
    }

    #[test]
    fn no_memory_nothing_told() {
        let (sched, _) = sched();
        assert_eq!(sched.write_msr(FIRST, msr::KVM_STEAL_TIME, (1 << 20) | ENABLE), MsrOutcome::Done(()));
        sched.park(FIRST);
        assert!(!sched.unpark(FIRST));
        assert_eq!(sched.read_msr(FIRST, msr::KVM_STEAL_TIME), MsrOutcome::Done(1 << 20), "not in use");
    }

    #[test]
    fn stands_any_msr_write_and_survives_a_save() {
        harness::check(|| {
            let (sched, _) = sched();
            Rig::new(KvmSchedDevice::new(sched)).stimulated(|device, number| {
                let vcpu = VcpuIndex(x86::bits::low32(number >> 62));
                device.0.write_msr(vcpu, msr::KVM_STEAL_TIME, number >> 8);
                device.0.wake(vcpu);
                device.0.park(vcpu);
            })
        });
    }

    #[test]
    fn a_saved_one_goes_on_in_a_machine_of_as_many() {
        let (old, _) = registered();
        old.account(SECOND, 0);
        old.account(SECOND, 30);
        old.wake(FIRST);
        let (new, memory) = sched();
        let mut device = KvmSchedDevice::new(new.clone());
        device.restore(&KvmSchedDevice::new(old.clone()).save()).unwrap();
        new.account(SECOND, 1_000_000);
        new.account(SECOND, 1_000_005);
        assert_eq!(told(&memory).0, 35, "the new host's account begins anew");
        assert!(new.take_wakeup(FIRST));
        let mut larger = KvmSchedDevice::new(KvmSched::new(3, memory));
        assert!(larger.restore(&KvmSchedDevice::new(old).save()).is_err());
    }
}
