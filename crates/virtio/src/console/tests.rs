//! Ports through their rings.

use bus::Lifecycle;
use x86::Gpa;

use super::*;
use crate::transport::tests::rig::*;

const DATA: u64 = 0x2_0000;
const ANSWER: u64 = 0x3_0000;

struct Bench {
    rig: Rig,
    ports: Vec<Arc<Port>>,
}

fn ports() -> (Vec<Arc<Port>>, Bell) {
    let bell = Bell::new().unwrap();
    (["one", "two"].map(|name| Arc::new(Port::new(name, bell.clone()))).to_vec(), bell)
}

impl Bench {
    fn new() -> Self {
        let (ports, bell) = ports();
        let rig = Rig::new(Box::new(Console::new(ports.clone(), bell).unwrap()));
        rig.enable(true);
        Self { rig, ports }
    }

    /// What the driver says.
    fn say(&self, messages: &[(u32, u16, u16)]) {
        let mut driver = self.rig.start_queue(3, MULTIPORT);
        for &(port, event, value) in messages {
            let bytes = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
            self.rig.memory.write(Gpa(DATA), &bytes).unwrap();
            driver.offer(&[(DATA, 8, false)], false).unwrap();
            self.rig.serve();
            assert!(driver.collect().is_some());
        }
    }

    fn bytes(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.rig.memory.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn the_configuration_says_how_many_ports_there_are() {
    let bench = Bench::new();
    assert_eq!(u32::from_le_bytes(bench.rig.read(0x2004)), 2);
    assert_eq!(bench.rig.config_word(8) >> 8, 0x07_8000);
    assert_eq!((queues_of(0), queues_of(1), queues_of(2)), ((0, 1), (4, 5), (6, 7)));
}

/// A driver model, step by step, on the messages alone: rings are the same for every device.
#[test]
fn a_driver_learns_of_ports_their_names_and_whether_they_are_open() {
    let (ports, _) = ports();
    let mut control = Control::new(2);
    let message = |port, event, value| {
        let bytes = Message::parse(&[port, 0, 0, 0, event, 0, value, 0]);
        assert_eq!(bytes.bytes(&[]), [port, 0, 0, 0, event, 0, value, 0]);
        bytes
    };
    let told = |control: &mut Control| {
        let mut told = Vec::new();
        while let Some(message) = control.next(&ports) {
            control.told(message);
            told.push(message);
        }
        told
    };
    assert_eq!(told(&mut control), []);
    control.hear(message(1, 3, 1));
    control.hear(message(0, 0, 1));
    assert_eq!(told(&mut control), [message(0, 1, 1), message(1, 1, 1)]);
    control.hear(message(1, 3, 1));
    control.hear(message(9, 3, 1));
    let news = told(&mut control);
    assert_eq!(news, [message(1, 7, 1), message(1, 6, 1)]);
    assert_eq!(&news[0].bytes(&ports)[HEADER_LEN..], b"two");
    assert!(!control.has_open(1));
    control.hear(message(1, 6, 1));
    assert!(control.has_open(1) && !control.has_open(0));
    ports[1].write(b"x");
    ports[1].close();
    assert_eq!(told(&mut control), [], "the guest reads what is left first");
    ports[1].take(1);
    assert_eq!(told(&mut control), [message(1, 6, 0)]);
    control.hear(message(0, 0, 1));
    assert_eq!(told(&mut control).len(), 2, "a driver that begins anew is told anew");
}

const HEADER_LEN: usize = control::HEADER;

#[test]
fn a_driver_that_knows_one_port_uses_it_at_once() {
    for features in [0, PACKED, EVENT_INDEX] {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(1, features);
        bench.rig.memory.write(Gpa(DATA), b"from the guest").unwrap();
        assert_eq!(bench.rig.round(&mut driver, &[(DATA, 5, false), (DATA + 5, 9, false)]), Some(0));
        let mut got = Vec::new();
        assert!(bench.ports[0].read(&mut got) && got == b"from the guest");
        let mut driver = bench.rig.start_queue(0, features);
        // No input: the chain stays with the driver.
        let name = driver.offer(&[(ANSWER, 4, true)], false).unwrap();
        bench.rig.serve();
        assert_eq!(driver.collect(), None);
        bench.ports[0].write(b"to the guest");
        bench.rig.serve();
        assert_eq!(driver.collect(), Some((name, 4)));
        assert_eq!(bench.rig.round(&mut driver, &[(ANSWER + 4, 100, true)]), Some(8));
        assert_eq!(bench.bytes(ANSWER, 12), b"to the guest");
    }
}

#[test]
fn output_waits_for_room_and_none_is_lost() {
    let bench = Bench::new();
    let mut driver = bench.rig.start_queue(1, 0);
    let part = vec![7; 0x1_0000];
    bench.rig.memory.write(Gpa(DATA), &part).unwrap();
    let mut taken = 0;
    while bench.rig.round(&mut driver, &[(DATA, 0x1_0000, false)]).is_some() {
        taken += 1;
        assert!(taken < 100);
    }
    let mut got = Vec::new();
    bench.ports[0].read(&mut got);
    assert_eq!(got.len(), taken * part.len());
    bench.rig.serve();
    assert!(driver.collect().is_some(), "the one that waited");
}

#[test]
fn a_device_goes_on_as_another() {
    let bench = Bench::new();
    bench.say(&[(0, 0, 1)]);
    let (ports, bell) = ports();
    let other = Rig::with_memory(Box::new(Console::new(ports, bell).unwrap()), bench.rig.memory.clone());
    let record = {
        let mut device = bench.rig.device.lock().unwrap();
        device.pause();
        device.save()
    };
    other.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(other.device.lock().unwrap().save(), record);
    let bell = Bell::new().unwrap();
    let fewer = Rig::new(Box::new(Console::new(vec![Arc::new(Port::new("x", bell.clone()))], bell).unwrap()));
    assert!(fewer.device.lock().unwrap().restore(&record).is_err());
}

#[test]
fn lies_need_a_reset() {
    for (queue, buffer) in [(3, (DATA, 7, false)), (3, (0xffff_f000, 8, false)), (1, (0xffff_f000, 8, false))]
    {
        let bench = Bench::new();
        let mut driver = bench.rig.start_queue(queue, if queue == 3 { MULTIPORT } else { 0 });
        driver.offer(&[buffer], false).unwrap();
        bench.rig.serve();
        assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET, "{queue} {buffer:?}");
    }
}
