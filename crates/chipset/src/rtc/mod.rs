//! The MC146818 real-time clock with its CMOS memory.
//!
//! The clock does not count: it shows guest time moved by the host's wall clock at guest time 0 (injected, not
//! saved) and by what the guest has set (saved). So it follows guest time exactly, a restored machine gets today's
//! date from its new base, and a guest's own correction survives.
//!
//! While the guest holds the clock, by the SET bit or by the divider's reset, the time registers are plain bytes;
//! letting go takes the time from them. A time register written while the clock runs does both at once. A change of
//! the number format changes what is shown, not the time. The three
//! interrupt flags are raised by looking back at what happened since the last look; the alarm is set only for events
//! that would raise the line, and not while it is high, so no guest can make us work for nothing.
//!
//! The weekday is always computed from the date.
//!
//! Reference: Motorola MC146818A datasheet (1988); register 0x32 as the century as in the FADT's `CENTURY`.

mod calendar;

use std::sync::Arc;

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::low8;

use crate::timer::{Rate, Timer};
use calendar::{DAY_S, Date};

/// The index of the century in CMOS memory, for the FADT.
pub const RTC_CENTURY: u8 = 0x32;

const PORT: u16 = 0x70;
const CELLS: usize = 128;
const INDEX_MASK: u8 = 0x7f;

const SECOND_NS: u64 = 1_000_000_000;
/// How long before an update the update-in-progress bit warns (t_BUC).
const UIP_NS: u64 = 244_000;
/// The first update after the divider's reset ends comes half a second later.
const DIVIDER_RELEASE_NS: u64 = SECOND_NS / 2;
/// The crystal behind the periodic interrupt.
const CRYSTAL: Rate = Rate::hz(32_768);

/// Registers.
const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const TIME_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, RTC_CENTURY];

/// Register A: update in progress, divider, periodic rate.
const A_UIP: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_RUNS: u8 = 0x20;
const A_RATE: u8 = 0x0f;

/// Register B; the interrupt enables have the places of register C's flags.
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const B_SQUARE_WAVE: u8 = 0x08;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
const C_IRQ: u8 = 0x80;
const D_VALID: u8 = 0x80;

/// An hour of the afternoon in 12-hour mode.
const PM: u8 = 0x80;
/// An alarm register with both of these set matches anything.
const ANY: u8 = 0xc0;

/// The clock chip.
pub struct Rtc {
    // Static.
    /// The wall clock at guest time 0: whole seconds and the rest in ns.
    base_s: i64,
    base_ns: u64,
    // Glue.
    clock: Arc<dyn Clock>,
    timer: Timer,
    irq: Arc<dyn IrqLine>,
    // Volatile.
    state: RtcState,
}

#[derive(Clone, Serialize, Deserialize)]
struct RtcState {
    /// Port 0x70 as written; bit 7 masks NMI, of which there are none.
    index: u8,
    /// CMOS cells; the cells of time registers are in force only while the clock is held.
    cells: Vec<u8>,
    /// Register C without its summary bit.
    flags: u8,
    /// What the guest has set: whole seconds, and a shift of the second's phase in ns below one second.
    shift_s: i64,
    shift_ns: u64,
    /// The time up to which flags were raised.
    synced: GuestTime,
}

impl Saved for RtcState {
    const NAME: &'static str = "rtc";
    const VERSION: u16 = 1;
}

impl RtcState {
    fn new(now: GuestTime) -> Self {
        let mut state =
            Self { index: 0, cells: vec![0; CELLS], flags: 0, shift_s: 0, shift_ns: 0, synced: now };
        // 32.768 kHz crystal, 1024 Hz.
        state.set(A, A_DIVIDER_RUNS | 6);
        state.set(B, B_24_HOURS);
        state
    }

    fn cell(&self, register: u8) -> u8 {
        self.cells.get(usize::from(register)).copied().unwrap_or(0)
    }

    fn set(&mut self, register: u8, value: u8) {
        if let Some(cell) = self.cells.get_mut(usize::from(register)) {
            *cell = value;
        }
    }

    fn runs(&self) -> bool {
        self.cell(B) & B_SET == 0 && self.divider_runs()
    }

    fn divider_runs(&self) -> bool {
        self.cell(A) & A_DIVIDER == A_DIVIDER_RUNS
    }

    fn encode(&self, value: i64) -> u8 {
        let value = low8(value.rem_euclid(100).unsigned_abs());
        if self.cell(B) & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, byte: u8) -> i64 {
        let value = if self.cell(B) & B_BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 0xf) };
        i64::from(value)
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.cell(B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        self.encode((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> i64 {
        if self.cell(B) & B_24_HOURS != 0 {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// Puts a time into the cells.
    fn store(&mut self, date: Date) {
        let bytes = [
            (SECONDS, self.encode(date.second)),
            (MINUTES, self.encode(date.minute)),
            (HOURS, self.encode_hour(date.hour)),
            (WEEKDAY, self.encode(date.weekday())),
            (DAY, self.encode(date.day)),
            (MONTH, self.encode(date.month)),
            (YEAR, self.encode(date.year)),
            (RTC_CENTURY, self.encode(date.year.div_euclid(100))),
        ];
        for (register, byte) in bytes {
            self.set(register, byte);
        }
    }

    /// The time that the cells hold.
    fn stored(&self) -> Date {
        Date {
            year: self.decode(self.cell(RTC_CENTURY)) * 100 + self.decode(self.cell(YEAR)),
            month: self.decode(self.cell(MONTH)),
            day: self.decode(self.cell(DAY)),
            hour: self.decode_hour(self.cell(HOURS)),
            minute: self.decode(self.cell(MINUTES)),
            second: self.decode(self.cell(SECONDS)),
        }
    }

    /// The crystal's ticks between periodic interrupts, as a shift; `None` if there are none (datasheet, table 5).
    fn period_shift(&self) -> Option<u32> {
        match self.cell(A) & A_RATE {
            0 => None,
            rate @ 1..=2 => Some(u32::from(rate) + 6),
            rate => Some(u32::from(rate) - 1),
        }
    }

    /// Whether an alarm register matches a time's field.
    fn alarm_matches(&self, register: u8, field: i64) -> bool {
        let byte = self.cell(register);
        byte & ANY == ANY
            || match register {
                HOURS_ALARM => self.decode_hour(byte) == field,
                _ => self.decode(byte) == field,
            }
    }

    /// Seconds from the time `seconds` to the next alarm after it; `None` if the alarm registers match no time.
    fn until_alarm(&self, seconds: i64) -> Option<i64> {
        let start = seconds + 1;
        let mut at = start;
        // Skips to the next hour or minute that matches, so this takes few rounds.
        while at <= start + DAY_S {
            let date = Date::from_unix(at);
            at += if !self.alarm_matches(HOURS_ALARM, date.hour) {
                3600 - date.minute * 60 - date.second
            } else if !self.alarm_matches(MINUTES_ALARM, date.minute) {
                60 - date.second
            } else if !self.alarm_matches(SECONDS_ALARM, date.second) {
                1
            } else {
                return Some(at - seconds);
            };
        }
        None
    }
}

impl Rtc {
    /// A clock chip that showed `unix_ns`, nanoseconds since 1970, at guest time 0.
    pub fn new(unix_ns: u64, clock: Arc<dyn Clock>, alarm: Arc<dyn Alarm>, irq: Arc<dyn IrqLine>) -> Self {
        let base_s = i64::try_from(unix_ns / SECOND_NS).unwrap_or(0);
        let state = RtcState::new(clock.now());
        Self { base_s, base_ns: unix_ns % SECOND_NS, clock, timer: Timer::new(alarm), irq, state }
    }

    /// The divider's time: guest time moved so that the clock's seconds begin at multiples of a second.
    fn divider(&self, time: GuestTime) -> GuestTime {
        time.after_ns(self.base_ns + self.state.shift_ns)
    }

    /// The seconds since 1970 that the running clock shows.
    fn seconds(&self, time: GuestTime) -> i64 {
        let elapsed = i64::try_from(self.divider(time).0 / SECOND_NS).unwrap_or(i64::MAX);
        self.base_s.saturating_add(self.state.shift_s).saturating_add(elapsed)
    }

    /// The guest time of the divider's time `ns`.
    fn guest_time(&self, ns: u64) -> GuestTime {
        GuestTime(ns.saturating_sub(self.base_ns + self.state.shift_ns))
    }

    /// Raises the flags of everything that has happened since the last look.
    fn sync(&mut self) {
        let (from, to) = (self.state.synced, self.clock.now());
        self.state.synced = to;
        if !self.state.divider_runs() {
            return;
        }
        if let Some(shift) = self.state.period_shift() {
            let ticks = |time| CRYSTAL.ticks_at(self.divider(time)) >> shift;
            if ticks(to) > ticks(from) {
                self.state.flags |= PERIODIC;
            }
        }
        let (before, after) = (self.seconds(from), self.seconds(to));
        if self.state.runs() && after > before {
            self.state.flags |= UPDATE;
            if self.state.flags & ALARM == 0
                && self.state.until_alarm(before).is_some_and(|wait| wait <= after - before)
            {
                self.state.flags |= ALARM;
            }
        }
    }

    /// Drives line and alarm from the state.
    fn drive(&mut self) {
        let enables = self.state.cell(B) & INTERRUPTS;
        let high = self.state.flags & enables != 0;
        self.irq.set(high);
        self.timer.arm(if high || enables == 0 { None } else { self.next_event(enables) });
    }

    /// The time of the next enabled event.
    fn next_event(&self, enables: u8) -> Option<GuestTime> {
        let state = &self.state;
        if !state.divider_runs() {
            return None;
        }
        let now = self.divider(state.synced);
        let periodic = state.period_shift().filter(|_| enables & PERIODIC != 0).map(|shift| {
            let period = CRYSTAL.ticks_at(now) >> shift;
            CRYSTAL.time_of((period + 1) << shift).0
        });
        let in_seconds = |wait: u64| (now.0 / SECOND_NS).saturating_add(wait).saturating_mul(SECOND_NS);
        let update = (state.runs() && enables & UPDATE != 0).then(|| in_seconds(1));
        let alarm = if state.runs() && enables & ALARM != 0 {
            let wait = state.until_alarm(self.seconds(state.synced));
            wait.map(|wait| in_seconds(wait.unsigned_abs()))
        } else {
            None
        };
        [periodic, update, alarm].into_iter().flatten().min().map(|ns| self.guest_time(ns))
    }

    /// Writes register A or B, which may hold or release the clock.
    fn write_control(&mut self, register: u8, value: u8) {
        let now = self.state.synced;
        let (ran, divided) = (self.state.runs(), self.state.divider_runs());
        if ran {
            self.state.store(Date::from_unix(self.seconds(now)));
        }
        self.state.set(register, value);
        if !divided && self.state.divider_runs() {
            // The next second begins half a second from now.
            let phase = now.after_ns(self.base_ns).0 % SECOND_NS;
            self.state.shift_ns = (SECOND_NS + DIVIDER_RELEASE_NS - phase) % SECOND_NS;
        }
        if !ran {
            self.take_time();
        }
    }

    /// Writes a time register.
    fn write_time(&mut self, register: u8, value: u8) {
        if self.state.runs() {
            self.state.store(Date::from_unix(self.seconds(self.state.synced)));
        }
        self.state.set(register, value);
        self.take_time();
    }

    /// A clock that runs takes the time from its cells.
    fn take_time(&mut self) {
        if self.state.runs() {
            let error = self.state.stored().to_unix() - self.seconds(self.state.synced);
            self.state.shift_s = self.state.shift_s.saturating_add(error);
        }
    }

    fn read_cell(&mut self) -> u8 {
        let register = self.state.index & INDEX_MASK;
        let now = self.state.synced;
        match register {
            A => {
                let left = SECOND_NS - self.divider(now).0 % SECOND_NS;
                self.state.cell(A) | if self.state.runs() && left <= UIP_NS { A_UIP } else { 0 }
            }
            C => {
                let flags = std::mem::take(&mut self.state.flags);
                let high = flags & self.state.cell(B) & INTERRUPTS != 0;
                flags | if high { C_IRQ } else { 0 }
            }
            D => D_VALID,
            _ if TIME_REGISTERS.contains(&register) && self.state.runs() => {
                self.state.store(Date::from_unix(self.seconds(now)));
                self.state.cell(register)
            }
            _ => self.state.cell(register),
        }
    }

    fn write_cell(&mut self, value: u8) {
        let register = self.state.index & INDEX_MASK;
        match register {
            A => self.write_control(A, value & !A_UIP),
            // SET also ends the update interrupt's enable (datasheet, "Register B").
            B if value & B_SET != 0 => self.write_control(B, value & !UPDATE),
            B => self.write_control(B, value),
            C | D => {}
            _ if TIME_REGISTERS.contains(&register) => self.write_time(register, value),
            _ => self.state.set(register, value),
        }
    }
}

impl Device for Rtc {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(PORT, 2)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        self.sync();
        for (port, byte) in (offset..).zip(data) {
            // The index port is write-only.
            if port == 1 {
                *byte = self.read_cell();
            }
        }
        self.drive();
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        self.sync();
        for (port, byte) in (offset..).zip(data) {
            match port {
                0 => self.state.index = *byte,
                _ => self.write_cell(*byte),
            }
        }
        self.drive();
    }

    fn advance(&mut self, _now: GuestTime) {
        self.timer.forget();
        self.sync();
        self.drive();
    }
}

impl Lifecycle for Rtc {
    fn name(&self) -> &'static str {
        RtcState::NAME
    }

    /// A reset ends the interrupts; the battery keeps time and memory.
    fn reset(&mut self) {
        self.sync();
        self.state.flags = 0;
        let b = self.state.cell(B);
        self.state.set(B, b & !(INTERRUPTS | B_SQUARE_WAVE));
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: RtcState = record.decode()?;
        // Half the range leaves room for the clock to run on without overflow.
        if state.cells.len() != CELLS
            || state.shift_ns >= SECOND_NS
            || state.shift_s.unsigned_abs() > 1 << 40
            || state.flags & !INTERRUPTS != 0
        {
            return Err(StateError::Damaged { name: RtcState::NAME, reason: "a value out of range".into() });
        }
        self.state = state;
        self.timer.forget();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
