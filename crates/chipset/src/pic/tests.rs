//! The pair with a latch as INTR.

use super::*;
use bus::Latch;
use proptest::prelude::*;

struct Bench {
    pic: Pic,
    intr: Latch,
}

impl Bench {
    /// Initialised as operating systems do: vectors 0x30 and 0x38, nothing masked, ICW4 as given.
    fn new(icw4: u8) -> Self {
        let intr = Latch::default();
        let mut bench = Self { pic: Pic::new(Arc::new(intr.clone())), intr };
        for (port, values) in [(0x20, [0x11, 0x30, 4, icw4, 0]), (0xa0, [0x11, 0x38, 2, icw4, 0])] {
            bench.out(port, values[0]);
            for value in &values[1..] {
                bench.out(port + 1, *value);
            }
        }
        bench
    }

    fn region(port: u16) -> (usize, u64) {
        let region = match port {
            0x20 | 0x21 => 0,
            0xa0 | 0xa1 => 1,
            _ => 2,
        };
        (region, u64::from(port & 1))
    }

    fn out(&mut self, port: u16, value: u8) {
        let (region, offset) = Self::region(port);
        self.pic.write(region, offset, &[value]);
    }

    fn inb(&mut self, port: u16) -> u8 {
        let (region, offset) = Self::region(port);
        let mut data = [0];
        self.pic.read(region, offset, &mut data);
        data[0]
    }

    fn pulse(&self, irq: u8) {
        self.pic.set_line(irq, true);
        self.pic.set_line(irq, false);
    }

    /// Acknowledges while INTR is high.
    fn take(&self) -> Vec<u8> {
        let mut vectors = Vec::new();
        while self.intr.is_high() {
            vectors.push(self.pic.acknowledge());
        }
        vectors
    }
}

#[test]
fn after_power_on_everything_is_masked() {
    let intr = Latch::default();
    let pic = Pic::new(Arc::new(intr.clone()));
    pic.set_line(4, true);
    assert!(!intr.is_high());
}

#[test]
fn priorities_nest() {
    let mut b = Bench::new(1);
    b.pulse(6);
    assert_eq!(b.take(), [0x36]);
    b.pulse(7);
    b.pulse(1);
    assert_eq!(b.take(), [0x31]);
    b.out(0x20, 0x0b);
    assert_eq!(b.inb(0x20), 0x42);
    b.out(0x20, 0x0a);
    assert_eq!(b.inb(0x20), 0x80);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), [], "6 is in service still");
    b.out(0x20, 0x66);
    assert_eq!(b.take(), [0x37]);
}

#[test]
fn the_slave_comes_through_the_cascade() {
    let mut b = Bench::new(1);
    b.pulse(12);
    b.pulse(8);
    b.pulse(3);
    assert_eq!(b.take(), [0x38], "the cascade is above input 3");
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), [0x3c]);
    b.pulse(9);
    assert!(!b.intr.is_high(), "the master has its input 2 in service");
    b.out(0x20, 0x20);
    assert_eq!(b.take(), [0x39]);
    b.out(0xa0, 0x20);
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), [0x33]);
}

#[test]
fn special_fully_nested_lets_the_slave_nest() {
    let b = Bench::new(0x11);
    b.pulse(12);
    assert_eq!(b.take(), [0x3c]);
    b.pulse(9);
    assert_eq!(b.take(), [0x39]);
}

#[test]
fn spurious_vectors() {
    let mut b = Bench::new(1);
    assert_eq!(b.pic.acknowledge(), 0x37);
    b.pulse(12);
    b.out(0xa1, 0x10);
    assert_eq!(b.pic.acknowledge(), 0x3f, "the slave has nothing any more");
    b.out(0xa0, 0x0b);
    assert_eq!(b.inb(0xa0), 0);
    b.out(0x20, 0x0b);
    assert_eq!(b.inb(0x20), 4, "the master's cascade is in service");
}

#[test]
fn masks_and_special_mask_mode() {
    let mut b = Bench::new(1);
    b.out(0x21, 0x02);
    b.pulse(1);
    b.pulse(4);
    assert_eq!(b.take(), [0x34]);
    b.pulse(5);
    assert!(!b.intr.is_high());
    b.out(0x21, 0x12);
    assert!(!b.intr.is_high());
    b.out(0x20, 0x68);
    assert_eq!(b.take(), [0x35], "input 4 in service is masked and holds up nobody");
    b.out(0x20, 0x20);
    b.out(0x20, 0x20);
    b.out(0x20, 0x0b);
    assert_eq!(b.inb(0x20), 0x10, "a non-specific EOI passes it over");
    b.out(0x20, 0x48);
    b.out(0x20, 0x20);
    assert_eq!((b.inb(0x20), b.inb(0x21)), (0, 0x12));
}

#[test]
fn rotation() {
    let mut b = Bench::new(1);
    b.out(0x20, 0xc3);
    b.pulse(3);
    b.pulse(4);
    assert_eq!(b.take(), [0x34], "3 is the lowest");
    b.out(0x20, 0xa0);
    b.pulse(4);
    b.pulse(2);
    b.pulse(5);
    assert_eq!(b.take(), [0x35], "now 4 is the lowest");
    b.out(0x20, 0xe5);
    assert_eq!(b.take(), [0x33]);
}

#[test]
fn automatic_eoi_with_rotation() {
    let mut b = Bench::new(3);
    b.pulse(3);
    b.pulse(5);
    assert_eq!(b.take(), [0x33, 0x35]);
    b.out(0x20, 0x80);
    b.pulse(3);
    assert_eq!(b.take(), [0x33]);
    b.pulse(3);
    b.pulse(5);
    assert_eq!(b.take(), [0x35, 0x33]);
    for irq in [8, 9] {
        b.pulse(irq);
    }
    assert_eq!(b.take(), [0x38, 0x39], "each request of the slave makes its edge");
}

#[test]
fn level_lines_persist() {
    let mut b = Bench::new(1);
    b.out(0x4d0, 0xff);
    b.out(0x4d1, 0xff);
    assert_eq!((b.inb(0x4d0), b.inb(0x4d1)), (0xf8, 0xde));
    b.pic.set_line(5, true);
    b.pic.set_line(5, false);
    assert_eq!(b.take(), [], "a level that is gone is no request");
    b.pic.set_line(11, true);
    assert_eq!(b.take(), [0x3b]);
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), [0x3b]);
    b.pic.set_line(11, false);
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), []);
}

#[test]
fn an_edge_is_one_request() {
    let mut b = Bench::new(3);
    b.pic.set_line(5, true);
    b.pic.set_line(5, true);
    assert_eq!(b.take(), [0x35]);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), []);
}

#[test]
fn polling_acknowledges() {
    let mut b = Bench::new(1);
    b.pulse(6);
    b.out(0x20, 0x0c);
    assert_eq!((b.inb(0x20), b.intr.is_high()), (0x86, false));
    b.out(0x20, 0x0b);
    assert_eq!(b.inb(0x20), 0x40);
    b.out(0x20, 0x0c);
    assert_eq!(b.inb(0x20), 0);
}

#[test]
fn initialisation_without_icw3_and_icw4() {
    let mut b = Bench::new(1);
    b.pulse(3);
    b.out(0x21, 0xff);
    b.out(0x20, 0x12);
    b.out(0x21, 0x57);
    b.out(0x21, 0xf0);
    assert_eq!((b.inb(0x21), b.take()), (0xf0, vec![]), "ICW1 forgets requests");
    b.pulse(3);
    assert_eq!(b.take(), [0x53]);
}

#[derive(Clone, Debug)]
enum Step {
    Out(u16, u8),
    In(u16),
    Line(u8, bool),
    Acknowledge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = prop::sample::select(vec![0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
    let step = prop_oneof![
        (port.clone(), any::<u8>()).prop_map(|(p, v)| Step::Out(p, v)),
        port.prop_map(Step::In),
        (0..17_u8, any::<bool>()).prop_map(|(irq, high)| Step::Line(irq, high)),
        Just(Step::Acknowledge),
    ];
    prop::collection::vec(step, 1..100)
}

fn apply(b: &mut Bench, step: &Step) -> (u8, bool) {
    let mut seen = 0;
    match *step {
        Step::Out(port, value) => b.out(port, value),
        Step::In(port) => seen = b.inb(port),
        Step::Line(irq, high) => b.pic.set_line(irq, high),
        Step::Acknowledge => seen = b.pic.acknowledge(),
    }
    (seen, b.intr.is_high())
}

proptest! {
    #[test]
    fn a_restored_pair_goes_on_alike(before in steps(), after in steps()) {
        let (mut one, mut two) = (Bench::new(1), Bench::new(1));
        for step in &before {
            apply(&mut one, step);
        }
        two.pic.restore(&one.pic.save()).unwrap();
        prop_assert_eq!(two.pic.save(), one.pic.save());
        prop_assert_eq!(two.intr.is_high(), one.intr.is_high());
        for step in &after {
            prop_assert_eq!(apply(&mut one, step), apply(&mut two, step), "{:?}", step);
        }
        prop_assert_eq!(two.pic.save(), one.pic.save());
    }

    /// INTR is high exactly if an acknowledge would not be spurious on the master.
    #[test]
    fn intr_means_a_request(before in steps()) {
        let mut b = Bench::new(1);
        for step in &before {
            apply(&mut b, step);
            let request = lock(&b.pic.pair).master.request();
            prop_assert_eq!(b.intr.is_high(), request.is_some());
        }
    }
}
