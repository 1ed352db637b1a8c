//! The machine as a vCPU sees it: [`engine::Platform`] over the bus, the local APICs and the clock.
//!
//! Nothing is kept here. An access is passed to whoever owns the address: the page of the local APIC's registers to
//! the vCPU's own APIC, every other address to the bus; an MSR to the APICs first, then to the paravirtual clock and steal time. So
//! this file is the one place where the engines' words (vCPU, event, MSR access) and the chips' words meet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{GuestTime, Router, Space};
use chipset::apic::{self, GuestBytes, InterruptFabric, MsrOutcome, PendingEvent, TscTime, VcpuIndex};
use chipset::kvm_clock::{KvmClock, Moment, TscClock};
use engine::{Event, MsrAccess, Platform, PortWidth, VcpuId, hypercall};
use memory::GuestMemory;
use x86::{Gpa, PAGE_MASK};

use crate::clock::VmClock;
use crate::gate::Doorbell;
use crate::host_share::HostShare;

/// What vCPUs run in.
pub(crate) struct MachinePlatform {
    /// Ports and memory-mapped registers.
    pub(crate) router: Arc<Router>,
    /// The local APICs.
    pub(crate) apics: Arc<InterruptFabric>,
    /// The clock.
    pub(crate) clock: Arc<VmClock>,
    /// The paravirtual clock.
    pub(crate) kvm_clock: Arc<Mutex<KvmClock>>,
    /// Steal time and wake-ups.
    pub(crate) host_share: Arc<HostShare>,
    /// How vCPUs are roused.
    pub(crate) bells: Arc<[Arc<Doorbell>]>,
}

/// KVM_HC_KICK_CPU: flags, which are none, and an APIC ID.
const KICK_CPU: u64 = 5;

impl MachinePlatform {
    /// Ends the halt of the processor with this APIC ID.
    fn kick_cpu(&self, apic_id: u64) {
        let Ok(vcpu) = u32::try_from(apic_id).map(VcpuIndex) else { return };
        if self.host_share.wake(vcpu)
            && let Some(bell) = self.bells.get(vcpu.0 as usize)
        {
            bell.look();
        }
    }

    fn kvm_clock(&self) -> MutexGuard<'_, KvmClock> {
        self.kvm_clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) const fn index(vcpu: VcpuId) -> VcpuIndex {
    VcpuIndex(vcpu.0)
}

fn access<T>(outcome: MsrOutcome<T>) -> MsrAccess<T> {
    match outcome {
        MsrOutcome::Done(value) => MsrAccess::Done(value),
        MsrOutcome::Fault => MsrAccess::Fault,
        MsrOutcome::Unknown => MsrAccess::Unknown,
    }
}

/// The offset in the local APIC's page, if an access lies in it.
fn apic_offset(gpa: Gpa, data: &[u8]) -> Option<u64> {
    let fits = gpa.offset() + data.len() as u64 <= PAGE_MASK + 1;
    (gpa.page_base().0 == apic::APIC_BASE && fits).then_some(gpa.offset())
}

impl Platform for MachinePlatform {
    fn port_read(&self, _vcpu: VcpuId, port: u16, width: PortWidth) -> u32 {
        let mut data = [0; 4];
        let (bytes, _) = data.split_at_mut(width.bytes());
        self.router.read(Space::Port, port.into(), bytes);
        u32::from_le_bytes(data)
    }

    fn port_write(&self, _vcpu: VcpuId, port: u16, width: PortWidth, value: u32) {
        let data = value.to_le_bytes();
        self.router.write(Space::Port, port.into(), data.split_at(width.bytes()).0);
    }

    fn mmio_read(&self, vcpu: VcpuId, gpa: Gpa, data: &mut [u8]) {
        match apic_offset(gpa, data) {
            Some(offset) => self.apics.mmio_read(index(vcpu), offset, data),
            None => self.router.read(Space::Mmio, gpa.0, data),
        }
    }

    fn mmio_write(&self, vcpu: VcpuId, gpa: Gpa, data: &[u8]) {
        match apic_offset(gpa, data) {
            Some(offset) => self.apics.mmio_write(index(vcpu), offset, data),
            None => self.router.write(Space::Mmio, gpa.0, data),
        }
    }

    fn pending(&self, vcpu: VcpuId) -> Option<Event> {
        Some(match self.apics.pending(index(vcpu))? {
            PendingEvent::Init => Event::Init,
            PendingEvent::Startup(page) => Event::Startup(page),
            PendingEvent::Nmi => Event::Nmi,
            PendingEvent::Interrupt => Event::Interrupt,
        })
    }

    fn take(&self, vcpu: VcpuId, event: Event) {
        let event = match event {
            Event::Init => {
                self.host_share.sched().init(index(vcpu));
                self.kvm_clock().init(vcpu.0 as usize);
                PendingEvent::Init
            }
            Event::Startup(page) => PendingEvent::Startup(page),
            Event::Nmi => PendingEvent::Nmi,
            Event::Interrupt => PendingEvent::Interrupt,
        };
        self.apics.take(index(vcpu), event);
    }

    fn acknowledge(&self, vcpu: VcpuId) -> Option<u8> {
        self.host_share.account(vcpu);
        self.apics.acknowledge(index(vcpu))
    }

    fn cr8(&self, vcpu: VcpuId) -> u8 {
        self.apics.cr8(index(vcpu))
    }

    fn set_cr8(&self, vcpu: VcpuId, value: u8) {
        self.apics.set_cr8(index(vcpu), value);
    }

    fn read_msr(&self, vcpu: VcpuId, msr: u32) -> MsrAccess<u64> {
        match self.apics.read_msr(index(vcpu), msr) {
            MsrOutcome::Unknown => match self.kvm_clock().read_msr(vcpu.0 as usize, msr) {
                Some(value) => MsrAccess::Done(value),
                None => access(self.host_share.sched().read_msr(index(vcpu), msr)),
            },
            known => access(known),
        }
    }

    fn write_msr(&self, vcpu: VcpuId, msr: u32, value: u64) -> MsrAccess<()> {
        match self.apics.write_msr(index(vcpu), msr, value) {
            MsrOutcome::Unknown if self.kvm_clock().write_msr(vcpu.0 as usize, msr, value) => {
                MsrAccess::Done(())
            }
            MsrOutcome::Unknown => access(self.host_share.sched().write_msr(index(vcpu), msr, value)),
            known => access(known),
        }
    }

    fn hypercall(&self, _vcpu: VcpuId, number: u64, [_, apic_id, ..]: [u64; 4]) -> u64 {
        if number != KICK_CPU {
            return hypercall::UNKNOWN;
        }
        self.kick_cpu(apic_id);
        hypercall::DONE
    }

    fn take_wakeup(&self, vcpu: VcpuId) -> bool {
        self.host_share.sched().take_wakeup(index(vcpu))
    }

    fn tsc_offset(&self) -> u64 {
        self.clock.tsc_offset()
    }
}

impl TscTime for VmClock {
    fn time_of_tsc(&self, _vcpu: VcpuIndex, tsc: u64) -> GuestTime {
        self.time_of_tsc(tsc)
    }
}

impl TscClock for VmClock {
    fn moment(&self) -> Moment {
        let (time, tsc) = self.sample();
        Moment { tsc, time }
    }
}

/// Guest memory, byte by byte, for the local APICs.
pub(crate) struct MemoryBytes(pub(crate) Arc<GuestMemory>);

impl GuestBytes for MemoryBytes {
    fn read_byte(&self, gpa: Gpa) -> Option<u8> {
        self.0.read_word(gpa).ok()
    }

    fn write_byte(&self, gpa: Gpa, value: u8) -> bool {
        self.0.write_word(gpa, value).is_ok()
    }
}
