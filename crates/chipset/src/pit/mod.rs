//! The 8254 interval timer and the speaker port.
//!
//! Three counters on one 1.193182 MHz clock: 0 drives IRQ 0, 1 once refreshed memory, 2 feeds the speaker and is
//! gated by port 0x61, where its output can be read back: the road by which kernels measure their own speed. The
//! arithmetic is in [`counter`]; here are the ports, the interrupt line and the alarm.
//!
//! Rising edges of counter 0 that nobody had time to see merge into one, as on a line that is not served.

mod counter;

use std::sync::Arc;

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::timer::{MIN_PERIODIC_GAP_NS, Rate, Timer};
use counter::Counter;

/// The frequency of the counters' clock.
pub const PIT_HZ: u64 = 1_193_182;

const RATE: Rate = Rate::hz(PIT_HZ);
/// The refresh signal toggles about every 15 µs.
const REFRESH_TOGGLE_NS: u64 = 15_085;

const COUNTER_PORTS: u16 = 0x40;
const SPEAKER_PORT: u16 = 0x61;
const SPEAKER_REGION: usize = 1;
const CONTROL: u64 = 3;

/// Port 0x61: the gate of counter 2, the speaker, and two enables that are only stored.
const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_WRITABLE: u8 = 0x0f;
const SPEAKER_REFRESH: u8 = 1 << 4;
const SPEAKER_OUTPUT: u8 = 1 << 5;

/// The timer chip.
pub struct Pit {
    // Glue.
    clock: Arc<dyn Clock>,
    timer: Timer,
    irq: Arc<dyn IrqLine>,
    // Volatile.
    state: PitState,
}

#[derive(Clone, Serialize, Deserialize)]
struct PitState {
    counters: [Counter; 3],
    speaker: u8,
    /// The time up to which counter 0's edges were delivered.
    synced: GuestTime,
}

impl Saved for PitState {
    const NAME: &'static str = "pit";
    const VERSION: u16 = 1;
}

impl PitState {
    const fn new(now: GuestTime) -> Self {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Self { counters, speaker: 0, synced: now }
    }
}

impl Pit {
    /// A timer whose counter 0 drives `irq`.
    pub fn new(clock: Arc<dyn Clock>, alarm: Arc<dyn Alarm>, irq: Arc<dyn IrqLine>) -> Self {
        let state = PitState::new(clock.now());
        Self { clock, timer: Timer::new(alarm), irq, state }
    }

    /// Brings the counters up to now; gives the tick.
    fn sync(&mut self) -> u64 {
        let now = self.clock.now();
        let (from, to) = (RATE.ticks_at(self.state.synced), RATE.ticks_at(now));
        self.state.synced = now;
        let [rose, _, _] = self.state.counters.each_mut().map(|counter| counter.advance(from, to));
        if rose {
            self.irq.set(false);
            self.irq.set(true);
        }
        to
    }

    /// Drives line and alarm from the state.
    fn drive(&mut self) {
        let tick = RATE.ticks_at(self.state.synced);
        let [first, ..] = &self.state.counters;
        self.irq.set(first.output(tick));
        let soonest = self.state.synced.after_ns(MIN_PERIODIC_GAP_NS);
        let short = first.repeats_within(RATE.ticks_at(GuestTime(MIN_PERIODIC_GAP_NS)));
        self.timer.arm(first.next_event(tick).map(|tick| {
            let at = RATE.time_of(tick);
            if short { at.max(soonest) } else { at }
        }));
    }

    fn read_port(&mut self, region: usize, port: u64) -> u8 {
        let tick = self.sync();
        let byte = match (region, port) {
            (SPEAKER_REGION, _) => self.read_speaker(tick),
            (_, CONTROL) => 0xff,
            _ => match self.state.counters.get_mut(x86::bits::index(port)) {
                Some(counter) => counter.read(tick),
                None => 0xff,
            },
        };
        self.drive();
        byte
    }

    fn read_speaker(&self, tick: u64) -> u8 {
        let [_, _, third] = &self.state.counters;
        let refresh = !(self.state.synced.0 / REFRESH_TOGGLE_NS).is_multiple_of(2);
        self.state.speaker
            | if refresh { SPEAKER_REFRESH } else { 0 }
            | if third.output(tick) { SPEAKER_OUTPUT } else { 0 }
    }

    fn write_port(&mut self, region: usize, port: u64, byte: u8) {
        let tick = self.sync();
        match (region, port) {
            (SPEAKER_REGION, _) => {
                self.state.speaker = byte & SPEAKER_WRITABLE;
                let [_, _, third] = &mut self.state.counters;
                third.set_gate(byte & SPEAKER_GATE != 0, tick);
            }
            (_, CONTROL) => self.control(byte, tick),
            _ => {
                if let Some(counter) = self.state.counters.get_mut(x86::bits::index(port)) {
                    counter.write(byte, tick);
                }
            }
        }
        self.drive();
    }

    fn control(&mut self, word: u8, tick: u64) {
        let select = usize::from(word >> 6);
        if let Some(counter) = self.state.counters.get_mut(select) {
            match word >> 4 & 3 {
                0 => counter.latch_count(tick),
                _ => counter.set_mode(word),
            }
            return;
        }
        // Read-back: bits 5 and 4 low select count and status, bits 3:1 the counters.
        for (index, counter) in self.state.counters.iter_mut().enumerate() {
            if word >> (index + 1) & 1 == 0 {
                continue;
            }
            if word & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if word & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }
}

impl Device for Pit {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(COUNTER_PORTS, 4), Region::ports(SPEAKER_PORT, 1)]
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.read_port(region, port);
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            self.write_port(region, port, *byte);
        }
    }

    fn advance(&mut self, _now: GuestTime) {
        self.timer.forget();
        self.sync();
        self.drive();
    }
}

impl Lifecycle for Pit {
    fn name(&self) -> &'static str {
        PitState::NAME
    }

    fn reset(&mut self) {
        self.state = PitState::new(self.clock.now());
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: PitState = record.decode()?;
        if !state.counters.iter().all(Counter::is_valid) {
            return Err(StateError::Damaged {
                name: PitState::NAME,
                reason: "a counter out of range".into(),
            });
        }
        self.state = state;
        self.timer.forget();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Rig};
    use bus::{Latch, ManualClock};

    fn pit() -> (Pit, ManualClock, Latch) {
        let (clock, line) = (ManualClock::default(), Latch::default());
        let pit = Pit::new(Arc::new(clock.clone()), Arc::new(clock.clone()), Arc::new(line.clone()));
        (pit, clock, line)
    }

    fn outb(pit: &mut Pit, port: u16, byte: u8) {
        match port {
            SPEAKER_PORT => pit.write(1, 0, &[byte]),
            _ => pit.write(0, u64::from(port - COUNTER_PORTS), &[byte]),
        }
    }

    fn inb(pit: &mut Pit, port: u16) -> u8 {
        let mut data = [0xff];
        match port {
            SPEAKER_PORT => pit.read(1, 0, &mut data),
            _ => pit.read(0, u64::from(port - COUNTER_PORTS), &mut data),
        }
        data[0]
    }

    #[test]
    fn a_periodic_tick_neither_drifts_nor_storms() {
        let (mut pit, clock, line) = pit();
        outb(&mut pit, 0x43, 0x34);
        outb(&mut pit, 0x40, 0xa9);
        outb(&mut pit, 0x40, 0x04);
        let rest = line.edges();
        let mut fired = 0;
        while clock.now() < GuestTime(10_000_000_000) {
            let at = clock.alarm().unwrap();
            clock.step(at.since(clock.now()));
            pit.advance(at);
            fired += 1;
        }
        // 1193182 Hz / 1193 for ten seconds.
        assert_eq!(fired, 10_002);
        assert_eq!(line.edges() - rest, fired);

        outb(&mut pit, 0x43, 0x34);
        outb(&mut pit, 0x40, 2);
        outb(&mut pit, 0x40, 0);
        assert!(clock.alarm().unwrap().since(clock.now()) >= MIN_PERIODIC_GAP_NS);
    }

    #[test]
    fn a_one_shot_is_exact_and_fires_once() {
        for control in [0x30, 0x38] {
            let (mut pit, clock, line) = pit();
            outb(&mut pit, 0x43, control);
            outb(&mut pit, 0x40, 100);
            outb(&mut pit, 0x40, 0);
            let rest = line.edges();
            let at = clock.alarm().unwrap();
            assert!((84_000..86_000).contains(&at.0), "{at:?}");
            clock.step(at.0 - 1);
            pit.advance(clock.now());
            assert_eq!(line.edges(), rest);
            clock.step(1);
            pit.advance(clock.now());
            assert_eq!((line.edges(), clock.alarm()), (rest + 1, None));
        }
    }

    #[test]
    fn calibration_by_counter_2_as_kernels_do_it() {
        let (mut pit, clock, _) = pit();
        outb(&mut pit, 0x61, 0x01);
        outb(&mut pit, 0x43, 0xb0);
        // 10 ms.
        outb(&mut pit, 0x42, 0x9c);
        outb(&mut pit, 0x42, 0x2e);
        assert_eq!(inb(&mut pit, 0x61) & 0x20, 0);
        clock.step(9_990_000);
        assert_eq!(inb(&mut pit, 0x61) & 0x20, 0);
        clock.step(12_000);
        assert_eq!(inb(&mut pit, 0x61) & 0x2f, 0x21);
    }

    #[test]
    fn refresh_bit_toggles() {
        let (mut pit, clock, _) = pit();
        let first = inb(&mut pit, 0x61) & 0x10;
        clock.step(REFRESH_TOGGLE_NS);
        assert_ne!(inb(&mut pit, 0x61) & 0x10, first);
    }

    #[test]
    fn read_back_latches_several_counters() {
        let (mut pit, _, _) = pit();
        outb(&mut pit, 0x43, 0x16);
        outb(&mut pit, 0x43, 0x54);
        outb(&mut pit, 0x40, 9);
        outb(&mut pit, 0x43, 0xc6);
        assert_eq!(inb(&mut pit, 0x40), 0x80 | 0x40 | 0x16);
        assert_eq!(inb(&mut pit, 0x41), 0x80 | 0x40 | 0x14);
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let (pit, clock, line) = pit();
            Rig::new(pit).on_clock(&clock).driving(&[&line])
        });
    }
}
