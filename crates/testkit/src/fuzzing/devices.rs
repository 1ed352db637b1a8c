//! Accesses, time and saves against all chips at once.
//!
//! Checked beside the implied: what was saved and restored into a fresh board is the same when saved again, restoring asks
//! nothing of the machine, and a chip that refuses a damaged record is as it was.

use arbitrary::{Result, Unstructured};
use state::Record;

use super::board::{Board, lock};
use super::device_ops;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let mut board = Board::new(bus::GuestTime(if u.arbitrary()? { u.arbitrary()? } else { 0 }));
    while !u.is_empty() {
        match u.int_in_range(0..=47u8)? {
            0 => board = moved(&board),
            1 => damage(&mut u, &board)?,
            _ => device_ops::step(&mut u, &board)?,
        }
    }
    moved(&board);
    Ok(())
}

/// The board's state on another board.
fn moved(board: &Board) -> Board {
    board.pause();
    let records = board.save();
    let new = Board::new(board.now());
    for (device, record) in new.router.devices().iter().zip(&records) {
        let mut device = lock(device);
        let result = device.restore(record);
        assert!(result.is_ok(), "{}: {result:?}", device.name());
    }
    for (again, record) in new.save().iter().zip(&records) {
        assert_eq!(again, record, "{}", record.name());
    }
    assert_eq!(new.requests(), 0, "a restore is not a request");
    // Guest memory goes along.
    let mut bytes = vec![0; 0x10000];
    if board.memory.read(x86::Gpa(0), &mut bytes).is_ok() {
        let _ = new.memory.write(x86::Gpa(0), &bytes);
    }
    new.resume();
    new
}

/// Restores a chip from its own record with some bytes changed.
fn damage(u: &mut Unstructured<'_>, board: &Board) -> Result<()> {
    board.pause();
    let devices = board.router.devices();
    let mut device = lock(&devices[u.choose_index(devices.len())?]);
    let before = device.save();
    let mut bytes = postcard::to_stdvec(&before).unwrap_or_default();
    for _ in 0..u.int_in_range(1..=6u8)? {
        let at = u.choose_index(bytes.len())?;
        bytes[at] = u.arbitrary()?;
    }
    if let Ok(record) = postcard::from_bytes::<Record>(&bytes)
        && device.restore(&record).is_err()
    {
        assert_eq!(device.save(), before, "a chip that refuses is as it was");
    }
    drop(device);
    board.resume();
    Ok(())
}
