use bus::Lifecycle;
use memory::FrameKind;
use x86::bits::low32;
use x86::{Gfn, Gpa};

use super::*;
use crate::queue::tests::driver::Driver;
use crate::transport::tests::rig::*;

/// Where requests are, and pages to give away.
const DATA: u64 = 0x2_0000;
const PAGES: u64 = 0x40;

struct Bench {
    rig: Rig,
    control: Control,
}

impl Bench {
    fn new() -> Self {
        let control = Control::default();
        let rig = Rig::new(Box::new(Balloon::new(control.clone())));
        rig.enable(true);
        rig.memory.fill(Gpa(0), 0x10_0000, 0x5a).unwrap();
        Self { rig, control }
    }

    /// A request that names pages.
    fn name(&self, driver: &mut Driver<'_>, pages: &[u64]) -> Option<u32> {
        let bytes: Vec<u8> = pages.iter().flat_map(|&page| low32(page).to_le_bytes()).collect();
        self.rig.memory.write(Gpa(DATA), &bytes).unwrap();
        self.rig.round(driver, &[(DATA, low32(bytes.len() as u64), false)])
    }

    fn kind(&self, gfn: u64) -> FrameKind {
        self.rig.memory.entry(Gfn(gfn)).kind
    }

    fn is_zero(&self, gfn: u64) -> bool {
        let mut page = [1; 4096];
        self.rig.memory.read(Gfn(gfn).base(), &mut page).unwrap();
        page == [0; 4096]
    }

    fn cost(&self) -> u64 {
        self.rig.memory.resident_bytes().unwrap()
    }

    fn word(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.rig.read(0x2000 + offset))
    }
}

#[test]
fn pages_go_into_the_balloon_and_come_back() {
    for features in [0, PACKED, EVENT_INDEX | INDIRECT] {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(0, features);
        let before = bench.cost();
        // Twice, and where there is no memory: neither is anybody's.
        let pages = [PAGES, PAGES + 1, PAGES, 0xffff_ffff, 0x100, PAGES + 9];
        assert_eq!(bench.name(&mut driver, &pages), Some(0));
        assert_eq!(before - bench.cost(), 3 << PAGE_SHIFT);
        assert_eq!(bench.rig.memory.ballooned_frames(), 3);
        let mut driver = bench.rig.start_queue(1, features);
        assert_eq!(bench.name(&mut driver, &[PAGES, PAGES + 9, 5]), Some(0));
        assert_eq!((bench.kind(PAGES), bench.kind(PAGES + 1)), (FrameKind::Ram, FrameKind::Ballooned));
        assert!(bench.is_zero(PAGES) && !bench.is_zero(5));
    }
}

#[test]
fn reported_pages_cost_nothing_unless_they_are_filled_with_something() {
    for queue in [3, 4] {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(queue, 0);
        let before = bench.cost();
        let report =
            [(PAGES << 12, 0x4000, true), ((PAGES + 8) << 12, 0x1800, true), (1 << 40, 0x1000, true)];
        assert_eq!(bench.rig.round(&mut driver, &report), Some(0));
        assert_eq!((before - bench.cost(), bench.control.figures().reported_bytes), (0x5000, 0x5000));
        assert_eq!(bench.kind(PAGES), FrameKind::Ram);
        assert!(bench.is_zero(PAGES + 3) && bench.is_zero(PAGES + 8) && !bench.is_zero(PAGES + 9));
        bench.rig.write(0x2000 + POISON, &0xaaaa_aaaa_u32.to_le_bytes());
        assert_eq!(bench.rig.round(&mut driver, &[((PAGES + 9) << 12, 0x1000, true)]), Some(0));
        assert!(!bench.is_zero(PAGES + 9));
        assert_eq!(bench.control.figures().reported_bytes, 0x5000);
    }
}

#[test]
fn a_report_of_more_than_there_is_gives_nothing_back() {
    let bench = Bench::new();
    let mut driver = bench.rig.start_queue(3, 0);
    let before = bench.cost();
    let all = low32(bench.rig.memory.ram_bytes());
    let report = [(PAGES << 12, 0x4000, true), (1 << 40, all, true)];
    assert_eq!(bench.rig.round(&mut driver, &report), Some(0));
    assert_eq!((bench.cost(), bench.control.figures().reported_bytes), (before, 0));
}

#[test]
fn the_driver_hears_of_a_new_target_and_says_how_far_it_is() {
    let bench = Bench::new();
    assert!(!bench.control.figures().driven);
    drop(bench.rig.start(0));
    bench.rig.serve();
    assert!(bench.control.figures().driven);
    bench.rig.messages();
    let generation = bench.rig.read::<1>(0x15);
    bench.control.aim(0x12_3456);
    bench.rig.serve();
    assert_eq!(bench.rig.messages(), [(0xfee0_0000, 0x40)], "the configuration's vector");
    assert_ne!(bench.rig.read::<1>(0x15), generation);
    assert_eq!(bench.word(0), 0x123);
    bench.rig.serve();
    assert_eq!(bench.rig.messages(), [], "once");
    bench.rig.write(0x2000 + ACTUAL, &0x120_u32.to_le_bytes());
    bench.rig.write(0x2000, &7_u32.to_le_bytes());
    bench.rig.write(0x2000 + ACTUAL + 3, &[1]);
    assert_eq!((bench.word(0), bench.word(ACTUAL)), (0x123, 0x100_0120), "the target is the host's");
    let figures = bench.control.figures();
    assert_eq!((figures.target_bytes, figures.actual_bytes), (0x12_3000, 0x100_0120 << 12));
    bench.rig.negotiate(VERSION_1);
    assert_eq!((bench.word(0), bench.word(ACTUAL), bench.word(POISON)), (0x123, 0, 0));
    assert!(!bench.control.figures().driven);
}

fn statistics(values: &[(u16, u64)]) -> Vec<u8> {
    values.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn statistics_come_when_somebody_asks() {
    for features in [0, PACKED, EVENT_INDEX] {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(2, features);
        let give = |driver: &mut Driver<'_>, values: &[(u16, u64)]| {
            let bytes = statistics(values);
            bench.rig.memory.write(Gpa(DATA), &bytes).unwrap();
            driver.offer(&[(DATA, low32(bytes.len() as u64), false)], false).unwrap();
            bench.rig.notify();
            bench.rig.serve();
        };
        give(&mut driver, &[(4, 1)]);
        assert_eq!(driver.collect(), None, "nobody has asked");
        assert_eq!(bench.control.figures().statistics, Statistics::default());
        for round in 1..6 {
            // That was a question.
            bench.rig.serve();
            assert!(driver.collect().is_some());
            // One tag is nobody's, one comes twice.
            give(&mut driver, &[(4, 1000), (5, 2000), (99, 3), (4, round)]);
            assert_eq!(driver.collect(), None, "it is kept for the next question");
            let seen: Vec<_> = bench.control.figures().statistics.iter().collect();
            let expected = [("free_bytes", round), ("total_bytes", 2000)];
            assert_eq!(seen, expected.map(|(name, value)| Statistic { name, value }));
        }
    }
}

#[test]
fn a_driver_that_gives_away_what_it_uses_harms_itself() {
    // Its ring, its request, everything.
    let bench = Bench::new();
    let mut driver = bench.rig.start_queue(0, 0);
    let all: Vec<u64> = (0..0x100).collect();
    bench.name(&mut driver, &all);
    assert!(bench.rig.memory.ballooned_frames() > 0xf0);
    // The device goes on, after a reset at the latest.
    bench.rig.memory.fill(Gpa(0), 0x10_0000, 0).unwrap();
    assert_eq!(bench.rig.memory.ballooned_frames(), 0);
    let mut driver = bench.rig.start_queue(0, 0);
    assert_eq!(bench.name(&mut driver, &[PAGES]), Some(0));
    // More than one request may name.
    let long: Vec<_> = (0..6).map(|_| (DATA, 0x4000, false)).collect();
    assert!(driver.offer(&long, false).is_some());
    bench.rig.serve();
    assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_balloon_goes_on_as_another() {
    let first = Bench::new();
    let mut driver = first.rig.start_queue(0, 0);
    first.control.aim(40 << 12);
    assert_eq!(first.name(&mut driver, &[PAGES, PAGES + 1]), Some(0));
    first.rig.write(0x2000 + ACTUAL, &2_u32.to_le_bytes());
    first.rig.device.lock().unwrap().pause();
    let record = first.rig.device.lock().unwrap().save();
    let control = Control::default();
    let next = Rig::with_memory(Box::new(Balloon::new(control.clone())), first.rig.memory.clone());
    next.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(next.device.lock().unwrap().save(), record);
    next.device.lock().unwrap().resume();
    next.serve();
    let figures = control.figures();
    assert_eq!((figures.target_bytes, figures.actual_bytes, figures.driven), (40 << 12, 2 << 12, true));
    assert_eq!(next.messages(), [], "the driver knows the target");
    assert!(saved::restore(&mut Known::default(), None).is_err());
}
