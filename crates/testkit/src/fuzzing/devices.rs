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
    // After damage, chips may disagree about the level of a line until it changes.
    let mut sound = true;
    while !u.is_empty() {
        match u.int_in_range(0..=47u8)? {
            0 => board = moved(&board, sound),
            1 => {
                damage(&mut u, &board)?;
                sound = false;
            }
            _ => device_ops::step(&mut u, &board)?,
        }
    }
    moved(&board, sound);
    Ok(())
}

/// The board's state on another board.
fn moved(board: &Board, sound: bool) -> Board {
    board.pause();
    let records = board.save();
    let new = Board::new(board.now());
    for slot in 0..board.slot_count() {
        if lock(&board.slots).occupancy(slot).is_function() {
            new.plug(slot);
        }
    }
    for (device, record) in new.router.devices().iter().zip(&records) {
        let mut device = lock(device);
        let result = device.restore(record);
        assert!(result.is_ok(), "{}: {result:?}", device.name());
    }
    if sound {
        for (again, record) in new.save().iter().zip(&records) {
            assert_eq!(again, record, "{}", record.name());
        }
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

#[cfg(test)]
mod tests {
    use bus::Space;

    use super::*;

    /// Found by fuzzing: the PIT was restored before the HPET, which had taken its line over, and raised an interrupt.
    #[test]
    fn a_disconnected_timer_is_silent_when_it_is_restored() {
        let board = Board::new(bus::GuestTime(0));
        board.router.write(Space::Mmio, 0xfed0_0010, &3u32.to_le_bytes());
        for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
            board.router.write(Space::Port, port, &[value]);
        }
        moved(&board, true);
    }
}
