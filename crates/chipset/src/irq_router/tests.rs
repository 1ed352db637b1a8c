//! All controllers together.

use super::*;
use crate::apic::{ApicDevice, ApicFeatures, FabricSetup, GuestBytes, PendingEvent, TscTime, VcpuIndex};
use bus::{Device, GuestTime, Lifecycle, ManualClock, NoAlarm};
use x86::Gpa;

struct Nothing;

impl GuestBytes for Nothing {
    fn read_byte(&self, _: Gpa) -> Option<u8> {
        None
    }

    fn write_byte(&self, _: Gpa, _: u8) -> bool {
        false
    }
}

impl TscTime for Nothing {
    fn time_of_tsc(&self, _: VcpuIndex, tsc: u64) -> GuestTime {
        GuestTime(tsc)
    }
}

const BOOT: VcpuIndex = VcpuIndex(0);

struct Machine {
    fabric: Arc<InterruptFabric>,
    router: Arc<IrqRouter>,
}

impl Machine {
    fn new() -> Self {
        let fabric = InterruptFabric::new(FabricSetup {
            features: ApicFeatures { x2apic: true, tsc_deadline: true },
            clock: Arc::new(ManualClock::default()),
            alarms: vec![Arc::new(NoAlarm)],
            tsc: Arc::new(Nothing),
            memory: Arc::new(Nothing),
            wake: Box::new(|_| {}),
        });
        let router = IrqRouter::new(&fabric);
        Self { fabric, router }
    }

    fn entry(&self, pin: u8, low: u32) {
        let mut ioapic = self.router.ioapic();
        ioapic.write(0, 0, &[0x10 + 2 * pin]);
        ioapic.write(0, 0x10, &low.to_le_bytes());
    }

    fn pic(&self, region: usize, port: u64, value: u8) {
        self.router.pic().write(region, port, &[value]);
    }

    fn eoi(&self) {
        self.fabric.mmio_write(BOOT, 0xb0, &[0; 4]);
    }

    fn acknowledge(&self) -> Option<u8> {
        let vector = self.fabric.acknowledge(BOOT);
        assert_ne!(self.fabric.pending(BOOT), Some(PendingEvent::Nmi));
        vector
    }
}

#[test]
fn the_pit_is_irq_0_of_the_8259_and_pin_2_of_the_ioapic() {
    let m = Machine::new();
    let timer = m.router.isa_line(0);
    m.pic(0, 1, 0xfe);
    timer.pulse();
    assert_eq!(m.fabric.pending(BOOT), Some(PendingEvent::Interrupt));
    assert_eq!(m.acknowledge(), Some(0x08), "virtual wire");
    assert_eq!(m.acknowledge(), None);
    m.pic(0, 0, 0x20);
    m.pic(0, 1, 0xff);
    m.entry(2, 0x41);
    timer.pulse();
    assert_eq!(m.acknowledge(), Some(0x41));
    m.router.line(0).pulse();
    m.router.line(200).pulse();
    m.eoi();
    assert_eq!(m.acknowledge(), None);
}

#[test]
fn a_shared_level_line_repeats_until_all_sources_are_low() {
    let m = Machine::new();
    let (one, two) = (m.router.line(11), m.router.line(11));
    m.entry(11, 0x8051);
    one.set(true);
    two.set(true);
    one.set(true);
    assert_eq!(m.acknowledge(), Some(0x51));
    one.set(false);
    m.eoi();
    assert_eq!(m.acknowledge(), Some(0x51), "through the EOI broadcast");
    two.set(false);
    m.eoi();
    assert_eq!(m.acknowledge(), None);
    two.set(true);
    assert_eq!(m.acknowledge(), Some(0x51));
    drop(two);
    m.eoi();
    assert_eq!(m.acknowledge(), None, "an unplugged source lets go");
}

#[test]
fn masking_withdraws_the_8259s_request() {
    let m = Machine::new();
    m.pic(0, 1, 0xfb);
    m.pic(1, 1, 0xef);
    let mouse = m.router.isa_line(12);
    mouse.set(true);
    assert_eq!(m.fabric.pending(BOOT), Some(PendingEvent::Interrupt));
    m.pic(0, 1, 0xff);
    assert_eq!((m.fabric.pending(BOOT), m.acknowledge()), (None, None), "masked meanwhile");
    m.pic(0, 1, 0xfb);
    assert_eq!(m.acknowledge(), Some(0x74));
}

#[test]
fn a_restored_machine_has_its_lines_without_new_edges() {
    let one = Machine::new();
    one.pic(0, 1, 0xef);
    one.entry(4, 0x41);
    let line = one.router.isa_line(4);
    line.set(true);
    assert_eq!([one.acknowledge(), one.acknowledge(), one.acknowledge()], [Some(0x0c), Some(0x41), None]);

    for chips_first in [true, false] {
        let two = Machine::new();
        let source = two.router.isa_line(4);
        if !chips_first {
            source.set(true);
        }
        ApicDevice::new(two.fabric.clone()).restore(&ApicDevice::new(one.fabric.clone()).save()).unwrap();
        two.router.ioapic().restore(&one.router.ioapic().save()).unwrap();
        two.router.pic().restore(&one.router.pic().save()).unwrap();
        source.set(true);
        assert_eq!(two.acknowledge(), None, "chips first: {chips_first}");
        two.pic(0, 0, 0x20);
        two.eoi();
        source.set(false);
        source.set(true);
        assert_eq!([two.acknowledge(), two.acknowledge()], [Some(0x0c), Some(0x41)]);
    }
}

#[test]
fn many_threads_lose_no_level() {
    let m = Machine::new();
    m.entry(5, 0x8061);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let line = m.router.line(5);
            scope.spawn(move || {
                for _ in 0..1000 {
                    line.set(true);
                    line.set(false);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..1000 {
                if m.fabric.acknowledge(BOOT).is_some() {
                    m.eoi();
                }
            }
        });
    });
    while m.acknowledge().is_some() {
        m.eoi();
    }
    let last = m.router.line(5);
    last.set(true);
    assert_eq!(m.acknowledge(), Some(0x61), "the counter is back at zero");
}
