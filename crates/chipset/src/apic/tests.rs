//! The fabric with a clock, memory and wake log of our own.

mod interrupts;
mod modes;
mod random;
mod signals;
mod threads;

use std::sync::{Arc, Mutex};

use bus::{Alarm, GuestTime, ManualClock};
use x86::Gpa;

use super::*;

/// The guest's TSC runs at 3 GHz.
struct Tsc;

impl TscTime for Tsc {
    fn time_of_tsc(&self, _: VcpuIndex, tsc: u64) -> GuestTime {
        GuestTime(tsc.div_ceil(3))
    }
}

/// 16 bytes of guest memory at 0x1000.
#[derive(Clone, Default)]
struct Bytes(Arc<Mutex<[u8; 16]>>);

impl Bytes {
    fn at(gpa: Gpa) -> Option<usize> {
        usize::try_from(gpa.0.checked_sub(0x1000)?).ok().filter(|at| *at < 16)
    }
}

impl GuestBytes for Bytes {
    fn read_byte(&self, gpa: Gpa) -> Option<u8> {
        Some(self.0.lock().unwrap()[Self::at(gpa)?])
    }

    fn write_byte(&self, gpa: Gpa, value: u8) -> bool {
        let Some(at) = Self::at(gpa) else { return false };
        self.0.lock().unwrap()[at] = value;
        true
    }
}

/// Remembers ends of level interrupts; acknowledges ExtINTs with 0x30.
#[derive(Default)]
struct Behind(Mutex<Vec<u8>>);

impl BehindApics for Behind {
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }

    fn acknowledge_extint(&self) -> u8 {
        0x30
    }
}

struct Bench {
    fabric: Arc<InterruptFabric>,
    clock: ManualClock,
    alarms: Vec<ManualClock>,
    memory: Bytes,
    behind: Arc<Behind>,
    wakes: Arc<Mutex<Vec<u32>>>,
}

const FEATURES: ApicFeatures = ApicFeatures { x2apic: true, tsc_deadline: true };

// Offsets in the page.
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const BOOT: VcpuIndex = VcpuIndex(0);

impl Bench {
    /// `vcpus` local APICs as after power-on.
    fn cold(vcpus: usize) -> Self {
        let (clock, memory) = (ManualClock::default(), Bytes::default());
        let alarms: Vec<_> = (0..vcpus).map(|_| ManualClock::default()).collect();
        let wakes = Arc::new(Mutex::new(Vec::new()));
        let log = wakes.clone();
        let fabric = InterruptFabric::new(FabricSetup {
            features: FEATURES,
            clock: Arc::new(clock.clone()),
            alarms: alarms.iter().map(|alarm| Arc::new(alarm.clone()) as Arc<dyn Alarm>).collect(),
            tsc: Arc::new(Tsc),
            memory: Arc::new(memory.clone()),
            wake: Box::new(move |vcpu| log.lock().unwrap().push(vcpu.0)),
        });
        let behind = Arc::new(Behind::default());
        let weak: Arc<dyn BehindApics> = behind.clone();
        fabric.connect(Arc::downgrade(&weak));
        Self { fabric, clock, alarms, memory, behind, wakes }
    }

    /// All of them started and software-enabled, LINT0 masked.
    fn running(vcpus: usize) -> Self {
        let bench = Self::cold(vcpus);
        for vcpu in bench.fabric.vcpus() {
            bench.fabric.take(vcpu, PendingEvent::Startup(0));
            bench.write(vcpu, SVR, 0x1ff);
            bench.write(vcpu, LVT_LINT0, 0x1_0000);
        }
        bench.woken();
        bench
    }

    fn read(&self, vcpu: VcpuIndex, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.fabric.mmio_read(vcpu, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, vcpu: VcpuIndex, offset: u64, value: u32) {
        self.fabric.mmio_write(vcpu, offset, &value.to_le_bytes());
    }

    fn wrmsr(&self, vcpu: VcpuIndex, msr: u32, value: u64) {
        assert_eq!(self.fabric.write_msr(vcpu, msr, value), MsrOutcome::Done(()), "{msr:#x} = {value:#x}");
    }

    /// To x2APIC mode.
    fn x2apic(&self, vcpu: VcpuIndex) {
        self.wrmsr(vcpu, 0x1b, 0xfee0_0c00);
    }

    fn send(&self, destination: Destination, mode: DeliveryMode, vector: u8) -> bool {
        self.fabric.deliver(&Message { destination, mode, vector, trigger: Trigger::Edge })
    }

    fn fixed(&self, vcpu: VcpuIndex, vector: u8) {
        assert!(self.send(Destination::Physical(vcpu.0), DeliveryMode::Fixed, vector));
    }

    fn pending(&self, vcpu: u32) -> Option<PendingEvent> {
        self.fabric.pending(VcpuIndex(vcpu))
    }

    /// Which vCPUs have this event pending.
    fn reached(&self, event: PendingEvent) -> Vec<u32> {
        let vcpus = self.fabric.vcpus().map(|vcpu| vcpu.0);
        vcpus.filter(|vcpu| self.pending(*vcpu) == Some(event)).collect()
    }

    /// Which vCPUs were woken since the last call.
    fn woken(&self) -> Vec<u32> {
        std::mem::take(&mut self.wakes.lock().unwrap())
    }
}
