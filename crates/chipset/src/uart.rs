//! The 16550A serial port.
//!
//! Output leaves at once: a byte written is handed to the [`CharSink`] in the same access, so the transmitter is
//! always empty again when the guest looks, and the transmit interrupt follows each write immediately. Input never
//! gets lost: the host pushes as much as the receive FIFO has room for ([`Uart::push_input`]) and is told by
//! [`CharSink::input_wanted`] when there is room again; only loopback can overrun.
//!
//! Drivers empty the FIFO while they probe and start the chip, so bytes that came before anybody listened would be
//! lost. Therefore nothing is taken until the guest listens: its receive interrupt is enabled, and it does not hold
//! the sender off (DTR without RTS, which is how Linux throttles); or it polls, which shows in line-status reads that
//! follow each other, since a guest that only waits to transmit finds the transmitter empty at its first look.
//!
//! Interrupts are levels computed from the state, in the chip's priority: line status, receive data, receive timeout,
//! transmitter empty, modem status. Only the transmitter-empty interrupt has memory of its own: it is set when the
//! transmitter runs empty or its enable bit rises, and cleared by a write to it or by reading the identification that
//! names it; the Linux driver tests for just that (`8250_port.c`, "THRE test"). As on a PC, OUT2 gates the line.
//!
//! Reference: National Semiconductor PC16550D datasheet (1995), section 8.

use std::collections::VecDeque;
use std::sync::Arc;

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::timer::Timer;

/// The ports of the first serial port; its interrupt is IRQ 4.
pub const COM1_PORT: u16 = 0x3f8;

const PORTS: u16 = 8;
const FIFO_BYTES: usize = 16;
/// Line-status reads in a row that give a polling guest away.
const POLLS: u8 = 4;
/// Nanoseconds of 16 baud-clock periods at divisor 1, that is of one bit at 115,200 baud.
const FASTEST_BIT_NS: u64 = 8_681;

/// IER: received data (and timeout), transmitter empty, line status, modem status.
mod ier {
    pub(super) const RECEIVE: u8 = 1 << 0;
    pub(super) const TRANSMIT: u8 = 1 << 1;
    pub(super) const LINE: u8 = 1 << 2;
    pub(super) const MODEM: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0f;
}

/// IIR: the interrupt's name.
mod iir {
    pub(super) const MODEM: u8 = 0x00;
    pub(super) const NONE: u8 = 0x01;
    pub(super) const TRANSMIT: u8 = 0x02;
    pub(super) const RECEIVE: u8 = 0x04;
    pub(super) const LINE: u8 = 0x06;
    pub(super) const TIMEOUT: u8 = 0x0c;
    pub(super) const FIFOS_ON: u8 = 0xc0;
}

mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVE: u8 = 1 << 1;
    pub(super) const TRIGGER: u8 = 0xc0;
}

mod lcr {
    pub(super) const LENGTH: u8 = 0x03;
    pub(super) const TWO_STOP_BITS: u8 = 1 << 2;
    pub(super) const PARITY: u8 = 1 << 3;
    pub(super) const DIVISOR: u8 = 1 << 7;
}

mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOP: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

mod lsr {
    pub(super) const DATA: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
}

mod msr {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
    /// Delta bits follow their lines' order; the ring indicator's tells only its falling edge.
    pub(super) const DELTA_RI: u8 = 1 << 2;
    /// A terminal is attached and ready.
    pub(super) const ATTACHED: u8 = CTS | DSR | DCD;
}

/// Where the guest's output goes and from where its input comes. Called with the device locked, on a vCPU's thread:
/// must not block and must not call the device.
pub trait CharSink: Send {
    /// Takes bytes that the guest has sent.
    fn send(&mut self, bytes: &[u8]);

    /// The receiver has room again after [`Uart::push_input`] has refused bytes.
    fn input_wanted(&mut self) {}
}

/// A serial port.
pub struct Uart {
    // Static.
    base: u16,
    // Glue.
    sink: Box<dyn CharSink>,
    clock: Arc<dyn Clock>,
    timer: Timer,
    irq: Arc<dyn IrqLine>,
    paused: bool,
    /// `push_input` has refused bytes since the last call of `input_wanted`.
    refused: bool,
    // Volatile.
    state: UartState,
}

#[derive(Clone, Serialize, Deserialize)]
struct UartState {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    /// As written, without the bits that act once.
    fcr: u8,
    divisor: u16,
    received: VecDeque<u8>,
    overrun: bool,
    transmit_pending: bool,
    modem_delta: u8,
    /// Line-status reads with no other access in between, up to [`POLLS`], where the count stays.
    polls: u8,
    /// When the receive timeout will have passed.
    timeout_at: Option<GuestTime>,
    timed_out: bool,
}

impl Saved for UartState {
    const NAME: &'static str = "uart";
    const VERSION: u16 = 1;
}

impl UartState {
    fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            fcr: 0,
            // 9600 baud; the datasheet leaves it undefined.
            divisor: 12,
            received: VecDeque::with_capacity(FIFO_BYTES),
            overrun: false,
            transmit_pending: false,
            modem_delta: 0,
            polls: 0,
            timeout_at: None,
            timed_out: false,
        }
    }

    fn fifos_on(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    /// Whether somebody is there to take what is received; see the argument on top.
    fn listens(&self) -> bool {
        let held_off = self.mcr & (mcr::DTR | mcr::RTS) == mcr::DTR;
        self.polls == POLLS || self.ier & ier::RECEIVE != 0 && !held_off
    }

    /// Notes an access for [`UartState::listens`].
    fn note_access(&mut self, line_status_read: bool) {
        if self.polls < POLLS {
            self.polls = if line_status_read { self.polls + 1 } else { 0 };
        }
    }

    fn capacity(&self) -> usize {
        if self.fifos_on() { FIFO_BYTES } else { 1 }
    }

    /// The number of received bytes that asks for an interrupt.
    fn trigger(&self) -> usize {
        match (self.fifos_on(), self.fcr >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// The modem lines, which in loopback are our own outputs.
    fn modem_lines(&self) -> u8 {
        if !self.loopback() {
            return msr::ATTACHED;
        }
        let wires = [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)];
        wires.iter().filter(|(output, _)| self.mcr & output != 0).fold(0, |lines, (_, input)| lines | input)
    }

    fn set_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & mcr::ALL;
        let after = self.modem_lines();
        let changed = (before ^ after) >> 4 & !msr::DELTA_RI;
        let ring_ended = (before & !after & msr::RI) >> 4;
        self.modem_delta |= changed | ring_ended;
    }

    /// The time in which four characters arrive on the line.
    fn timeout_ns(&self) -> u64 {
        let stop_bits = if self.lcr & lcr::TWO_STOP_BITS != 0 { 2 } else { 1 };
        let bits =
            1 + 5 + u64::from(self.lcr & lcr::LENGTH) + u64::from(self.lcr & lcr::PARITY != 0) + stop_bits;
        4 * bits * FASTEST_BIT_NS * u64::from(self.divisor.max(1))
    }

    /// The pending interrupt of the highest priority.
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(ier::LINE) && self.overrun {
            iir::LINE
        } else if enabled(ier::RECEIVE) && self.received.len() >= self.trigger() {
            iir::RECEIVE
        } else if enabled(ier::RECEIVE) && self.timed_out {
            iir::TIMEOUT
        } else if enabled(ier::TRANSMIT) && self.transmit_pending {
            iir::TRANSMIT
        } else if enabled(ier::MODEM) && self.modem_delta != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    fn receive(&mut self, byte: u8, now: GuestTime) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
            if !self.fifos_on() {
                // Without FIFOs the new byte replaces the old one.
                self.received.clear();
                self.received.push_back(byte);
            }
        }
        self.restart_timeout(now);
    }

    /// A byte came or went: the timeout counts anew, if anything is left to time out.
    fn restart_timeout(&mut self, now: GuestTime) {
        self.timed_out = false;
        let waiting = self.fifos_on() && !self.received.is_empty();
        self.timeout_at = waiting.then(|| now.after_ns(self.timeout_ns()));
    }

    fn clear_received(&mut self) {
        self.received.clear();
        self.timed_out = false;
        self.timeout_at = None;
    }

    fn write_fcr(&mut self, value: u8) {
        let enable = value & fcr::ENABLE;
        if enable != self.fcr & fcr::ENABLE || enable != 0 && value & fcr::CLEAR_RECEIVE != 0 {
            self.clear_received();
        }
        // The other bits are taken only together with the enable bit.
        self.fcr = if enable != 0 { value & (fcr::ENABLE | fcr::TRIGGER) } else { 0 };
    }
}

impl Uart {
    /// A serial port at eight ports from `base`.
    pub fn new(
        base: u16,
        sink: Box<dyn CharSink>,
        irq: Arc<dyn IrqLine>,
        clock: Arc<dyn Clock>,
        alarm: Arc<dyn Alarm>,
    ) -> Self {
        let timer = Timer::new(alarm);
        Self { base, sink, clock, timer, irq, paused: false, refused: false, state: UartState::new() }
    }

    /// Input from the host: takes as many bytes as there is room for and gives their number. If that is less than all,
    /// [`CharSink::input_wanted`] follows when more will be taken.
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let taken = if self.accepts() { bytes.len().min(self.room()) } else { 0 };
        self.refused |= taken < bytes.len();
        if taken > 0 {
            let now = self.clock.now();
            self.expire(now);
            for byte in bytes.iter().take(taken) {
                self.state.receive(*byte, now);
            }
            self.drive();
        }
        taken
    }

    fn accepts(&self) -> bool {
        !self.paused && !self.state.loopback() && self.state.listens()
    }

    fn room(&self) -> usize {
        self.state.capacity().saturating_sub(self.state.received.len())
    }

    fn expire(&mut self, now: GuestTime) {
        if self.state.timeout_at.is_some_and(|at| at <= now) {
            self.state.timeout_at = None;
            self.state.timed_out = true;
        }
    }

    /// Drives line and alarm from the state, and asks for input that was refused.
    fn drive(&mut self) {
        let gate = self.state.mcr & mcr::OUT2 != 0;
        self.irq.set(gate && self.state.interrupt() != iir::NONE);
        let waits = self.state.ier & ier::RECEIVE != 0;
        self.timer.arm(self.state.timeout_at.filter(|_| waits));
        // Not for each byte: half the room makes it worth waking the host's thread.
        if self.refused && self.accepts() && self.room() * 2 >= self.state.capacity() {
            self.refused = false;
            self.sink.input_wanted();
        }
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let now = self.clock.now();
        self.expire(now);
        let state = &mut self.state;
        state.note_access(register == 5);
        let divisor = state.lcr & lcr::DIVISOR != 0;
        let [low, high] = state.divisor.to_le_bytes();
        let value = match register {
            0 if divisor => low,
            1 if divisor => high,
            0 => {
                let byte = state.received.pop_front();
                state.restart_timeout(now);
                byte.unwrap_or(0)
            }
            1 => state.ier,
            2 => {
                let interrupt = state.interrupt();
                if interrupt == iir::TRANSMIT {
                    state.transmit_pending = false;
                }
                interrupt | if state.fifos_on() { iir::FIFOS_ON } else { 0 }
            }
            3 => state.lcr,
            4 => state.mcr,
            5 => {
                let overrun = std::mem::take(&mut state.overrun);
                lsr::TRANSMITTER_EMPTY
                    | if state.received.is_empty() { 0 } else { lsr::DATA }
                    | if overrun { lsr::OVERRUN } else { 0 }
            }
            6 => state.modem_lines() | std::mem::take(&mut state.modem_delta),
            7 => state.scratch,
            _ => 0xff,
        };
        self.drive();
        value
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let now = self.clock.now();
        self.expire(now);
        let state = &mut self.state;
        state.note_access(false);
        let divisor = state.lcr & lcr::DIVISOR != 0;
        let [low, high] = state.divisor.to_le_bytes();
        match register {
            0 if divisor => state.divisor = u16::from_le_bytes([value, high]),
            1 if divisor => state.divisor = u16::from_le_bytes([low, value]),
            0 => {
                state.transmit_pending = true;
                if state.loopback() {
                    state.receive(value, now);
                } else {
                    self.sink.send(&[value]);
                }
            }
            1 => {
                let raised = value & !state.ier;
                state.ier = value & ier::ALL;
                if raised & ier::TRANSMIT != 0 {
                    state.transmit_pending = true;
                }
            }
            2 => state.write_fcr(value),
            3 => state.lcr = value,
            4 => state.set_mcr(value),
            7 => state.scratch = value,
            // The status registers are read-only.
            _ => {}
        }
        self.drive();
    }
}

impl Device for Uart {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(self.base, PORTS)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            self.write_register(register, *byte);
        }
    }

    fn advance(&mut self, now: GuestTime) {
        self.timer.forget();
        self.expire(now);
        self.drive();
    }
}

impl Lifecycle for Uart {
    fn name(&self) -> &'static str {
        match self.base {
            COM1_PORT => "com1",
            0x2f8 => "com2",
            0x3e8 => "com3",
            0x2e8 => "com4",
            _ => UartState::NAME,
        }
    }

    fn reset(&mut self) {
        self.state = UartState::new();
        self.drive();
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: UartState = record.decode()?;
        if state.received.len() > state.capacity() || state.polls > POLLS {
            let reason = "more bytes received than fit, or more polls than are counted".into();
            return Err(StateError::Damaged { name: UartState::NAME, reason });
        }
        self.state = state;
        self.timer.forget();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
