//! A disk through its rings, on a real file.

#![allow(clippy::cast_possible_truncation)]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use std::sync::Arc;
use std::time::Instant;

use backend::{Counted, RawDisk};
use bus::Lifecycle;
use x86::Gpa;

use super::*;
use crate::queue::tests::driver::{Buffer, Driver};
use crate::transport::tests::rig::*;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x2_0000;
const BYTES: u64 = 1 << 20;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

struct Bench {
    rig: Rig,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, (0..BYTES).map(|n| (n / 512) as u8).collect::<Vec<u8>>()).unwrap();
        let disk = RawDisk::open(&path, read_only).unwrap();
        let rig = Rig::new(Box::new(Blk::new(Volume::new(Arc::new(disk)), "disk0", 1)));
        rig.enable(true);
        Self { rig, path, _dir: dir }
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// One request with data buffers as given; its status, and how much was written.
fn request(rig: &Rig, driver: &mut Driver<'_>, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    rig.memory.write_word(Gpa(HEADER), kind).unwrap();
    rig.memory.write_word(Gpa(HEADER + 8), sector).unwrap();
    rig.memory.write_word(Gpa(STATUS), 0xaa_u8).unwrap();
    let (out, in_): (Vec<_>, Vec<_>) = data.iter().copied().partition(|buffer| !buffer.2);
    let buffers = [vec![(HEADER, 16, false)], out, in_, vec![(STATUS, 1, true)]].concat();
    let written = rig.round(driver, &buffers).expect("an answer");
    (rig.memory.read_word(Gpa(STATUS)).unwrap(), written)
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let bench = Bench::new(false);
    assert_eq!(u64::from_le_bytes(bench.rig.read(0x2000)), BYTES / 512);
    assert_eq!(u32::from_le_bytes(bench.rig.read(0x2014)), 512);
    assert_eq!(bench.rig.read::<1>(0x2038), [1], "write_zeroes_may_unmap");
    assert_eq!(bench.rig.config_word(8) >> 8, 0x01_0000);
    let reader = Bench::new(true);
    let features = |rig: &Rig| u32::from_le_bytes(rig.read(4));
    assert_eq!(features(&bench.rig) & 1 << 5, 0);
    assert_eq!(features(&reader.rig) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
}

#[test]
fn data_goes_both_ways_in_any_cut() {
    for features in [FLUSH, FLUSH | PACKED, 0] {
        let bench = Bench::new(false);
        let (rig, mut driver) = (&bench.rig, bench.rig.start(features));
        let pieces = [(DATA + 1, 300, true), (DATA + 0x3000, 700, true), (DATA + 0x5ffe, 24, true)];
        assert_eq!(request(rig, &mut driver, 0, 7, &pieces), (OK, 1025));
        let mut bytes = [0; 300];
        rig.memory.read(Gpa(DATA + 1), &mut bytes).unwrap();
        assert_eq!(bytes, [7; 300]);
        let mut bytes = [0; 24];
        rig.memory.read(Gpa(DATA + 0x5ffe), &mut bytes).unwrap();
        assert_eq!(bytes, [8; 24]);
        rig.memory.write(Gpa(DATA), &[0x5a; 1024]).unwrap();
        assert_eq!(request(rig, &mut driver, 1, 2046, &[(DATA, 100, false), (DATA, 924, false)]), (OK, 1));
        assert_eq!(request(rig, &mut driver, 4, 0, &[]), (OK, 1));
        let image = bench.image();
        assert_eq!((image[2046 * 512 - 1], &image[2046 * 512..]), (2045_u32 as u8, &[0x5a; 1024][..]));
        assert_eq!(request(rig, &mut driver, 8, 0, &[(DATA, 20, true)]), (OK, 21));
        let mut serial = [0; 20];
        rig.memory.read(Gpa(DATA), &mut serial).unwrap();
        assert_eq!(&serial[..6], b"disk0\0");
    }
}

#[test]
fn what_cannot_be_done_is_said_and_touches_nothing() {
    let bench = Bench::new(false);
    let (rig, mut driver) = (&bench.rig, bench.rig.start(FLUSH));
    let before = bench.image();
    let mut status = |kind, sector, data: &[Buffer]| request(rig, &mut driver, kind, sector, data).0;
    assert_eq!(status(0, 2048, &[(DATA, 512, true)]), IO_ERROR, "past the end");
    assert_eq!(status(0, u64::MAX, &[(DATA, 512, true)]), IO_ERROR);
    assert_eq!(status(0, 2047, &[(DATA, 1024, true)]), IO_ERROR);
    assert_eq!(status(0, 0, &[(DATA, 511, true)]), IO_ERROR, "not whole sectors");
    assert_eq!(status(0, 0, &[(1 << 40, 512, true)]), IO_ERROR, "no memory there");
    assert_eq!(status(1, 0, &[(1 << 40, 512, false)]), IO_ERROR);
    assert_eq!(status(1, 2048, &[(DATA, 512, false)]), IO_ERROR);
    assert_eq!(status(99, 0, &[]), UNSUPPORTED);
    for data in [&[][..], &[(DATA, 15, false)], &[(DATA, 16 * 65, false)]] {
        assert_eq!(status(11, 0, data), IO_ERROR);
    }
    assert_eq!(bench.image(), before);
    assert_eq!(rig.status(), 15, "none of that is the device's failure");
}

#[test]
fn a_request_without_header_or_status_is_malformed() {
    for buffers in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(1 << 40, 16, false), (STATUS, 1, true)],
    ] {
        let bench = Bench::new(false);
        let mut driver = bench.rig.start(FLUSH);
        assert_eq!(bench.rig.round(&mut driver, buffers), None);
        assert_eq!(bench.rig.status(), 15 | NEEDS_RESET);
    }
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let bench = Bench::new(false);
    let (rig, mut driver) = (&bench.rig, bench.rig.start(FLUSH));
    let ranges = |list: &[(u64, u32, u32)]| {
        let mut bytes = Vec::new();
        for (sector, count, flags) in list {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        rig.memory.write(Gpa(DATA), &bytes).unwrap();
        [(DATA, bytes.len() as u32, false)]
    };
    let blocks = || std::fs::metadata(&bench.path).unwrap().blocks();
    let before = blocks();
    assert_eq!(request(rig, &mut driver, 13, 0, &ranges(&[(1, 2, 0), (8, 8, 1), (5, 0, 0)])), (OK, 1));
    let image = bench.image();
    let zero = |sector: usize| image[sector * 512..][..512].iter().all(|byte| *byte == 0);
    assert_eq!([1, 2, 3, 7, 8, 15, 16].map(zero), [true, true, false, false, true, true, false]);
    assert_eq!(request(rig, &mut driver, 11, 0, &ranges(&[(1024, 512, 0)])), (OK, 1));
    assert!(blocks() < before);
    assert_eq!(request(rig, &mut driver, 11, 0, &ranges(&[(0, 8, 1)])).0, UNSUPPORTED);
    assert_eq!(request(rig, &mut driver, 13, 0, &ranges(&[(0, 8, 2)])).0, UNSUPPORTED);
    assert_eq!(request(rig, &mut driver, 13, 0, &ranges(&[(100, 8, 0), (2047, 2, 0)])).0, IO_ERROR);
    assert_eq!(bench.image()[100 * 512], 100, "one bad range, none done");
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let bench = Bench::new(true);
    let (rig, mut driver) = (&bench.rig, bench.rig.start(FLUSH));
    rig.memory.write_word(Gpa(DATA + 8), 8u32).unwrap();
    let before = bench.image();
    for kind in [1, 11, 13] {
        let len = if kind == 1 { 512 } else { 16 };
        assert_eq!(request(rig, &mut driver, kind, 0, &[(DATA, len, false)]).0, IO_ERROR, "{kind}");
    }
    assert_eq!(request(rig, &mut driver, 4, 0, &[]).0, OK);
    assert_eq!(request(rig, &mut driver, 0, 9, &[(DATA, 512, true)]).0, OK);
    assert_eq!(bench.image(), before);
}

/// What waits for a limit waits in the ring, and a reset or a pause does not wait for it.
#[test]
fn a_limit_holds_requests_back_and_nobody_else() {
    for counted in [Counted::Requests, Counted::Bytes] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let per_s = if counted == Counted::Requests { 1 } else { 512 };
        let volume = Volume::new(Arc::new(RawDisk::open(&path, false).unwrap())).limited(counted, per_s);
        let blk = Blk::new(volume, "disk0", 1);
        let rig = Rig::new(Box::new(blk));
        rig.enable(true);
        let mut driver = rig.start(FLUSH);
        let read = [(DATA, 512, true)];
        assert_eq!(request(&rig, &mut driver, 0, 0, &read).0, OK);
        let begin = Instant::now();
        let chain = [(HEADER, 16, false), read[0], (STATUS, 1, true)];
        assert_eq!(rig.round(&mut driver, &chain), None, "it is held back");
        rig.device.lock().unwrap().pause();
        assert!(begin.elapsed() < Duration::from_millis(700), "a pause does not wait");
        rig.device.lock().unwrap().resume();
        let worker = &rig.workers[0];
        while !worker.step() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it never comes");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(driver.collect().is_some());
        assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    }
}

#[test]
fn random_bytes_fill_what_there_is() {
    let rig = Rig::new(Box::new(crate::rng::Rng));
    rig.enable(true);
    let mut driver = rig.start(PACKED);
    assert_eq!(rig.round(&mut driver, &[(DATA, 10_000, true), (DATA + 0x4000, 24, true)]), Some(10_024));
    let mut bytes = vec![0; 10_000];
    rig.memory.read(Gpa(DATA), &mut bytes).unwrap();
    let mut tail = [0; 24];
    rig.memory.read(Gpa(DATA + 0x4000), &mut tail).unwrap();
    for part in [&bytes[..32], &bytes[4080..4112], &bytes[9968..], &tail] {
        assert!(part.iter().any(|byte| *byte != 0));
    }
    assert_eq!(
        rig.round(&mut driver, &[(0x8_0000, 0x4_0000, true), (0x4_0000, 0x4_0000, true)]),
        Some(64 << 10)
    );
}
