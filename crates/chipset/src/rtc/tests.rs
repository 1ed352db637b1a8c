use bus::{Latch, ManualClock};

use super::*;
use crate::harness::{self, Rig};

/// 2024-02-28 23:59:58.25 UTC.
const START_NS: u64 = 1_709_164_798_250_000_000;

struct Bench {
    rtc: Rtc,
    clock: ManualClock,
    line: Latch,
}

impl Bench {
    fn new() -> Self {
        let (clock, line) = (ManualClock::default(), Latch::default());
        let rtc =
            Rtc::new(START_NS, Arc::new(clock.clone()), Arc::new(clock.clone()), Arc::new(line.clone()));
        Self { rtc, clock, line }
    }

    fn get(&mut self, register: u8) -> u8 {
        let mut data = [0xff];
        self.rtc.write(0, 0, &[register]);
        self.rtc.read(0, 1, &mut data);
        data[0]
    }

    fn put(&mut self, register: u8, value: u8) {
        self.rtc.write(0, 0, &[register]);
        self.rtc.write(0, 1, &[value]);
    }

    /// Century, year, month, day, hour, minute, second.
    fn date(&mut self) -> [u8; 7] {
        [RTC_CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|register| self.get(register))
    }

    fn wait_for_alarm(&mut self) -> u64 {
        let at = self.clock.alarm().expect("an alarm");
        self.clock.step(at.since(self.clock.now()));
        self.rtc.advance(at);
        at.0
    }
}

#[test]
fn shows_the_wall_clock_and_follows_guest_time() {
    let mut b = Bench::new();
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58]);
    b.clock.step(2 * SECOND_NS);
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00]);
    assert_eq!(b.get(WEEKDAY), 5);
    b.put(B, B_BINARY);
    assert_eq!(b.date(), [20, 24, 2, 29, 12, 0, 0]);
    b.clock.step(13 * 3600 * SECOND_NS);
    assert_eq!(b.get(HOURS), 1 | PM);
    assert_eq!(b.get(D), D_VALID);
}

#[test]
fn is_set_as_linux_sets_it() {
    let mut b = Bench::new();
    b.put(B, B_SET | B_24_HOURS);
    b.put(A, 0x70);
    let wanted = [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x50];
    for (register, value) in [RTC_CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].into_iter().zip(wanted)
    {
        b.put(register, value);
    }
    b.clock.step(5 * SECOND_NS);
    assert_eq!(b.date(), wanted, "held");
    b.put(B, B_24_HOURS);
    b.put(A, 0x26);
    assert_eq!(b.date(), wanted);
    b.clock.step(SECOND_NS / 2 - 1);
    assert_eq!(b.get(SECONDS), 0x50);
    b.clock.step(1);
    assert_eq!(b.get(SECONDS), 0x51, "half a second after the divider's release");
    b.clock.step(9 * SECOND_NS);
    assert_eq!(b.date(), [0x20, 0, 1, 1, 0, 0, 0]);
}

#[test]
fn a_running_clock_can_be_written() {
    let mut b = Bench::new();
    b.put(MINUTES, 0x30);
    b.clock.step(SECOND_NS);
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x28, 0x23, 0x30, 0x59]);
}

#[test]
fn warns_before_an_update() {
    let mut b = Bench::new();
    assert_eq!(b.get(A) & A_UIP, 0);
    b.clock.step(750_000_000 - UIP_NS);
    assert_eq!(b.get(A) & A_UIP, A_UIP);
    b.clock.step(UIP_NS);
    assert_eq!((b.get(A) & A_UIP, b.get(SECONDS)), (0, 0x59));
}

#[test]
fn update_interrupt_every_second() {
    let mut b = Bench::new();
    b.put(B, B_24_HOURS | UPDATE);
    assert_eq!(b.wait_for_alarm(), 750_000_000);
    assert!(b.line.is_high());
    assert_eq!(b.clock.alarm(), None, "nothing to do until the guest has looked");
    assert_eq!(b.get(C) & !PERIODIC, C_IRQ | UPDATE);
    assert!(!b.line.is_high());
    assert_eq!(b.wait_for_alarm(), 1_750_000_000);
}

#[test]
fn alarm_interrupt_at_the_time_set() {
    let mut b = Bench::new();
    for (register, value) in [(HOURS_ALARM, 0x00), (MINUTES_ALARM, ANY), (SECONDS_ALARM, 0x05)] {
        b.put(register, value);
    }
    b.get(C);
    b.put(B, B_24_HOURS | ALARM);
    assert_eq!(b.wait_for_alarm(), 6_750_000_000);
    assert_eq!(b.get(C) & (C_IRQ | ALARM), C_IRQ | ALARM);
    assert_eq!(b.wait_for_alarm(), 66_750_000_000);
    b.get(C);
    // No second has this number.
    b.put(SECONDS_ALARM, 0x7f);
    assert_eq!(b.clock.alarm(), None);
}

#[test]
fn periodic_interrupt_at_its_rate() {
    let mut b = Bench::new();
    b.put(A, A_DIVIDER_RUNS | 6);
    b.put(B, B_24_HOURS | PERIODIC);
    b.get(C);
    let mut last = 0;
    for _ in 0..1024 {
        last = b.wait_for_alarm();
        assert_eq!(b.get(C) & (C_IRQ | PERIODIC), C_IRQ | PERIODIC);
    }
    assert!((999_000_000..=1_000_000_000).contains(&last), "{last}");
    b.put(A, A_DIVIDER_RUNS);
    assert_eq!(b.clock.alarm(), None);
}

#[test]
fn memory_and_time_survive_a_reset_and_the_index_reads_as_ones() {
    let mut b = Bench::new();
    b.put(0x40, 0x5a);
    b.put(MINUTES, 0);
    b.put(B, B_24_HOURS | UPDATE);
    b.rtc.reset();
    assert_eq!((b.get(0x40), b.get(MINUTES), b.get(B)), (0x5a, 0, B_24_HOURS));
    b.put(0x80 | 0x41, 7);
    assert_eq!((b.get(0x41), b.rtc.state.index), (7, 0x41));
    let mut index = [0xff];
    b.rtc.read(0, 0, &mut index);
    assert_eq!(index, [0xff]);
}

#[test]
fn a_restored_clock_takes_its_new_base_and_keeps_the_guests_correction() {
    let mut b = Bench::new();
    b.put(HOURS, 0x20);
    let record = b.rtc.save();
    let clock = Arc::new(ManualClock::default());
    let mut later = Rtc::new(START_NS + 86_400 * SECOND_NS, clock.clone(), clock, Arc::new(b.line.clone()));
    later.restore(&record).unwrap();
    b.rtc = later;
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x29, 0x20, 0x59, 0x58]);
}

#[test]
fn stands_any_access_and_survives_a_save() {
    harness::check(|| {
        let b = Bench::new();
        Rig::new(b.rtc).on_clock(&b.clock).driving(&[&b.line])
    });
}
