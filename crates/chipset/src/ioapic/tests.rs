//! The chip with a bus that remembers messages.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
struct Wire {
    messages: Mutex<Vec<Message>>,
    refuses: AtomicBool,
}

impl MessageBus for Wire {
    fn deliver(&self, message: &Message) -> bool {
        self.messages.lock().unwrap().push(*message);
        !self.refuses.load(Ordering::SeqCst)
    }
}

struct Bench {
    ioapic: IoApic,
    wire: Arc<Wire>,
}

const TABLE: u8 = 0x10;

impl Bench {
    fn new() -> Self {
        let wire = Arc::new(Wire::default());
        Self { ioapic: IoApic::new(wire.clone()), wire }
    }

    fn write(&mut self, register: u8, value: u32) {
        self.ioapic.write(0, INDEX, &[register]);
        self.ioapic.write(0, WINDOW, &value.to_le_bytes());
    }

    fn read(&mut self, register: u8) -> u32 {
        self.ioapic.write(0, INDEX, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        self.ioapic.read(0, WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn entry(&mut self, pin: u8, value: u64) {
        self.write(TABLE + 2 * pin + 1, x86::bits::high32(value));
        self.write(TABLE + 2 * pin, x86::bits::low32(value));
    }

    fn sent(&self) -> Vec<u8> {
        self.wire.messages.lock().unwrap().drain(..).map(|message| message.vector).collect()
    }
}

#[test]
fn identification() {
    let mut b = Bench::new();
    assert_eq!((b.read(0), b.read(1), b.read(TABLE), b.read(TABLE + 1)), (0, 0x17_0020, 0x1_0000, 0));
    b.write(0, u32::MAX);
    b.write(1, u32::MAX);
    assert_eq!((b.read(0), b.read(1), b.read(2), b.read(0x40)), (0x0f00_0000, 0x17_0020, 0x0f00_0000, 0));
    b.write(TABLE, u32::MAX);
    assert_eq!(b.read(TABLE), 0x1_afff, "delivery status and remote IRR are read-only");
}

#[test]
fn an_edge_is_one_message() {
    let mut b = Bench::new();
    b.entry(4, 0x0300_0000_0000_0941);
    b.ioapic.set_line(4, true);
    b.ioapic.set_line(4, true);
    b.ioapic.set_line(4, false);
    b.ioapic.set_line(24, true);
    let message = Message {
        destination: Destination::Logical(3),
        mode: DeliveryMode::LowestPriority,
        vector: 0x41,
        trigger: Trigger::Edge,
    };
    assert_eq!(std::mem::take(&mut *b.wire.messages.lock().unwrap()), [message]);
    b.ioapic.set_line(4, true);
    assert_eq!(b.sent(), [0x41]);
}

#[test]
fn edges_at_a_masked_pin_are_lost() {
    let mut b = Bench::new();
    b.ioapic.set_line(4, true);
    b.entry(4, 0x41);
    assert_eq!(b.sent(), []);
    b.ioapic.set_line(4, false);
    b.ioapic.set_line(4, true);
    assert_eq!(b.sent(), [0x41]);
}

#[test]
fn a_level_repeats_until_it_falls() {
    let mut b = Bench::new();
    b.entry(9, 0x8051);
    b.ioapic.set_line(9, true);
    b.ioapic.set_line(9, false);
    b.ioapic.set_line(9, true);
    assert_eq!(b.sent(), [0x51], "not again before the EOI");
    assert_eq!(b.read(TABLE + 18), 0xc051);
    b.ioapic.end_of_interrupt(0x52);
    assert_eq!(b.sent(), []);
    b.ioapic.end_of_interrupt(0x51);
    assert_eq!(b.sent(), [0x51]);
    b.ioapic.set_line(9, false);
    b.ioapic.end_of_interrupt(0x51);
    assert_eq!((b.sent(), b.read(TABLE + 18)), (vec![], 0x8051));
}

#[test]
fn a_level_that_waits_behind_the_mask_is_sent_when_unmasked() {
    let mut b = Bench::new();
    b.entry(9, 0x1_8051);
    b.ioapic.set_line(9, true);
    assert_eq!(b.sent(), []);
    b.entry(9, 0x8051);
    assert_eq!(b.sent(), [0x51]);
}

#[test]
fn software_ends_interrupts_by_register_and_by_detour() {
    let mut b = Bench::new();
    b.entry(9, 0x8051);
    b.ioapic.set_line(9, true);
    b.ioapic.write(0, EOI, &0x51_u32.to_le_bytes());
    assert_eq!(b.sent(), [0x51, 0x51]);
    b.write(TABLE + 18, 0x1_0051);
    assert_eq!(b.read(TABLE + 18), 0x1_0051, "edge mode has no remote IRR");
    b.write(TABLE + 18, 0x8051);
    assert_eq!(b.sent(), [0x51]);
}

#[test]
fn a_level_that_nobody_took_is_not_in_service() {
    let mut b = Bench::new();
    b.wire.refuses.store(true, Ordering::SeqCst);
    b.entry(9, 0x8051);
    b.ioapic.set_line(9, true);
    assert_eq!(b.read(TABLE + 18), 0x8051);
    assert_eq!(b.sent(), [0x51]);
    b.write(TABLE + 18, 0x8251);
    assert_eq!(b.sent(), [], "SMI is not sent at all");
    b.wire.refuses.store(false, Ordering::SeqCst);
    b.write(TABLE + 18, 0x8051);
    assert_eq!((b.sent(), b.read(TABLE + 18)), (vec![0x51], 0xc051));
}

#[test]
fn accesses_of_other_widths_and_places() {
    let mut b = Bench::new();
    let mut data = [0xff; 4];
    b.ioapic.read(0, 0x20, &mut data);
    assert_eq!(data, [0xff; 4]);
    b.ioapic.write(0, INDEX, &[1]);
    b.ioapic.read(0, WINDOW + 2, &mut data[..1]);
    assert_eq!(data[0], 0x17);
    b.ioapic.write(0, WINDOW, &[1]);
    b.ioapic.write(0, 0xff8, &[1; 8]);
    b.ioapic.reset();
    assert_eq!(b.read(TABLE), 0x1_0000);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u32),
    Entry(u8, u64),
    Read(u64),
    Line(usize, bool),
    Eoi(u8),
    Refuse(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![Just(INDEX), Just(WINDOW), Just(EOI), 0..0x1000_u64];
    let value = prop_oneof![any::<u32>(), 0..0x40_u32];
    let entry = (0..4_u64, any::<bool>(), any::<bool>());
    let step = prop_oneof![
        (offset.clone(), value).prop_map(|(o, v)| Step::Write(o, v)),
        (0..24_u8, entry).prop_map(|(pin, (vector, level, masked))| {
            Step::Entry(pin, 0x30 | vector | u64::from(level) << 15 | u64::from(masked) << 16)
        }),
        offset.prop_map(Step::Read),
        (0..25_usize, any::<bool>()).prop_map(|(pin, high)| Step::Line(pin, high)),
        (0x30..0x34_u8).prop_map(Step::Eoi),
        any::<bool>().prop_map(Step::Refuse),
    ];
    prop::collection::vec(step, 1..100)
}

fn apply(b: &mut Bench, step: &Step) -> (u32, Vec<u8>) {
    let mut data = [0xff; 4];
    match *step {
        Step::Write(offset, value) => b.ioapic.write(0, offset, &value.to_le_bytes()),
        Step::Entry(pin, value) => b.entry(pin, value),
        Step::Read(offset) => b.ioapic.read(0, offset, &mut data),
        Step::Line(pin, high) => b.ioapic.set_line(pin, high),
        Step::Eoi(vector) => b.ioapic.end_of_interrupt(vector),
        Step::Refuse(refuses) => b.wire.refuses.store(refuses, Ordering::SeqCst),
    }
    (u32::from_le_bytes(data), b.sent())
}

proptest! {
    #[test]
    fn a_restored_chip_goes_on_alike(before in steps(), after in steps()) {
        let (mut one, mut two) = (Bench::new(), Bench::new());
        for step in &before {
            apply(&mut one, step);
        }
        two.ioapic.restore(&one.ioapic.save()).unwrap();
        two.wire.refuses.store(one.wire.refuses.load(Ordering::SeqCst), Ordering::SeqCst);
        prop_assert_eq!(two.ioapic.save(), one.ioapic.save());
        for step in &after {
            prop_assert_eq!(apply(&mut one, step), apply(&mut two, step), "{:?}", step);
        }
        prop_assert_eq!(two.ioapic.save(), one.ioapic.save());
    }
}
