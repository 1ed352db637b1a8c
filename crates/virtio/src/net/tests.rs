//! An adapter through its rings, before a network that is a desk with two trays.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use backend::net::header::{self, HEADER};
use backend::net::{Frame, IpVersion, Offload, PartialChecksum, Segments};
use bus::Lifecycle;
use memory::{GuestMemory, RamRange};
use x86::Gpa;

use super::*;
use crate::queue::tests::driver::{Buffer, Driver};
use crate::transport::tests::rig::*;

const DATA: u64 = 0x2_0000;
const STEP: u64 = 0x1000;
const ADDRESS: Mac = [2, 3, 5, 7, 11, 13];

#[derive(Default)]
struct Trays {
    sent: Vec<(Vec<u8>, Offload)>,
    waiting: VecDeque<(Vec<u8>, Offload)>,
    abilities: Option<Abilities>,
    /// What waits, waits for its time.
    held: bool,
}

struct Desk {
    bell: Bell,
    trays: Arc<Mutex<Trays>>,
}

impl Network for Desk {
    fn bell(&self) -> Bell {
        self.bell.clone()
    }

    fn wait(&mut self, _: Option<Duration>) {}

    fn transmit(&mut self, frame: &[u8], offload: Offload) {
        self.trays.lock().unwrap().sent.push((frame.to_vec(), offload));
    }

    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        let mut trays = self.trays.lock().unwrap();
        trays.abilities = Some(abilities);
        if trays.held {
            return !trays.waiting.is_empty();
        }
        while let Some((frame, offload)) = trays.waiting.front() {
            let (first, rest) = frame.split_at(frame.len() / 3);
            if !deliver(&Frame { parts: [first, &[], rest], offload: *offload }) {
                return true;
            }
            trays.waiting.pop_front();
        }
        false
    }
}

struct Bench {
    rig: Rig,
    trays: Arc<Mutex<Trays>>,
}

impl Bench {
    fn new() -> Self {
        Self::with_pairs(1)
    }

    fn with_pairs(pairs: u16) -> Self {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x10_0000)]).unwrap();
        Self::in_memory(Arc::new(memory), pairs)
    }

    /// Another device for what a driver has left.
    fn in_memory_of(other: &Self, pairs: u16) -> Self {
        Self::in_memory(other.rig.memory.clone(), pairs)
    }

    fn in_memory(memory: Arc<GuestMemory>, pairs: u16) -> Self {
        let trays = Arc::new(Mutex::new(Trays::default()));
        let desk = Desk { bell: Bell::new().unwrap(), trays: trays.clone() };
        let rig = Rig::with_memory(Box::new(Net::new(Box::new(desk), ADDRESS, 1500, pairs)), memory);
        rig.enable(true);
        Self { rig, trays }
    }

    fn arrives(&self, frame: &[u8], offload: Offload) {
        self.trays.lock().unwrap().waiting.push_back((frame.to_vec(), offload));
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.memory.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    fn waiting(&self) -> usize {
        self.trays.lock().unwrap().waiting.len()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

const SEGMENTS: Offload = Offload {
    checksum: Some(PartialChecksum { start: 34, offset: 16 }),
    segments: Some(Segments { version: IpVersion::V4, headers: 54, payload: 1460 }),
    valid: false,
};

#[test]
fn the_configuration_says_what_the_adapter_is() {
    let bench = Bench::new();
    assert_eq!(bench.rig.read::<6>(0x2000), ADDRESS);
    assert_eq!(u16::from_le_bytes(bench.rig.read(0x2006)), LINK_UP);
    assert_eq!(u16::from_le_bytes(bench.rig.read(0x200a)), 1500);
    assert_eq!(bench.rig.config_word(8) >> 8, 0x02_0000);
}

#[test]
fn frames_leave_in_any_cut() {
    for features in [0, PACKED, EVENT_INDEX | INDIRECT] {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(1, features);
        let frame = pattern(700);
        let mut bytes = header::build(SEGMENTS, 0).to_vec();
        bytes.extend(&frame);
        bench.rig.memory.write(Gpa(DATA), &bytes).unwrap();
        // The header in a buffer of its own, within another, and across two.
        for cut in [12, 300, 5] {
            let rest = (DATA + u64::from(cut), 712 - cut, false);
            let name = driver.offer(&[(DATA, cut, false), rest], false).unwrap();
            bench.rig.serve();
            assert_eq!(driver.collect(), Some((name, 0)));
        }
        let sent = std::mem::take(&mut bench.trays.lock().unwrap().sent);
        assert_eq!(sent, vec![(frame, SEGMENTS); 3]);
    }
}

#[test]
fn what_is_no_frame_is_lost_and_what_has_no_header_is_a_lie() {
    let bench = Bench::new();
    let mut driver = bench.rig.start_queue(1, 0);
    let long: Vec<_> = (0..5).map(|_| (DATA, 0x4000, false)).collect();
    assert!(driver.offer(&long, false).is_some());
    bench.rig.serve();
    assert!(driver.collect().is_some() && bench.trays.lock().unwrap().sent.is_empty());
    driver.offer(&[(DATA, 11, false)], false).unwrap();
    bench.rig.serve();
    assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(driver.collect(), None);
}

fn offer(driver: &mut Driver<'_>, number: u64, len: u32) -> u16 {
    driver.offer(&[(DATA + STEP * number, len, true)], false).unwrap()
}

#[test]
fn a_frame_waits_until_there_are_buffers_enough() {
    for features in [MERGEABLE | GUEST_CHECKSUM, MERGEABLE | GUEST_CHECKSUM | PACKED, MERGEABLE | EVENT_INDEX]
    {
        let bench = Bench::new();
        let mut driver = bench.rig.start(features);
        let frame = pattern(2500);
        for round in 0..10 {
            bench.arrives(&frame, SEGMENTS);
            let first = offer(&mut driver, 0, 1000);
            bench.rig.notify();
            bench.rig.serve();
            assert_eq!((driver.collect(), bench.waiting()), (None, 1), "round {round}");
            // Nothing is out: a pause does not wait.
            bench.rig.device.lock().unwrap().pause();
            bench.rig.device.lock().unwrap().resume();
            let rest = [offer(&mut driver, 1, 1000), offer(&mut driver, 2, 1000)];
            bench.rig.notify();
            bench.rig.serve();
            assert_eq!(bench.waiting(), 0);
            assert_eq!(driver.collect(), Some((first, 1000)));
            assert_eq!(driver.collect(), Some((rest[0], 1000)));
            assert_eq!(driver.collect(), Some((rest[1], 512)));
            let seen =
                [bench.bytes(DATA, 1000), bench.bytes(DATA + STEP, 1000), bench.bytes(DATA + 2 * STEP, 512)];
            let seen = seen.concat();
            assert_eq!(seen[..HEADER], header::build(SEGMENTS, 3));
            assert!(seen[HEADER..] == frame);
        }
    }
}

#[test]
fn many_frames_come_with_one_interrupt() {
    let bench = Bench::new();
    let mut driver = bench.rig.start(0);
    for number in 0..6 {
        offer(&mut driver, number, 1600);
        bench.arrives(&pattern(60), Offload::default());
    }
    bench.rig.notify();
    bench.rig.messages();
    bench.rig.serve();
    assert_eq!(bench.rig.messages().len(), 1);
    assert_eq!((0..6).filter(|_| driver.collect().is_some_and(|(_, len)| len == 72)).count(), 6);
    assert_eq!(bench.trays.lock().unwrap().abilities, Some(Abilities::default()));
}

#[test]
fn a_frame_that_waits_for_its_time_keeps_nobody_awake() {
    for features in [0, PACKED, EVENT_INDEX] {
        let bench = Bench::new();
        let mut driver = bench.rig.start(features);
        let name = offer(&mut driver, 0, 1600);
        bench.rig.notify();
        bench.trays.lock().unwrap().held = true;
        bench.arrives(&pattern(60), Offload::default());
        assert!(!bench.rig.workers[0].step(), "it does not wait");
        bench.trays.lock().unwrap().held = false;
        bench.rig.serve();
        assert_eq!(driver.collect(), Some((name, 72)));
    }
}

#[test]
fn buffers_that_hold_no_frame_are_a_lie() {
    let lies: [(u64, &[Buffer]); 4] = [
        (0, &[(DATA, 60, true)]),
        (0, &[(DATA, 20, false), (DATA, 2000, true)]),
        (MERGEABLE, &[(DATA, 11, true)]),
        (0, &[(1 << 40, 2000, true)]),
    ];
    for (features, buffers) in lies {
        let bench = Bench::new();
        let mut driver = bench.rig.start(features);
        bench.arrives(&pattern(100), Offload::default());
        driver.offer(buffers, false).unwrap();
        driver.offer(&[(DATA, 2000, true)], false).unwrap();
        bench.rig.notify();
        bench.rig.serve();
        assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET, "{buffers:?}");
    }
}

#[test]
fn segments_need_checksums() {
    assert_eq!(abilities(GUEST_TSO4 | GUEST_TSO6), Abilities::default());
    let all = Abilities { checksum: true, tcp4: true, tcp6: true };
    assert_eq!(abilities(GUEST_TSO4 | GUEST_TSO6 | GUEST_CHECKSUM), all);
}

#[test]
fn an_adapter_goes_on_as_another() {
    let first = Bench::new();
    let mut driver = first.rig.start(MERGEABLE);
    offer(&mut driver, 0, 1600);
    first.rig.notify();
    first.rig.serve();
    first.rig.device.lock().unwrap().pause();
    let record = first.rig.device.lock().unwrap().save();

    let Bench { rig: next, trays } = Bench::in_memory_of(&first, 1);
    next.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(next.device.lock().unwrap().save(), record);
    next.device.lock().unwrap().resume();
    trays.lock().unwrap().waiting.push_back((pattern(60), Offload::default()));
    next.serve();
    assert_eq!(driver.collect().map(|(_, len)| len), Some(72));
}

// ---- several pairs of queues ---------------------------------------------------------------------------------------

const BOTH: u64 = CONTROL | SEVERAL_PAIRS;
/// The control queue's buffers.
const COMMAND: u64 = 0x2_8000;
const ANSWER: u64 = 0x2_9000;
/// What lies between the rings of one queue and the next.
const SHIFT: u64 = 0x3_0000;

/// A driver of an adapter with two pairs: of the control queue, of the second pair's receive queue, of its transmit queue.
fn two_pairs(bench: &Bench, features: u64) -> [Driver<'_>; 3] {
    let control = bench.rig.start_queue(4, BOTH | features);
    [control, bench.rig.set_up(2, features, SHIFT), bench.rig.set_up(3, features, 2 * SHIFT)]
}

/// Gives a command; what the device answers.
fn command(bench: &Bench, control: &mut Driver<'_>, bytes: &[u8]) -> Option<u8> {
    bench.rig.memory.write(Gpa(COMMAND), bytes).unwrap();
    bench.rig.memory.write(Gpa(ANSWER), &[0xaa]).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    let name = control.offer(&[(COMMAND, len, false), (ANSWER, 1, true)], false).unwrap();
    bench.rig.serve();
    (control.collect()? == (name, 1)).then(|| bench.bytes(ANSWER, 1)[0])
}

/// A frame of TCP from one port to another, as long as the shortest.
fn segment(from: u16, to: u16) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    frame[23] = 6;
    frame[34..36].copy_from_slice(&from.to_be_bytes());
    frame[36..38].copy_from_slice(&to.to_be_bytes());
    frame
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    for features in [0, PACKED, EVENT_INDEX | INDIRECT] {
        let bench = Bench::with_pairs(2);
        assert_eq!(u16::from_le_bytes(bench.rig.read(0x2008)), 2);
        let [mut control, ..] = two_pairs(&bench, features);
        let mut say = |bytes: &[u8]| command(&bench, &mut control, bytes);
        assert_eq!(say(&[4, 0, 2, 0]), Some(0));
        for nonsense in [
            &[4, 0, 0, 0][..],
            &[4, 0, 3, 0],
            &[4, 0, 0, 1],
            &[4, 1, 1, 0],
            &[0, 0, 1, 0],
            &[4, 0, 1],
            &[4, 0],
        ] {
            assert_eq!(say(nonsense), Some(1), "{nonsense:?}");
        }
        assert_eq!(say(&[4, 0, 1, 0]), Some(0));
        assert_eq!(bench.rig.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn commands_that_cannot_be_answered_are_a_lie() {
    let lies: [&[Buffer]; 4] = [
        &[(COMMAND, 4, false)],
        &[(COMMAND, 1, false), (ANSWER, 1, true)],
        &[(COMMAND, 4, false), (1 << 40, 1, true)],
        &[(1 << 40, 4, false), (ANSWER, 1, true)],
    ];
    for buffers in lies {
        let bench = Bench::with_pairs(2);
        let [mut control, ..] = two_pairs(&bench, 0);
        control.offer(buffers, false).unwrap();
        bench.rig.serve();
        assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET, "{buffers:?}");
    }
}

#[test]
fn a_flow_comes_on_the_pair_that_it_was_sent_on() {
    let bench = Bench::with_pairs(2);
    let [mut control, mut receive, mut transmit] = two_pairs(&bench, 0);
    assert_eq!(command(&bench, &mut control, &[4, 0, 2, 0]), Some(0));
    let mut bytes = header::build(Offload::default(), 0).to_vec();
    bytes.extend(segment(40_000, 80));
    bench.rig.memory.write(Gpa(DATA), &bytes).unwrap();
    transmit.offer(&[(DATA, 72, false)], false).unwrap();
    bench.rig.serve();
    assert_eq!(bench.trays.lock().unwrap().sent.len(), 1);
    let name = offer(&mut receive, 1, 1600);
    bench.arrives(&segment(80, 40_000), Offload::default());
    bench.rig.serve();
    assert_eq!((receive.collect(), bench.waiting()), (Some((name, 72)), 0));
    // Another flow is on the first pair, which has no buffers; what comes behind it waits, too.
    offer(&mut receive, 1, 1600);
    bench.arrives(&segment(80, 40_001), Offload::default());
    bench.rig.serve();
    assert_eq!((receive.collect(), bench.waiting()), (None, 1));
    // And so is every flow once the driver uses no other.
    assert_eq!(command(&bench, &mut control, &[4, 0, 1, 0]), Some(0));
    bench.trays.lock().unwrap().waiting.clear();
    bench.arrives(&segment(80, 40_000), Offload::default());
    let mut first = bench.rig.set_up(0, 0, 3 * SHIFT);
    let name = offer(&mut first, 2, 1600);
    bench.rig.serve();
    assert_eq!((first.collect(), receive.collect()), (Some((name, 72)), None));
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let bench = Bench::with_pairs(2);
    let mut control = bench.rig.start_queue(2, CONTROL);
    assert_eq!(command(&bench, &mut control, &[4, 0, 1, 0]), Some(1));
    // An adapter with one pair has no such queue.
    let bench = Bench::new();
    assert_eq!(bench.rig.negotiate(CONTROL | VERSION_1) & 8, 0);
}

#[test]
fn pairs_in_use_are_saved_until_a_reset() {
    let first = Bench::with_pairs(2);
    let [mut control, ..] = two_pairs(&first, 0);
    assert_eq!(command(&first, &mut control, &[4, 0, 2, 0]), Some(0));
    let record = first.rig.device.lock().unwrap().save();
    let next = Bench::in_memory_of(&first, 2);
    next.rig.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(next.rig.device.lock().unwrap().save(), record);
    for other in [1, 3] {
        let other = Bench::in_memory_of(&first, other);
        assert!(other.rig.device.lock().unwrap().restore(&record).is_err());
    }
    assert!(saved::restore(2, saved::save(2, 3).as_ref()).is_err() && saved::restore(2, None).is_err());
    let net =
        Net::new(Box::new(Desk { bell: Bell::new().unwrap(), trays: Arc::default() }), ADDRESS, 1500, 2);
    net.restore(saved::save(2, 2).as_ref()).unwrap();
    net.reset();
    assert_eq!(net.save(), saved::save(2, 1));
}
