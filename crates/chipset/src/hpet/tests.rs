use bus::{Latch, ManualClock};

use super::*;
use crate::harness::{self, Rig};

struct Bench {
    hpet: Hpet,
    clock: ManualClock,
    irq0: Latch,
    irq8: Latch,
    input: Latch,
    pit: Arc<dyn IrqLine>,
}

const PERIODIC_SET: u64 = 1 << 3 | 1 << 6;
const ROUTE_20: u64 = 20 << 9;

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::default();
        let [irq0, irq8, input] = [(); 3].map(|()| Latch::default());
        let wiring = HpetWiring {
            irq0: LegacyRoute::new(Arc::new(irq0.clone())),
            irq8: LegacyRoute::new(Arc::new(irq8.clone())),
            inputs: vec![(20, Arc::new(input.clone()))],
        };
        let pit = wiring.irq0.chip_line();
        let hpet = Hpet::new(Arc::new(clock.clone()), Arc::new(clock.clone()), wiring);
        Self { hpet, clock, irq0, irq8, input, pit }
    }

    fn get(&mut self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet.read(0, register, &mut data);
        u64::from_le_bytes(data)
    }

    fn put(&mut self, register: u64, value: u64) {
        self.hpet.write(0, register, &value.to_le_bytes());
    }

    fn put_low(&mut self, register: u64, value: u32) {
        self.hpet.write(0, register, &value.to_le_bytes());
    }

    fn wait_for_alarm(&mut self) -> u64 {
        let at = self.clock.alarm().expect("an alarm");
        self.clock.step(at.since(self.clock.now()));
        self.hpet.advance(at);
        at.0
    }
}

#[test]
fn tells_its_abilities() {
    let mut b = Bench::new();
    assert_eq!(b.get(CAPABILITIES), 0x0098_9680_8086_a201);
    assert_eq!(b.get(0x100), (1 << 20) << 32 | 0x30);
    assert_eq!(b.get(0x108), u64::MAX);
}

#[test]
fn counts_while_enabled() {
    let mut b = Bench::new();
    b.clock.step(500);
    assert_eq!(b.get(COUNTER), 0);
    b.put(COUNTER, 7);
    b.put(CONFIG, CONFIG_ENABLE);
    b.clock.step(1_000_000);
    assert_eq!(b.get(COUNTER), 100_007);
    let mut high = [0; 4];
    b.put(COUNTER, 5 << 32);
    b.hpet.read(0, COUNTER + 4, &mut high);
    assert_eq!(high, [5, 0, 0, 0]);
    b.put(CONFIG, 0);
    b.clock.step(1_000_000);
    assert_eq!(b.get(COUNTER), 5 << 32);
}

#[test]
fn legacy_periodic_tick_as_linux_sets_it_up() {
    let mut b = Bench::new();
    b.put(CONFIG, CONFIG_ENABLE | CONFIG_LEGACY);
    // Enable, periodic, set value, 32 bits; then the first match and the period, 32-bit writes each.
    b.put_low(0x100, 0x14c);
    b.put_low(0x108, 400_000);
    b.put_low(0x108, 400_000);
    b.pit.pulse();
    assert_eq!(b.irq0.edges(), 0, "the PIT is disconnected");
    for tick in 1..=5 {
        assert_eq!(b.wait_for_alarm(), tick * 4_000_000);
        assert_eq!(b.irq0.edges(), tick);
    }
    assert_eq!((b.irq0.is_high(), b.irq8.edges()), (false, 0));
    b.put(CONFIG, CONFIG_ENABLE);
    b.pit.pulse();
    assert_eq!(b.irq0.edges(), 6);
}

#[test]
fn one_shot_on_a_routed_input_fires_once() {
    let mut b = Bench::new();
    b.put(CONFIG, CONFIG_ENABLE);
    b.put(0x140, comparator::ENABLE | ROUTE_20);
    b.put(0x148, 250);
    assert_eq!(b.wait_for_alarm(), 2_500);
    assert_eq!((b.input.edges(), b.input.is_high()), (1, false));
    assert_eq!(b.clock.alarm(), None, "not before the counter wraps");
}

#[test]
fn level_interrupts_wait_for_their_acknowledgement() {
    let mut b = Bench::new();
    b.put(0x120, comparator::ENABLE | comparator::LEVEL | PERIODIC_SET | ROUTE_20);
    b.put(0x128, 100_000);
    b.put(0x128, 100_000);
    b.put(CONFIG, CONFIG_ENABLE);
    b.wait_for_alarm();
    assert_eq!((b.input.is_high(), b.get(STATUS), b.clock.alarm()), (true, 2, None));
    b.clock.step(10_500_000);
    b.put(STATUS, 2);
    assert!(!b.input.is_high());
    assert_eq!(b.wait_for_alarm(), 12_000_000, "in step with the first");
}

#[test]
fn a_tiny_period_does_not_storm() {
    let mut b = Bench::new();
    b.put(0x100, comparator::ENABLE | PERIODIC_SET | ROUTE_20);
    b.put(0x108, 1);
    b.put(CONFIG, CONFIG_ENABLE);
    let first = b.wait_for_alarm();
    assert!(b.wait_for_alarm() - first >= MIN_PERIODIC_GAP_NS);
    assert_eq!(b.input.edges(), 2);
}

#[test]
fn a_damaged_record_is_refused() {
    let mut b = Bench::new();
    let state = HpetState { status: 8, ..b.hpet.state.clone() };
    assert!(b.hpet.restore(&Record::encode(&state)).is_err());
}

#[test]
fn stands_any_access_and_survives_a_save() {
    harness::check(|| {
        let b = Bench::new();
        Rig::new(b.hpet).on_clock(&b.clock).driving(&[&b.irq0, &b.irq8, &b.input])
    });
}
