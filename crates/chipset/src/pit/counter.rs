//! One counter of the 8254.
//!
//! The chip decrements at every clock; we do not. A counter keeps the tick at which its count was loaded, and count
//! and output are functions of the ticks elapsed since: `e` ticks after loading `N`, mode 2 shows `N - e mod N`. So a
//! counter costs nothing while nobody looks, and cannot drift. Two things end such a stretch: a gate edge, and in
//! modes 2 and 3 a new count, which is taken over at the end of the running (half) period.
//!
//! Simplified where no PC can tell: mode 1 lowers its output at the trigger, not one clock later, and a count of 1 in
//! modes 2 and 3, which the datasheet forbids, counts as 2.
//!
//! Reference: Intel 8254 datasheet (231164-005), "Mode definitions".

use serde::{Deserialize, Serialize};
use x86::bits::{low8, low16};

/// Which bytes of the count a port access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Bytes {
    Low,
    High,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// A mode is set but no count written; the output rests at the mode's initial level.
    Idle,
    /// A count is written and waits for a gate edge.
    Armed,
    /// Counting: `skipped` ticks had elapsed at tick `since`.
    Running { since: u64, skipped: u64 },
    /// Stopped by the gate (modes 0 and 4) after this many ticks.
    Paused { elapsed: u64 },
}

/// A counter's state. All of it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    bytes: Bytes,
    gate: bool,
    phase: Phase,
    /// The count in effect.
    count: u32,
    /// The count last written; differs from `count` until it is taken over.
    reload: u32,
    /// The tick at which `reload` is taken over (modes 2 and 3).
    take_over_at: Option<u64>,
    /// The low byte of a count of which the high byte is still to be written.
    low_written: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter after power-on. The chip leaves its state undefined; this one is at rest.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            bytes: Bytes::Both,
            gate,
            phase: Phase::Idle,
            count: 0x1_0000,
            reload: 0x1_0000,
            take_over_at: None,
            low_written: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Whether a restored counter is one that a guest could have made.
    pub(super) fn is_valid(&self) -> bool {
        let least = if self.is_periodic() { 2 } else { 1 };
        self.mode <= 5 && [self.count, self.reload].iter().all(|count| (least..=0x1_0000).contains(count))
    }

    /// Whether the output rises again and again within `ticks`.
    pub(super) fn repeats_within(&self, ticks: u64) -> bool {
        self.is_periodic() && u64::from(self.count) < ticks
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// A control word that sets the mode (bits 5:4 not zero).
    pub(super) fn set_mode(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        let gate = self.gate;
        *self = Self::new(gate);
        // The top bit of modes 2 and 3 is a don't-care.
        self.mode = if mode > 5 { mode & 3 } else { mode };
        self.bcd = control & 1 != 0;
        self.bytes = match control >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::Both,
        };
    }

    /// A byte written to the counter's port at tick `now`.
    pub(super) fn write(&mut self, byte: u8, now: u64) {
        match (self.bytes, self.low_written.take()) {
            (Bytes::Low, _) => self.load(u16::from(byte), now),
            (Bytes::High, _) => self.load(u16::from(byte) << 8, now),
            (Bytes::Both, Some(low)) => self.load(u16::from_le_bytes([low, byte]), now),
            (Bytes::Both, None) => {
                self.low_written = Some(byte);
                if self.mode == 0 {
                    // The first byte disables counting and lowers the output.
                    self.phase = Phase::Idle;
                }
            }
        }
    }

    fn load(&mut self, written: u16, now: u64) {
        let count = match (written, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (_, false) => u32::from(written),
            (_, true) => from_bcd(written),
        };
        self.reload = if self.is_periodic() { count.max(2) } else { count };
        match (self.mode, self.phase) {
            (0 | 4, _) => {
                self.count = self.reload;
                self.phase = if self.gate {
                    Phase::Running { since: now.saturating_add(1), skipped: 0 }
                } else {
                    Phase::Paused { elapsed: 0 }
                };
            }
            (2 | 3, Phase::Running { since, .. }) => {
                let left = self.until_boundary(self.elapsed(now));
                self.take_over_at = Some(now.max(since).saturating_add(left));
            }
            (2 | 3, _) if self.gate => self.start(now),
            (_, Phase::Idle) => self.phase = Phase::Armed,
            _ => {}
        }
    }

    fn start(&mut self, now: u64) {
        self.count = self.reload;
        self.take_over_at = None;
        self.phase = Phase::Running { since: now.saturating_add(1), skipped: 0 };
    }

    /// Drives the gate input at tick `now`.
    pub(super) fn set_gate(&mut self, high: bool, now: u64) {
        if high == self.gate {
            return;
        }
        self.gate = high;
        match (self.mode, self.phase, high) {
            (0 | 4, Phase::Running { .. }, false) => {
                self.phase = Phase::Paused { elapsed: self.elapsed(now) };
            }
            (0 | 4, Phase::Paused { elapsed }, true) => {
                self.phase = Phase::Running { since: now, skipped: elapsed };
            }
            (2 | 3, Phase::Running { .. }, false) => self.phase = Phase::Armed,
            (2 | 3, Phase::Armed, true) => self.start(now),
            (1 | 5, Phase::Armed | Phase::Running { .. }, true) => self.start(now),
            _ => {}
        }
    }

    /// Moves from tick `from` to tick `to`; true if the output has risen in between.
    pub(super) fn advance(&mut self, from: u64, to: u64) -> bool {
        let Some(at) = self.take_over_at.filter(|at| *at <= to) else {
            return self.rises(from, to);
        };
        let rose = self.rises(from, at);
        // A new count at the end of mode 3's high half starts with the low half.
        let low_half = self.mode == 3 && !self.elapsed(at).is_multiple_of(u64::from(self.count));
        self.count = self.reload;
        self.take_over_at = None;
        let skipped = if low_half { self.high_half() } else { 0 };
        self.phase = Phase::Running { since: at, skipped };
        self.rises(at, to) || rose
    }

    fn rises(&self, from: u64, to: u64) -> bool {
        self.next_rise(self.elapsed(from)).is_some_and(|rise| rise <= self.elapsed(to))
    }

    /// The tick after `now` at which the output rises next, as far as is known.
    pub(super) fn next_event(&self, now: u64) -> Option<u64> {
        let Phase::Running { since, skipped } = self.phase else { return None };
        let rise = self.next_rise(self.elapsed(now))?;
        let at = since.saturating_add(rise.saturating_sub(skipped));
        // At a take-over the prediction changes.
        Some(self.take_over_at.map_or(at, |take_over| take_over.min(at)))
    }

    fn elapsed(&self, now: u64) -> u64 {
        match self.phase {
            Phase::Idle | Phase::Armed => 0,
            Phase::Paused { elapsed } => elapsed,
            Phase::Running { since, skipped } => now.saturating_sub(since).saturating_add(skipped),
        }
    }

    /// The elapsed ticks, later than `elapsed`, at which the output rises.
    fn next_rise(&self, elapsed: u64) -> Option<u64> {
        let count = u64::from(self.count);
        match (self.phase, self.mode) {
            (Phase::Idle | Phase::Armed, _) => None,
            (_, 2 | 3) => Some((elapsed / count + 1).saturating_mul(count)),
            (_, 0 | 1) => Some(count).filter(|rise| *rise > elapsed),
            _ => Some(count + 1).filter(|rise| *rise > elapsed),
        }
    }

    fn high_half(&self) -> u64 {
        u64::from(self.count).div_ceil(2)
    }

    /// Ticks until a new count is taken over in modes 2 and 3.
    fn until_boundary(&self, elapsed: u64) -> u64 {
        let at = elapsed % u64::from(self.count);
        if self.mode == 3 && at < self.high_half() {
            self.high_half() - at
        } else {
            u64::from(self.count) - at
        }
    }

    /// The output pin at tick `now`.
    pub(super) fn output(&self, now: u64) -> bool {
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        match (self.phase, self.mode) {
            (Phase::Idle, mode) => mode != 0,
            (Phase::Armed, _) => true,
            (_, 0 | 1) => elapsed >= count,
            (_, 2) => elapsed % count != count - 1,
            (_, 3) => elapsed % count < self.high_half(),
            _ => elapsed != count,
        }
    }

    /// The counting element as the guest reads it.
    fn value(&self, now: u64) -> u16 {
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                let at = elapsed % count;
                let in_half = if at < self.high_half() { at } else { at - self.high_half() };
                (count & !1) - 2 * in_half
            }
            _ => count + modulus - elapsed % modulus,
        };
        if self.bcd { to_bcd(value % modulus) } else { low16(value) }
    }

    /// The counter-latch command; a second one before the count is read has no effect.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
        }
    }

    /// The status half of the read-back command.
    pub(super) fn latch_status(&mut self, now: u64) {
        let null = match self.phase {
            Phase::Idle | Phase::Armed => true,
            Phase::Paused { .. } => false,
            Phase::Running { since, skipped } => {
                (now < since && skipped == 0) || self.reload != self.count || self.take_over_at.is_some()
            }
        };
        let bytes = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::Both => 3,
        };
        let status = u8::from(self.output(now)) << 7
            | u8::from(null) << 6
            | bytes << 4
            | self.mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// A byte read from the counter's port.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let (byte, more) = match self.bytes {
            Bytes::Low => (low, false),
            Bytes::High => (high, false),
            Bytes::Both if self.read_high => (high, false),
            Bytes::Both => (low, true),
        };
        self.read_high = more;
        if !more {
            self.latched_count = None;
        }
        byte
    }
}

/// Digits above 9, which no BCD count has, count as they weigh.
fn from_bcd(digits: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(digits >> (4 * digit) & 0xf))
}

fn to_bcd(value: u64) -> u16 {
    let digits = [value / 1000 % 10, value / 100 % 10, value / 10 % 10, value % 10];
    digits.iter().fold(0, |bcd, digit| bcd << 4 | u16::from(low8(*digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter in `mode` (16-bit accesses) with `count` loaded at tick 0.
    fn counter(mode: u8, count: u16) -> Counter {
        let mut c = Counter::new(true);
        c.set_mode(0x30 | mode << 1);
        let [low, high] = count.to_le_bytes();
        c.write(low, 0);
        c.write(high, 0);
        c.advance(0, 1);
        c
    }

    /// The output and count at `ticks` ticks from the one that loads the count.
    fn wave(c: &Counter, ticks: u64) -> (String, Vec<u16>) {
        let levels = (1..=ticks).map(|t| if c.output(t) { '-' } else { '_' }).collect();
        (levels, (1..=ticks).map(|t| c.value(t)).collect())
    }

    #[test]
    fn waveforms_of_the_datasheet() {
        assert_eq!(wave(&counter(0, 4), 7), ("____---".into(), vec![4, 3, 2, 1, 0, 0xffff, 0xfffe]));
        assert_eq!(wave(&counter(2, 3), 7), ("--_--_-".into(), vec![3, 2, 1, 3, 2, 1, 3]));
        assert_eq!(wave(&counter(3, 4), 9), ("--__--__-".into(), vec![4, 2, 4, 2, 4, 2, 4, 2, 4]));
        assert_eq!(wave(&counter(3, 5), 10), ("---__---__".into(), vec![4, 2, 0, 4, 2, 4, 2, 0, 4, 2]));
        assert_eq!(wave(&counter(4, 3), 6), ("---_--".into(), vec![3, 2, 1, 0, 0xffff, 0xfffe]));
    }

    #[test]
    fn predictions_agree_with_the_output() {
        for (mode, count) in [(0, 5), (2, 2), (2, 7), (3, 2), (3, 3), (3, 9), (4, 6)] {
            let c = counter(mode, count);
            for now in 1..60 {
                let rose = !c.output(now) && c.output(now + 1);
                assert_eq!(c.rises(now, now + 1), rose, "mode {mode} count {count} tick {now}");
                assert_eq!(c.next_event(now) == Some(now + 1), rose, "mode {mode} count {count} tick {now}");
            }
        }
    }

    #[test]
    fn a_new_count_waits_for_the_end_of_the_period() {
        let mut c = counter(2, 4);
        c.write(2, 2);
        c.write(0, 2);
        assert_eq!(c.next_event(2), Some(5));
        assert!(!c.advance(2, 4));
        assert!(c.advance(4, 5), "the old period ends with a rise");
        assert_eq!(wave(&c, 9).0[4..], *"-_-_-");

        let mut c = counter(3, 8);
        c.write(4, 2);
        c.write(0, 2);
        c.advance(2, 5);
        assert_eq!((5..12).map(|t| u8::from(c.output(t))).collect::<Vec<_>>(), [0, 0, 1, 1, 0, 0, 1]);
    }

    #[test]
    fn the_gate_pauses_or_triggers() {
        let mut c = counter(0, 10);
        c.set_gate(false, 4);
        assert_eq!((c.value(100), c.next_event(100)), (7, None));
        c.set_gate(true, 100);
        assert_eq!(c.next_event(100), Some(107));

        let mut c = counter(1, 3);
        assert!(c.output(50));
        c.set_gate(false, 50);
        c.set_gate(true, 60);
        assert_eq!((c.output(61), c.output(63), c.output(64)), (false, false, true));

        let mut c = counter(2, 3);
        c.set_gate(false, 3);
        assert!(c.output(3));
        c.set_gate(true, 10);
        assert_eq!((c.output(12), c.output(13), c.output(14)), (true, false, true));
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut c = Counter::new(true);
        c.set_mode(0x31);
        c.write(0x00, 0);
        c.write(0x01, 0);
        assert_eq!((c.value(1), c.value(2), c.value(102)), (0x100, 0x99, 0x9999));
        c.write(0, 0);
        c.write(0, 0);
        assert_eq!(c.value(2), 0x9999);
    }

    #[test]
    fn latches_hold_until_read() {
        let mut c = counter(2, 0x1234);
        c.latch_count(5);
        c.latch_count(9);
        c.latch_status(9);
        assert_eq!([c.read(20), c.read(20), c.read(20)], [0xb4, 0x30, 0x12]);
        assert_eq!([c.read(1), c.read(1)], [0x34, 0x12]);
    }
}
