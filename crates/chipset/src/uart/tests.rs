use std::sync::Mutex;

use bus::{Latch, ManualClock};

use super::*;
use crate::harness::{self, Rig};

#[derive(Clone, Default)]
struct Terminal {
    output: Arc<Mutex<Vec<u8>>>,
    wanted: Arc<Mutex<usize>>,
}

impl CharSink for Terminal {
    fn send(&mut self, bytes: &[u8]) {
        self.output.lock().unwrap().extend_from_slice(bytes);
    }
    fn input_wanted(&mut self) {
        *self.wanted.lock().unwrap() += 1;
    }
}

struct Bench {
    uart: Uart,
    terminal: Terminal,
    clock: ManualClock,
    line: Latch,
}

impl Bench {
    fn new() -> Self {
        let (terminal, clock, line) = (Terminal::default(), ManualClock::default(), Latch::default());
        let alarm = Arc::new(clock.clone());
        let irq = Arc::new(line.clone());
        let uart = Uart::new(COM1_PORT, Box::new(terminal.clone()), irq, Arc::new(clock.clone()), alarm);
        Self { uart, terminal, clock, line }
    }

    /// With FIFOs (trigger level 8), interrupt gate open, 115200 baud 8N1.
    fn opened() -> Self {
        let mut bench = Self::new();
        for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (2, 0x81), (4, 0x0b)] {
            bench.out(register, value);
        }
        bench
    }

    fn out(&mut self, register: u64, value: u8) {
        self.uart.write(0, register, &[value]);
    }

    fn inp(&mut self, register: u64) -> u8 {
        let mut data = [0xff];
        self.uart.read(0, register, &mut data);
        data[0]
    }

    fn wait_for_alarm(&mut self) {
        let at = self.clock.alarm().expect("an alarm");
        self.clock.step(at.since(self.clock.now()));
        self.uart.advance(at);
    }
}

#[test]
fn is_taken_for_a_16550a_by_linux() {
    let mut b = Bench::new();
    // autoconfig: IER holds four bits, loopback wires RTS and OUT2 to CTS and DCD.
    b.out(1, 0);
    assert_eq!(b.inp(1), 0);
    b.out(1, 0xff);
    assert_eq!(b.inp(1), 0x0f);
    b.out(1, 0);
    b.out(4, 0x1a);
    assert_eq!(b.inp(6) & 0xf0, 0x90);
    b.out(4, 0);
    b.out(2, 0x01);
    assert_eq!(b.inp(2) >> 6, 3);
    // No 64-byte FIFO, no extra registers.
    b.out(3, 0x80);
    b.out(2, 0x21);
    assert_eq!(b.inp(2) >> 5, 6);
    b.out(3, 0);
    b.out(2, 0);
    assert_eq!(b.inp(2), 0x01);
    b.out(7, 0x5a);
    assert_eq!(b.inp(7), 0x5a);
}

#[test]
fn transmitter_interrupt_passes_the_thre_test() {
    let mut b = Bench::opened();
    for _ in 0..2 {
        b.out(1, 0x02);
        assert!(b.line.is_high());
        assert_eq!(b.inp(2), 0xc2);
        assert!(!b.line.is_high(), "reading the identification clears it");
        assert_eq!(b.inp(2), 0xc1);
        b.out(1, 0);
    }
    // Every byte sent asks for the next.
    b.out(1, 0x02);
    b.inp(2);
    b.uart.write(0, 0, b"x");
    assert!(b.line.is_high());
    assert_eq!(b.inp(5) & 0x60, 0x60);
    assert_eq!(*b.terminal.output.lock().unwrap(), b"x");
}

#[test]
fn receive_interrupt_at_the_trigger_and_after_the_timeout() {
    let mut b = Bench::opened();
    b.out(1, 0x01);
    assert_eq!(b.uart.push_input(&[7; 7]), 7);
    assert!(!b.line.is_high());
    b.uart.push_input(&[8]);
    assert!(b.line.is_high());
    assert_eq!(b.inp(2), 0xc4);
    assert_eq!(b.inp(0), 7);
    assert!(!b.line.is_high(), "below the trigger level");
    b.wait_for_alarm();
    assert_eq!((b.line.is_high(), b.inp(2)), (true, 0xcc));
    // Four characters of ten bits at 115200 baud.
    assert!((340_000..350_000).contains(&b.clock.now().0), "{:?}", b.clock.now());
    for left in (0..7).rev() {
        assert_eq!(b.inp(5) & 1, 1);
        assert_eq!(b.inp(0), if left == 0 { 8 } else { 7 });
    }
    assert_eq!((b.inp(5) & 1, b.line.is_high(), b.clock.alarm()), (0, false, None));
}

#[test]
fn input_is_never_lost() {
    let mut b = Bench::opened();
    b.out(1, 0x01);
    let input: Vec<u8> = (0..100).collect();
    let (mut pushed, mut got) = (0, Vec::new());
    let mut wanted = 1;
    while got.len() < input.len() {
        if wanted > 0 {
            pushed += b.uart.push_input(&input[pushed..]);
        }
        assert_eq!(b.inp(5) & 1, 1, "asked for more before the guest runs dry");
        got.push(b.inp(0));
        wanted = std::mem::take(&mut *b.terminal.wanted.lock().unwrap());
    }
    assert_eq!(got, input);
    assert_eq!(pushed, input.len());
    assert_eq!(b.inp(5) & 2, 0, "no overrun");
}

#[test]
fn nothing_is_taken_before_the_guest_listens() {
    let mut b = Bench::opened();
    // A kernel prints, looking at the line status once per byte.
    for _ in 0..20 {
        b.inp(5);
        b.out(0, b'.');
    }
    assert_eq!(b.uart.push_input(b"x"), 0);
    b.out(1, 0x01);
    assert_eq!(std::mem::take(&mut *b.terminal.wanted.lock().unwrap()), 1, "its driver listens");
    b.out(4, 0x09);
    assert_eq!(b.uart.push_input(b"x"), 0, "DTR without RTS holds the sender off");
    b.out(4, 0x0b);
    assert_eq!(std::mem::take(&mut *b.terminal.wanted.lock().unwrap()), 1);
    assert_eq!(b.uart.push_input(b"x"), 1);
}

#[test]
fn polling_is_listening() {
    let mut b = Bench::new();
    assert_eq!(b.uart.push_input(b"x"), 0);
    for _ in 0..POLLS {
        assert_eq!(b.inp(5) & 1, 0);
    }
    assert_eq!(*b.terminal.wanted.lock().unwrap(), 1);
    assert_eq!(b.uart.push_input(b"x"), 1);
    assert_eq!(b.inp(0), b'x');
    b.out(0, b'y');
    assert_eq!(b.uart.push_input(b"z"), 1, "once known, it stays");
}

#[test]
fn without_fifos_there_is_one_byte() {
    let mut b = Bench::new();
    b.out(4, 0x08);
    b.out(1, 0x01);
    assert_eq!(b.uart.push_input(b"ab"), 1);
    assert_eq!((b.line.is_high(), b.inp(2)), (true, 0x04));
    assert_eq!((b.inp(0), b.line.is_high()), (b'a', false));
}

#[test]
fn loopback_returns_what_is_sent_and_may_overrun() {
    let mut b = Bench::opened();
    b.out(4, 0x18);
    b.out(1, 0x05);
    assert_eq!(b.uart.push_input(b"host"), 0);
    for byte in 0..17 {
        b.out(0, byte);
    }
    assert_eq!((b.line.is_high(), b.inp(2)), (true, 0xc6));
    assert_eq!(b.inp(5) & 3, 3);
    assert_eq!((b.inp(2), b.inp(0)), (0xc4, 0));
    assert!(b.terminal.output.lock().unwrap().is_empty());
    b.out(2, 0x83);
    assert_eq!(*b.terminal.wanted.lock().unwrap(), 0);
    b.out(4, 0x08);
    assert_eq!(*b.terminal.wanted.lock().unwrap(), 1);
    assert_eq!(b.uart.push_input(b"host"), 4);
}

#[test]
fn modem_lines_show_changes_once() {
    let mut b = Bench::opened();
    assert_eq!(b.inp(6), 0xb0);
    b.out(1, 0x08);
    b.out(4, 0x1c);
    assert_eq!((b.line.is_high(), b.inp(2)), (true, 0xc0));
    assert_eq!(b.inp(6), 0xc3, "RI and DCD up; CTS and DSR have changed");
    assert_eq!((b.inp(6), b.line.is_high()), (0xc0, false));
    b.out(4, 0x18);
    assert_eq!(b.inp(6), 0x84, "the ring has ended");
}

#[test]
fn out2_gates_the_line() {
    let mut b = Bench::opened();
    b.out(1, 0x02);
    b.out(4, 0x03);
    assert!(!b.line.is_high());
    b.out(4, 0x0b);
    assert!(b.line.is_high());
}

#[test]
fn quiet_while_paused() {
    let mut b = Bench::opened();
    b.out(1, 0x01);
    b.uart.pause();
    assert_eq!(b.uart.push_input(b"x"), 0);
    b.uart.resume();
    assert_eq!(*b.terminal.wanted.lock().unwrap(), 1);
}

#[test]
fn a_damaged_record_is_refused() {
    let mut b = Bench::opened();
    let mut state = b.uart.state.clone();
    state.received = (0..17).collect();
    assert!(b.uart.restore(&Record::encode(&state)).is_err());
}

#[test]
fn stands_any_access_and_survives_a_save() {
    harness::check(|| {
        let b = Bench::new();
        Rig::new(b.uart).on_clock(&b.clock).driving(&[&b.line]).stimulated(|uart, number| {
            uart.push_input(&number.to_le_bytes());
        })
    });
}
