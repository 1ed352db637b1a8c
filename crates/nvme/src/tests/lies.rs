//! Drivers that lie.

use bus::Device;
use x86::Gpa;

use super::rig::*;
use super::{DATASET, FLUSH, READ, WRITE, WRITE_ZEROES};

#[test]
fn what_cannot_be_done_is_said_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let rig = Rig::on(&path, false);
    let (_, mut queue) = rig.start(true);
    let before = std::fs::read(&path).unwrap();
    let sectors = BYTES / 512;
    let fused = Command { flags: 1, ..io(READ, 0, 1, [DATA, 0]) };
    let list = Command { flags: 0x40, ..io(READ, 0, 1, [DATA, 0]) };
    let other = Command { namespace: 2, ..io(READ, 0, 1, [DATA, 0]) };
    let all = Command { namespace: u32::MAX, ..io(WRITE, 0, 1, [DATA, 0]) };
    for (command, status) in [
        (io(READ, sectors, 1, [DATA, 0]), 0x80),
        (io(READ, sectors - 1, 2, [DATA, 0]), 0x80),
        (io(WRITE, u64::MAX, 1, [DATA, 0]), 0x80),
        (io(WRITE, u64::MAX / 512, 1, [DATA, 0]), 0x80),
        (io(WRITE_ZEROES, sectors, 65536, [0, 0]), 0x80),
        (io(READ, 0, 2049, [DATA, LIST]), 2),
        (io(READ, 0, 1, [1 << 40, 0]), 4),
        (io(WRITE, 0, 16, [DATA, 1 << 40]), 4),
        (io(WRITE, 0, 64, [DATA, 1 << 40]), 4),
        (io(READ, 0, 1, [DATA + 1, 0]), 0x13),
        (io(READ, 0, 16, [DATA, DATA + 4]), 0x13),
        (io(READ, 0, 64, [DATA, LIST + 4]), 0x13),
        (io(DATASET, 0, 1, [1 << 40, 0]), 4),
        (io(0x7f, 0, 1, [DATA, 0]), 1),
        (fused, 2),
        (list, 2),
        (other, 0x0b),
        (all, 0x0b),
    ] {
        assert_eq!(queue.run(&rig, command).status, status, "{command:x?}");
    }
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(rig.read(STATUS), 1, "none of that is the controller's failure");
    let everywhere = Command { namespace: u32::MAX, ..io(FLUSH, 0, 1, [0, 0]) };
    assert_eq!(queue.run(&rig, everywhere).status, 0);
}

#[test]
fn a_disk_that_is_only_read_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let rig = Rig::on(&path, true);
    let (mut admin_queue, mut queue) = rig.start(true);
    let before = std::fs::read(&path).unwrap();
    for opcode in [WRITE, WRITE_ZEROES, DATASET] {
        assert_eq!(queue.run(&rig, io(opcode, 0, 1, [DATA, 0])).status, 0x20, "{opcode}");
    }
    assert_eq!(queue.run(&rig, io(READ, 9, 1, [DATA, 0])).status, 0);
    assert_eq!(queue.run(&rig, io(FLUSH, 0, 1, [0, 0])).status, 0);
    admin_queue.run(&rig, admin(6, 1, 0, 0));
    assert_eq!((rig.bytes(DATA + 99, 1), std::fs::read(&path).unwrap() == before), (vec![1], true));
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (mut queue, _) = rig.start(true);
    let make = |opcode, id: u32, size: u32, base, word11| Command {
        opcode,
        prp: [base, 0],
        words: [(size - 1) << 16 | id, word11, 0, 0, 0, 0],
        ..Command::default()
    };
    let (completion, submission) = (5, 1);
    for (command, status) in [
        (make(completion, 0, 8, 0x5000, 3), 0x101),
        (make(completion, 1, 8, 0x5000, 3), 0x101),
        (make(completion, 3, 8, 0x5000, 3), 0x101),
        (make(completion, 2, 1, 0x5000, 3), 0x102),
        (make(completion, 2, 1025, 0x5000, 3), 0x102),
        (make(completion, 2, 8, 0x5010, 3), 0x13),
        (make(completion, 2, 8, 0x5000, 2), 2),
        (make(completion, 2, 8, 0x5000, 3 << 16 | 3), 0x108),
        (make(submission, 2, 8, 0x6000, 2 << 16 | 1), 0x100),
        (make(submission, 2, 8, 0x6000, 1), 0x101),
        (make(submission, 2, 8, 0x6000, 9 << 16 | 1), 0x101),
        (make(submission, 1, 8, 0x6000, 1 << 16 | 1), 0x101),
        (admin(4, 0, 0, 0), 0x101),
        (admin(4, 0, 2, 0), 0x101),
        (admin(4, 0, 1, 0), 0x10c),
        (admin(0, 0, 0, 0), 0x101),
        (admin(0, 0, 7, 0), 0x101),
    ] {
        assert_eq!(queue.run(&rig, command).status, status, "{command:x?}");
    }
    assert_eq!(queue.run(&rig, admin(0, 0, 1, 0)).status, 0);
    assert_eq!(queue.run(&rig, admin(4, 0, 1, 0)).status, 0);
}

#[test]
fn a_doorbell_that_cannot_be_is_an_event_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (mut admin_queue, mut queue) = rig.start(true);
    let ask = |queue: &mut Pair| {
        let id = queue.put(&rig, admin(0x0c, 0, 0, 0));
        queue.ring(&rig);
        rig.workers[0].step();
        id
    };
    let first = ask(&mut admin_queue);
    assert_eq!(admin_queue.peek(&rig), None);
    rig.write(0x1000 + 8, SIZE.into());
    let told = admin_queue.peek(&rig).unwrap();
    assert_eq!((told.command, told.result, told.status), (first, 0x1_0100, 0));
    // Of a queue that is not there, of one that there cannot be, and a head past the tail.
    for (register, value) in [(0x1010, 1), (0x1ffc, 1), (0x100c, 3)] {
        rig.write(register, value);
    }
    admin_queue.consume(&rig);
    let second = ask(&mut admin_queue);
    assert_eq!(admin_queue.peek(&rig), None, "until the log is read");
    let read = admin_queue.put(&rig, admin(2, 0, 0xf << 16 | 1, 0));
    admin_queue.ring(&rig);
    rig.workers[0].step();
    let mut told = [0; 2].map(|_| admin_queue.peek(&rig).unwrap());
    told.sort_by_key(|done| done.command);
    assert_eq!(told.map(|done| (done.command, done.result)), [(second, 0x1_0000), (read, 0)]);
    admin_queue.consume(&rig);
    assert_eq!(queue.run(&rig, io(READ, 1, 1, [DATA, 0])).status, 0, "the queue is as it was");
    for _ in 0..4 {
        ask(&mut admin_queue);
    }
    assert_eq!(admin_queue.run(&rig, admin(0x0c, 0, 0, 0)).status, 0x105);
}

#[test]
fn queues_outside_of_memory_leave_the_controller_failed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    rig.plug_in(true);
    for register in [0x2c, 0x34] {
        rig.enable();
        rig.write(CONFIGURATION, 0);
        rig.write(register, 1);
        rig.write(CONFIGURATION, ENABLED);
        assert_eq!(rig.read(STATUS), 1);
        rig.write(0x1000, 1);
        rig.workers[0].step();
        assert_eq!(rig.read(STATUS) & 2, 2, "{register:x}");
        assert!(!rig.workers[0].step());
    }
    // Nor is it ready with what there is not.
    for configuration in [ENABLED | 1 << 7, ENABLED | 1 << 4, ENABLED | 1 << 11] {
        rig.write(CONFIGURATION, 0);
        rig.write(CONFIGURATION, configuration);
        assert_eq!(rig.read(STATUS), 2, "{configuration:x}");
    }
    rig.write(CONFIGURATION, 0);
    rig.write(0x24, 0);
    rig.write(CONFIGURATION, ENABLED);
    assert_eq!(rig.read(STATUS), 2, "rings of one entry");
    rig.enable();
}

#[test]
fn accesses_of_odd_widths_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (admin_queue, _) = rig.start(true);
    let mut device = rig.device.lock().unwrap();
    for offset in (0..0x4000).step_by(3) {
        for len in 1..=8 {
            device.read(0, offset, &mut [0; 8][..len]);
            if !(0x14..0x38).contains(&(offset + 7)) && offset > 0x38 {
                device.write(0, offset, &[0xff; 8][..len]);
            }
        }
    }
    drop(device);
    rig.memory.fill(Gpa(DATA), 8, 0).unwrap();
    admin_queue.consume(&rig);
    assert_eq!(rig.read(STATUS), 1);
}
