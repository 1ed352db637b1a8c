//! The controller as a driver meets it, on a real file.

mod lies;
mod life;
mod rig;

use std::os::unix::fs::MetadataExt;

use x86::Gpa;

use rig::*;

const READ: u8 = 2;
const WRITE: u8 = 1;
const FLUSH: u8 = 0;
const WRITE_ZEROES: u8 = 8;
const DATASET: u8 = 9;

#[test]
fn a_driver_finds_what_it_looks_for() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    assert_eq!(rig.config_word(8) >> 8, 0x01_0802);
    let (mut admin_queue, _) = rig.start(true);
    assert_eq!((rig.read(8), rig.read(0) & 0xffff, rig.read(4)), (0x0001_0400, 1023, 1 << 5));
    let mut identify = |cns, namespace| {
        rig.memory.fill(Gpa(DATA), 4096, 0xee).unwrap();
        let done = admin_queue.run(&rig, admin(6, namespace, cns, 0));
        (done.status, rig.bytes(DATA, 4096))
    };
    let (status, controller) = identify(1, 0);
    assert_eq!((status, &controller[4..9], &controller[24..34]), (0, &b"disk0"[..], &b"Umbra NVMe"[..]));
    assert_eq!((&controller[512..514], controller[516]), (&[0x66, 0x44][..], 1));
    let (status, namespace) = identify(0, 1);
    assert_eq!((status, &namespace[..8]), (0, &(BYTES / 512).to_le_bytes()[..]));
    assert_eq!(identify(2, 0).1[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(3, 1).1[..5], [3, 16, 0, 0, b'u']);
    assert_eq!([identify(0, 2).0, identify(3, 0).0, identify(2, u32::MAX).0], [0x0b; 3]);
    assert_eq!(identify(0x13, 0).0, 2);
    // Numbers of queues are asked for before there are any.
    let done = admin_queue.run(&rig, admin(9, 0, 7, 0xfffe_fffe));
    assert_eq!(done.status, 0x0c, "too late");
    let done = admin_queue.run(&rig, admin(10, 0, 7, 0));
    assert_eq!((done.status, done.result), (0, 1 << 16 | 1));
    assert_eq!(admin_queue.run(&rig, admin(8, 0, 1, 0)).result, 1, "nothing is aborted");
    assert_eq!(admin_queue.run(&rig, admin(0x80, 0, 0, 0)).status, 1);
}

#[test]
fn data_goes_both_ways_by_entries_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let rig = Rig::on(&path, false);
    let (_, mut queue) = rig.start(true);
    // Two pages that are apart, the first begun in its middle.
    assert_eq!(queue.run(&rig, io(READ, 7, 9, [DATA + 0xa00, DATA + 0x4000])).status, 0);
    assert_eq!((rig.bytes(DATA + 0xa00, 1)[0], rig.bytes(DATA + 0x4000 + 0x0bff, 2)), (7, vec![15, 0]));
    // 300 KiB by a list, backwards.
    let pages: Vec<u64> = (0..75).map(|n| DATA + (100 - n) * 4096).collect();
    for (n, page) in pages.iter().enumerate().skip(1) {
        rig.memory.write_word(Gpa(LIST + 8 * (n as u64 - 1)), *page).unwrap();
    }
    for (n, page) in pages.iter().enumerate() {
        rig.memory.fill(Gpa(*page), 4096, 200 - u8::try_from(n).unwrap()).unwrap();
    }
    assert_eq!(queue.run(&rig, io(WRITE, 1000, 600, [pages[0], LIST])).status, 0);
    assert_eq!(queue.run(&rig, io(FLUSH, 0, 1, [0, 0])).status, 0);
    let seen = std::fs::read(&path).unwrap();
    for n in 0..75 {
        assert_eq!(seen[1000 * 512 + n * 4096..][..4096], [200 - u8::try_from(n).unwrap(); 4096]);
    }
    assert_eq!((seen[1000 * 512 - 1], seen[1600 * 512]), (231, 64));
}

#[test]
fn completions_come_in_batches_with_one_interrupt() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (_, mut queue) = rig.start(true);
    rig.messages();
    for round in 0..5u64 {
        let ids: Vec<u16> =
            (0..5).map(|n| queue.put(&rig, io(READ, round + n, 1, [DATA + n * 512, 0]))).collect();
        queue.ring(&rig);
        assert!(rig.workers[1].step() && !rig.workers[1].step());
        let done: Vec<_> = (0..5).map(|_| queue.peek(&rig).unwrap()).collect();
        assert_eq!(done.iter().map(|done| done.command).collect::<Vec<_>>(), ids);
        assert!(done.iter().all(|done| done.status == 0) && queue.peek(&rig).is_none());
        assert_eq!(rig.messages(), [(0xfee0_0000, 0x41)]);
        queue.consume(&rig);
    }
}

#[test]
fn no_more_is_taken_than_there_is_room_for_completions() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (_, mut queue) = rig.start(true);
    // The ring of completions is left full.
    for _ in 0..SIZE - 1 {
        queue.put(&rig, io(READ, 1, 1, [DATA, 0]));
    }
    queue.ring(&rig);
    assert!(rig.workers[1].step());
    let last = queue.put(&rig, io(READ, 2, 1, [DATA, 0]));
    queue.ring(&rig);
    assert!(!rig.workers[1].step(), "no room");
    for _ in 0..SIZE - 1 {
        queue.peek(&rig).unwrap();
    }
    queue.consume(&rig);
    assert!(rig.workers[1].step());
    assert_eq!(queue.peek(&rig).unwrap().command, last);
}

#[test]
fn without_messages_the_pin_is_high_while_something_is_not_consumed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    rig.plug_in(false);
    let mut admin_queue = rig.enable();
    admin_queue.put(&rig, admin(6, 0, 1, 0));
    admin_queue.ring(&rig);
    assert!(!rig.slot.line.is_high());
    rig.workers[0].step();
    assert!(rig.slot.line.is_high() && rig.config_word(4) & 1 << 19 != 0);
    rig.write(0x0c, 1);
    assert!(!rig.slot.line.is_high(), "masked");
    rig.write(0x10, 1);
    rig.config_write(5, &[4]);
    assert!(!rig.slot.line.is_high(), "disabled");
    rig.config_write(5, &[0]);
    assert!(rig.slot.line.is_high());
    admin_queue.peek(&rig).unwrap();
    admin_queue.consume(&rig);
    assert!(!rig.slot.line.is_high());
}

#[test]
fn ranges_are_zeroed_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let rig = Rig::on(&path, false);
    let (_, mut queue) = rig.start(true);
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let before = blocks();
    assert_eq!(queue.run(&rig, io(WRITE_ZEROES, 3, 2, [0, 0])).status, 0);
    let mut unmap = io(WRITE_ZEROES, 1024, 1024, [0, 0]);
    unmap.words[2] |= 1 << 25;
    assert_eq!(queue.run(&rig, unmap).status, 0);
    assert!(blocks() < before);
    let image = std::fs::read(&path).unwrap();
    let zero = |sector: usize| image[sector * 512..][..512].iter().all(|byte| *byte == 0);
    assert_eq!(
        [2, 3, 4, 5, 1023, 1025, 2047, 2049].map(zero),
        [false, true, true, false, false, true, true, false]
    );
    let before = blocks();
    let ranges = |list: &[(u64, u32)]| {
        for ((sector, count), at) in list.iter().zip((DATA..).step_by(16)) {
            rig.memory.write_word(Gpa(at), u64::from(*count) << 32).unwrap();
            rig.memory.write_word(Gpa(at + 8), *sector).unwrap();
        }
        let count = u32::try_from(list.len()).unwrap() - 1;
        Command { words: [count, 1 << 2, 0, 0, 0, 0], ..io(DATASET, 0, 1, [DATA, 0]) }
    };
    assert_eq!(queue.run(&rig, ranges(&[(4096, 1024), (9, 0), (6000, 8)])).status, 0);
    assert!(blocks() < before);
    let before = blocks();
    assert_eq!(queue.run(&rig, ranges(&[(7000, 512), (8191, 2)])).status, 0x80);
    assert_eq!(blocks(), before, "one bad range, none done");
}

#[test]
fn features_and_logs_are_kept_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    let (mut admin_queue, mut queue) = rig.start(true);
    assert_eq!(admin_queue.run(&rig, admin(10, 0, 6, 0)).result, 1, "a write cache");
    assert_eq!(admin_queue.run(&rig, admin(9, 0, 6, 0)).status, 0);
    assert_eq!(admin_queue.run(&rig, admin(10, 0, 6, 0)).result, 0);
    assert_eq!(admin_queue.run(&rig, admin(9, 0, 1 << 31 | 6, 1)).status, 0x10d);
    assert_eq!(admin_queue.run(&rig, admin(9, 0, 0x7f, 1)).status, 2);
    queue.run(&rig, io(READ, 0, 8, [DATA, 0]));
    queue.run(&rig, io(READ, 8192, 8, [DATA, 0]));
    let log = |number: u32, bytes: u32| admin(2, u32::MAX, (bytes / 4 - 1) << 16 | number, 0);
    assert_eq!(admin_queue.run(&rig, log(2, 512)).status, 0);
    let page = rig.bytes(DATA, 512);
    assert_eq!([page[32], page[48], page[64], page[176]], [1, 0, 1, 3], "{page:?}");
    assert_eq!(admin_queue.run(&rig, log(1, 64)).status, 0);
    let page = rig.bytes(DATA, 64);
    assert_eq!((page[0], page[8], page[16..18].to_vec()), (3, 1, vec![0, 32]));
    // In parts, and past its end.
    let mut part = log(1, 8);
    part.words[2] = 1020;
    assert_eq!(admin_queue.run(&rig, part).status, 0);
    part.words[2] = 1028;
    assert_eq!(admin_queue.run(&rig, part).status, 2);
    assert_eq!(admin_queue.run(&rig, log(0x70, 4)).status, 0x109);
    assert_eq!(admin_queue.run(&rig, log(3, 512)).status, 0);
    assert_eq!(&rig.bytes(DATA + 8, 4), b"1   ");
}
