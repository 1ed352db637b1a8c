//! Bytes as saved state: a snapshot is a file, and whoever wrote it may have meant no good.
//!
//! Bytes as a record; a record of the right name with any body for every chip, which is then used; memory maps of any
//! shape, for which nothing may be allocated in proportion to numbers in the file.

use arbitrary::{Result, Unstructured};
use memory::{GuestMemory, RamRange, SavedP2m};
use state::Record;
use x86::{CpuState, Gfn};

use super::board::{Board, lock};
use super::device_ops;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    match u.int_in_range(0..=3u8)? {
        0 => {
            if let Ok(record) = postcard::from_bytes::<Record>(u.take_rest()) {
                let _ = (record.decode::<CpuState>(), record.decode::<SavedP2m>());
                let board = Board::new(bus::GuestTime(0));
                for device in board.router.devices() {
                    let _ = lock(device).restore(&record);
                }
            }
            Ok(())
        }
        1 => memory_map(&mut u),
        _ => device_body(&mut u),
    }
}

/// A record with another body.
fn with_body(record: &Record, body: &[u8]) -> Option<Record> {
    let bytes = postcard::to_stdvec(record).ok()?;
    let (name, version, _): (String, u16, Vec<u8>) = postcard::from_bytes(&bytes).ok()?;
    postcard::from_bytes(&postcard::to_stdvec(&(name, version, body)).ok()?).ok()
}

fn device_body(u: &mut Unstructured<'_>) -> Result<()> {
    let board = Board::new(bus::GuestTime(u.arbitrary::<u64>()? >> 1));
    let devices = board.router.devices();
    let device = &devices[u.choose_index(devices.len())?];
    let length = u.int_in_range(0..=u.len().min(400))?;
    let body = u.bytes(length)?;
    let before = lock(device).save();
    board.pause();
    if let Some(record) = with_body(&before, body) {
        let mut device = lock(device);
        if device.restore(&record).is_err() {
            assert_eq!(device.save(), before, "a chip that refuses is as it was");
        }
    }
    board.resume();
    while !u.is_empty() {
        device_ops::step(u, &board)?;
    }
    Ok(())
}

fn memory_map(u: &mut Unstructured<'_>) -> Result<()> {
    let mut ranges = Vec::new();
    for _ in 0..u.int_in_range(0..=3u8)? {
        ranges.push((number(u)?, number(u)?));
    }
    let mut runs = Vec::new();
    for _ in 0..u.int_in_range(0..=6u8)? {
        runs.push((number(u)?, u32::from(u.arbitrary::<u8>()? & 7)));
    }
    let bytes = postcard::to_stdvec(&(&ranges, &runs)).unwrap_or_default();
    let Ok(saved) = postcard::from_bytes::<SavedP2m>(&bytes) else { return Ok(()) };
    // A machine restores only what is laid out as itself.
    let own = [RamRange { base: Gfn(0), frames: 16 }, RamRange { base: Gfn(40), frames: 8 }];
    if let Ok(memory) = GuestMemory::restore(&saved, &own) {
        assert_eq!(memory.ranges(), own);
        let again = GuestMemory::restore(&memory.save(), &own).map(|memory| memory.save());
        assert_eq!(again.ok(), Some(memory.save()));
    }
    Ok(())
}

fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3u8)? {
        0 => u.arbitrary()?,
        1 => *u.choose(&[0, 16, 40, 8, 24, 1 << 32, (1 << 32) - 1, u64::MAX])?,
        _ => u64::from(u.arbitrary::<u8>()? & 31),
    })
}
