//! The transport, with a device that gives back what it gets.

pub(crate) mod rig;

use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bus::Lifecycle;
use bus::pci::Slot;
use state::Record;
use x86::Gpa;

use super::*;
use crate::service::{Kind, Malformed, Request};
use rig::*;

const PATIENCE: Duration = Duration::from_secs(60);
const PATIENT: &str = "a worker comes to this point";

/// The device's ends of a [`Gate`].
type DeviceGate = (Mutex<Sender<()>>, Mutex<Receiver<()>>);

/// Copies what it reads to where it writes; what is to be read but cannot is malformed. Waits for a permit before each, if
/// it was made so.
#[derive(Default)]
struct Echo {
    gate: Option<DeviceGate>,
}

/// The test's ends: hears of each request that began, lets it end.
struct Gate {
    began: Receiver<()>,
    permit: Sender<()>,
}

impl Echo {
    fn gated() -> (Self, Gate) {
        let ((begin, began), (permit, permits)) = (channel(), channel());
        (Self { gate: Some((Mutex::new(begin), Mutex::new(permits))) }, Gate { began, permit })
    }
}

impl Service for Echo {
    fn kind(&self) -> Kind {
        Kind { name: "echo", id: 42, class: 0xff_0000 }
    }

    fn features(&self) -> u64 {
        1 << 3
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(b"configuration")
    }

    fn serve(&self, request: &Request<'_>) -> Result<u32, Malformed> {
        if let Some((begin, permits)) = &self.gate {
            begin.lock().unwrap().send(()).unwrap();
            permits.lock().unwrap().recv().unwrap();
        }
        let mut bytes = vec![0; usize::try_from(request.chain.readable.bytes()).unwrap().min(4096)];
        request.chain.readable.read(request.memory, &mut bytes).map_err(|_| Malformed)?;
        let written = request.chain.writable.write(request.memory, &bytes).map_err(|_| Malformed)?;
        Ok(u32::try_from(written).unwrap())
    }
}

fn echo() -> Rig {
    Rig::new(Box::new(Echo::default()))
}

const BUFFERS: [(u64, u32, bool); 2] = [(0x8000, 5, false), (0x9000, 10, true)];

fn seen(rig: &Rig) -> [u8; 5] {
    let mut bytes = [0; 5];
    rig.memory.read(Gpa(0x9000), &mut bytes).unwrap();
    rig.memory.fill(Gpa(0x9000), 10, 0).unwrap();
    bytes
}

#[test]
fn a_driver_finds_everything_by_the_capabilities() {
    let rig = echo();
    assert_eq!((rig.config_word(0), rig.config_word(8)), (0x106a_1af4, 0xff00_0001));
    rig.enable(false);
    let at = |kind| rig.capability(|id, found| id == 9 && found == kind).unwrap();
    let place = |kind| (rig.config_word(at(kind) + 4) & 0xff, u64::from(rig.config_word(at(kind) + 8)));
    assert_eq!([1, 2, 3, 4].map(place), [(0, 0), (0, 0x3000), (0, 0x1000), (0, 0x2000)]);
    assert_eq!((rig.config_word(at(4) + 12), rig.config_word(at(2) + 16)), (13, 4));
    assert_eq!(&rig.read::<8>(0x2005), b"guration");
    assert_eq!(rig.read::<8>(0x2ffc), [0; 8]);
    let features = |select: u32| {
        rig.write(0, &select.to_le_bytes());
        u32::from_le_bytes(rig.read(4))
    };
    assert_eq!([features(0), features(1), features(2)], [0x3000_0008, 0b101, 0]);
    // The same registers through configuration space.
    let access = at(5);
    rig.config_write(access + 8, &0x2000u32.to_le_bytes());
    rig.config_write(access + 12, &4u32.to_le_bytes());
    assert_eq!(rig.config_word(access + 16).to_le_bytes(), *b"conf");
    rig.config_write(access + 8, &0x14u32.to_le_bytes());
    rig.config_write(access + 12, &1u32.to_le_bytes());
    rig.config_write(access + 16, &[1]);
    assert_eq!((rig.status(), rig.config_word(access + 16) & 0xff), (1, 1));
    for length in [0, 3, 8, u32::MAX] {
        rig.config_write(access + 12, &length.to_le_bytes());
        rig.config_write(access + 16, &[3]);
    }
    assert_eq!(rig.status(), 1, "accesses that cannot be");
}

#[test]
fn registers_move_and_answer_only_when_enabled() {
    let rig = echo();
    let magic = |base: u64| {
        let mut data = [0; 2];
        rig.slot.read(base + 0x2000, &mut data);
        data
    };
    assert_eq!(magic(Slot::HOME), [0xff; 2], "memory is not enabled");
    rig.enable(false);
    assert_eq!(magic(Slot::HOME), *b"co");
    rig.config_write(0x10, &x86::bits::low32(Slot::HOME + 0x2_0000).to_le_bytes());
    assert_eq!((magic(Slot::HOME), magic(Slot::HOME + 0x2_0000)), ([0xff; 2], *b"co"));
    rig.config_write(0x14, &[1]);
    assert_eq!(magic(Slot::HOME + 0x2_0000), [0xff; 2], "outside the bridge's window");
    rig.device.lock().unwrap().reset();
    rig.enable(false);
    assert_eq!(magic(Slot::HOME), *b"co");
}

#[test]
fn chains_are_served_and_interrupt_once_for_a_batch() {
    for features in [0, PACKED, EVENT_INDEX, PACKED | EVENT_INDEX | INDIRECT] {
        let rig = echo();
        rig.enable(true);
        let mut driver = rig.start(features);
        rig.memory.write(Gpa(0x8000), b"hello").unwrap();
        assert_eq!(rig.round(&mut driver, &BUFFERS), Some(5));
        assert_eq!((seen(&rig), rig.messages()), (*b"hello", vec![(0xfee0_0000, 0x41)]));
        // Interrupts for the next chain, where there is an event index.
        driver.wish(crate::queue::tests::driver::Wish::After(0));
        for _ in 0..3 {
            driver.offer(&BUFFERS, features & INDIRECT != 0).unwrap();
        }
        rig.notify();
        rig.serve();
        let back: Vec<_> = std::iter::from_fn(|| driver.collect()).map(|(_, written)| written).collect();
        assert_eq!((back, rig.messages().len()), (vec![5; 3], 1), "{features:#x}");
        assert!(!rig.slot.line.is_high());
    }
}

#[test]
fn without_messages_the_pin_is_driven() {
    let rig = echo();
    rig.enable(false);
    let mut driver = rig.start(0);
    assert_eq!(rig.round(&mut driver, &BUFFERS), Some(5));
    assert!(rig.slot.line.is_high() && rig.messages().is_empty());
    assert_eq!(rig.config_word(4) >> 19 & 1, 1, "interrupt status");
    rig.config_write(5, &[4]);
    assert!(!rig.slot.line.is_high(), "disabled");
    rig.config_write(5, &[0]);
    assert_eq!((rig.slot.line.is_high(), rig.read::<1>(0x1000), rig.slot.line.is_high()), (true, [1], false));
    assert_eq!(rig.read::<1>(0x1000), [0]);
}

#[test]
fn features_are_agreed_on_or_not() {
    let rig = echo();
    rig.enable(false);
    assert_eq!(rig.negotiate(VERSION_1), 11);
    assert_eq!(rig.negotiate(0), 3, "a legacy driver");
    rig.write(0x14, &[15]);
    assert_eq!(rig.status(), 3, "no driver without features");
    rig.write(0x1c, &[1, 0]);
    assert_eq!(rig.read::<2>(0x1c), [0, 0], "nor a queue");
    assert_eq!(rig.negotiate(VERSION_1 | 1 << 5), 3, "not offered");
    assert_eq!(rig.negotiate(VERSION_1 | 1 << 3), 11);
    rig.write(0x0c, &[0xff; 4]);
    assert_eq!(rig.read::<4>(0x0c), [1, 0, 0, 0], "agreed features stay");
    // Vectors and queues that do not exist; sizes too great.
    rig.write(0x10, &[2, 0]);
    assert_eq!(rig.read::<2>(0x10), [0xff; 2]);
    rig.write(0x18, &257u16.to_le_bytes());
    assert_eq!(rig.read::<2>(0x18), 256u16.to_le_bytes());
    rig.write(0x16, &[1, 0]);
    assert_eq!(rig.read::<8>(0x18), [0; 8]);
}

#[test]
fn a_driver_that_lies_gets_a_device_that_needs_a_reset() {
    for features in [0, PACKED] {
        let rig = echo();
        rig.enable(true);
        let mut driver = rig.start(features);
        // Data where there is no memory is malformed to this device.
        assert_eq!(rig.round(&mut driver, &[(1 << 40, 5, false)]), None);
        assert_eq!((rig.status(), rig.messages()), (15 | NEEDS_RESET, vec![(0xfee0_0000, 0x40)]));
        driver.offer(&BUFFERS, false).unwrap();
        rig.notify();
        rig.serve();
        assert_eq!((driver.collect(), rig.messages()), (None, vec![]), "nothing until the reset");
        drop(driver);
        let mut driver = rig.start(features);
        assert_eq!(rig.round(&mut driver, &BUFFERS), Some(5));
        // A ring that lies; and a queue where none can be.
        rig.memory.fill(Gpa(0x3000), 0x100, 0x81).unwrap();
        for place in 0..8 {
            // Available, and goes on.
            rig.memory.write_word(Gpa(0x1000 + 16 * place + 14), 0x81_u16).unwrap();
        }
        rig.notify();
        rig.serve();
        assert_eq!(rig.status(), 15 | NEEDS_RESET);
        assert_eq!(rig.negotiate(VERSION_1 | features), 11);
        rig.write(0x20, &[8]);
        rig.write(0x1c, &[1, 0]);
        assert_eq!((rig.status(), rig.read::<2>(0x1c)), (11 | NEEDS_RESET, [0, 0]));
    }
}

#[test]
fn without_bus_mastering_nothing_is_touched() {
    let rig = echo();
    rig.enable(true);
    let mut driver = rig.start(0);
    rig.config_write(4, &[2]);
    assert_eq!(rig.round(&mut driver, &BUFFERS), None);
    rig.config_write(4, &[6]);
    rig.serve();
    assert_eq!(driver.collect().map(|back| back.1), Some(5));
}

/// A worker of its own on a thread, and a device whose requests wait for a permit.
fn busy() -> (Rig, Gate, std::thread::JoinHandle<()>) {
    let (echo, gate) = Echo::gated();
    let mut rig = Rig::new(Box::new(echo));
    let worker = rig.workers.pop().unwrap();
    let thread = std::thread::spawn(move || worker.live());
    rig.enable(true);
    (rig, gate, thread)
}

#[test]
fn a_reset_waits_for_requests_without_stopping_the_driver() {
    let (rig, gate, thread) = busy();
    let mut driver = rig.start(0);
    driver.offer(&BUFFERS, false).unwrap();
    rig.notify();
    gate.began.recv_timeout(PATIENCE).expect(PATIENT);
    rig.write(0x14, &[0]);
    assert_ne!(rig.status(), 0, "the request still uses memory");
    rig.write(0x14, &[1]);
    gate.permit.send(()).unwrap();
    while rig.status() != 0 {
        std::thread::yield_now();
    }
    assert_eq!((driver.collect(), rig.messages()), (None, vec![]), "what came back was dropped");
    drop(driver);
    // The machine's own reset waits itself.
    let mut driver = rig.start(0);
    driver.offer(&BUFFERS, false).unwrap();
    rig.notify();
    gate.began.recv_timeout(PATIENCE).expect(PATIENT);
    gate.permit.send(()).unwrap();
    rig.device.lock().unwrap().reset();
    assert_eq!(read_device(&mut rig.device.lock().unwrap(), 0x14), 0);
    rig.device.lock().unwrap().end();
    thread.join().unwrap();
}

#[test]
fn a_paused_device_is_quiet_and_goes_on_elsewhere() {
    for features in [0, PACKED | EVENT_INDEX] {
        let (rig, gate, thread) = busy();
        rig.memory.write(Gpa(0x8000), b"hello").unwrap();
        let mut driver = rig.start(features);
        driver.offer(&BUFFERS, false).unwrap();
        rig.notify();
        gate.began.recv_timeout(PATIENCE).expect(PATIENT);
        gate.permit.send(()).unwrap();
        rig.device.lock().unwrap().pause();
        assert_eq!(driver.collect().map(|back| back.1), Some(5), "a pause ends what has begun");
        driver.offer(&BUFFERS, false).unwrap();
        rig.notify();
        let record = rig.device.lock().unwrap().save();
        assert!(gate.began.try_recv().is_err(), "nothing begins in a pause");

        seen(&rig);
        let next = Rig::with_memory(Box::new(Echo::default()), rig.memory.clone());
        next.device.lock().unwrap().restore(&record).unwrap();
        assert_eq!(next.device.lock().unwrap().save(), record);
        next.device.lock().unwrap().resume();
        next.serve();
        assert_eq!(driver.collect().map(|back| back.1), Some(5), "nobody notified this one");
        assert_eq!((seen(&next), next.messages().len()), (*b"hello", 1));
        rig.device.lock().unwrap().end();
        thread.join().unwrap();
    }
}

/// One request may be long; a pause must not wait for all that were taken with it.
#[test]
fn a_pause_waits_for_one_request_of_a_batch() {
    for features in [0, PACKED | EVENT_INDEX] {
        let (rig, gate, thread) = busy();
        let mut driver = rig.start(features);
        for _ in 0..3 {
            driver.offer(&BUFFERS, false).unwrap();
        }
        rig.notify();
        gate.began.recv_timeout(PATIENCE).expect(PATIENT);
        let shared = rig.device.lock().unwrap().0.clone();
        shared.lock().enter(Phase::Paused);
        gate.permit.send(()).unwrap();
        rig.device.lock().unwrap().pause();
        let mut back = || std::iter::from_fn(|| driver.collect()).count();
        assert_eq!((back(), gate.began.try_recv().is_err()), (1, true), "{features:#x}");
        rig.device.lock().unwrap().resume();
        for _ in 0..2 {
            gate.began.recv_timeout(PATIENCE).expect(PATIENT);
            gate.permit.send(()).unwrap();
        }
        rig.device.lock().unwrap().pause();
        assert_eq!(back(), 2, "the others were put back");
        rig.device.lock().unwrap().end();
        thread.join().unwrap();
    }
}

#[test]
fn records_of_others_and_damaged_ones_are_refused() {
    let rig = echo();
    rig.enable(true);
    let _driver = rig.start(PACKED);
    let good = rig.device.lock().unwrap().save();
    let other = Rig::new(Box::new(crate::rng::Rng));
    let before = other.device.lock().unwrap().save();
    assert!(other.device.lock().unwrap().restore(&good).is_err());
    assert_eq!(other.device.lock().unwrap().save(), before);
    assert!(rig.device.lock().unwrap().restore(&Record::encode(&x86::CpuState::reset())).is_err());
    rig.device.lock().unwrap().restore(&good).unwrap();
}
