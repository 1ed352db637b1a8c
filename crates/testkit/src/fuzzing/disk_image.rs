//! A qcow2 image with anything in its header and tables: opened, checked, read, written, and opened again.
//!
//! Checked beside the implied: what opens has the size that its header says, what was written is read again unless the image
//! leads two places of the disk to one of the file, an image that nothing was done to is as right after it was closed as
//! before, and one that was repaired is right.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use backend::Disk;
use backend::qcow2::{self, Qcow2};
use host::Memfd;
use host::io::{Sources, Targets};

use super::board::MemoryDisk;

/// The size of the disk, of which some clusters are written.
const DISK: u64 = 1 << 20;
/// What is asked for at most; a disk may be larger than that.
const LONGEST: u64 = 200 << 10;
/// Where a new image has its L2 table, and what it writes first.
const TABLES: [u64; 6] = [0, 1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16];

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

/// An image in memory, and its length.
fn file(image: &Memfd) -> (File, u64) {
    let file = File::from(image.as_fd().try_clone_to_owned().expect("a descriptor"));
    let bytes = file.metadata().expect("a size").len();
    (file, bytes)
}

/// An image with some clusters that is right.
fn right() -> Memfd {
    let image = Memfd::new("fuzz-image", 0).expect("a descriptor");
    qcow2::create(&file(&image).0, DISK, None).expect("memory");
    let (whole, bytes) = file(&image);
    let disk = Qcow2::open(whole, bytes, None, false, false).expect("a new image");
    disk.write(70_000, &Sources::of(&[3; 5000])).expect("memory");
    disk.write_zeroes(300 << 10, 64 << 10, true).expect("memory");
    drop(disk);
    image
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let image = right();
    let changes = u.int_in_range(0..=12u8)?;
    for _ in 0..changes {
        let table = *u.choose(&TABLES)?;
        let at = table + u64::from(u.arbitrary::<u8>()?);
        let value: u64 = match u.int_in_range(0..=3u8)? {
            0 => u.arbitrary()?,
            1 => 1 << u.int_in_range(0..=63u8)?,
            // A cluster, or the same one again; a compressed one.
            2 => u64::from(u.arbitrary::<u8>()? & 15) << 16 | 1 << 63,
            _ => 1 << 62 | u64::from(u.arbitrary::<u32>()?),
        };
        let bytes = value.to_be_bytes();
        let width = 1 << u.int_in_range(0..=3u8)?;
        Sources::of(&bytes[8 - width..]).write_to(image.as_fd(), at).expect("memory");
    }
    let (whole, bytes) = file(&image);
    let report = qcow2::check(whole, bytes);
    assert!(changes > 0 || report == Ok(qcow2::Report::default()), "{report:?}");
    if u.ratio(1, 4)? {
        repair(&image);
    }
    for _ in 0..u.int_in_range(1..=3u8)? {
        let below: Option<Arc<dyn Disk>> =
            if u.arbitrary()? { Some(Arc::new(MemoryDisk::new())) } else { None };
        let (whole, bytes) = file(&image);
        let read_only = u.ratio(1, 4)?;
        match Qcow2::open(whole, bytes, below, read_only, false) {
            Ok(disk) => {
                use_it(&mut u, &disk, changes == 0)?;
                drop(disk);
                let (whole, bytes) = file(&image);
                let after = qcow2::check(whole, bytes);
                assert!(changes > 0 || after == Ok(qcow2::Report::default()), "{after:?}");
            }
            Err(problem) => assert!(changes > 0 && !problem.to_string().is_empty(), "{problem}"),
        }
    }
    Ok(())
}

/// Makes the counts right, or leaves everything as it is.
fn repair(image: &Memfd) {
    let contents = |(image, bytes): (File, u64)| {
        let mut all = vec![0; usize::try_from(bytes).unwrap_or(0)];
        Targets::of(&mut all).read_from(image.as_fd(), 0).map(|()| all).expect("memory")
    };
    let before = contents(file(image));
    let (whole, bytes) = file(image);
    if qcow2::repair(whole, bytes) == Ok(true) {
        let (whole, bytes) = file(image);
        assert_eq!(qcow2::check(whole, bytes), Ok(qcow2::Report::default()), "it was repaired");
    } else {
        assert!(contents(file(image)) == before, "what cannot be repaired is left alone");
    }
}

/// Does some of what a guest can do.
fn use_it(u: &mut Unstructured<'_>, disk: &Qcow2, right: bool) -> Result<()> {
    let mut buffer = vec![0; 4096];
    for _ in 0..u.int_in_range(0..=8u8)? {
        let far: u64 =
            if u.ratio(1, 8)? { u.arbitrary()? } else { u64::from(u.arbitrary::<u32>()? % 0x10_0000) };
        let offset = (far % disk.bytes()) & !511;
        let len = (u64::from(u.arbitrary::<u16>()?) * 512).clamp(512, LONGEST).min(disk.bytes() - offset);
        let part = usize::try_from(len).unwrap_or(0).min(buffer.len());
        // An image that is wrong refuses what it likes.
        match u.int_in_range(0..=4u8)? {
            0 => drop(disk.read(offset, &Targets::of(&mut buffer[..part]))),
            1 => drop(disk.discard(offset, len)),
            2 => drop(disk.write_zeroes(offset, len, u.arbitrary()?)),
            3 => drop(disk.flush()),
            _ => {
                let byte: u8 = u.arbitrary()?;
                let written = disk.write(offset, &Sources::of(&vec![byte; part]));
                if right && !disk.is_read_only() {
                    written.expect("memory");
                    disk.read(offset, &Targets::of(&mut buffer[..part])).expect("memory");
                    assert!(buffer[..part].iter().all(|it| *it == byte), "{offset}");
                }
            }
        }
    }
    Ok(())
}
