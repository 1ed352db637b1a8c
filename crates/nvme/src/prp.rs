//! Where a command's data is: physical region pages (NVM Express 1.4, 4.3).
//!
//! The first entry may begin anywhere in its page, all others are whole pages. What two entries do not describe stands in a
//! list, whose page, if it has too few entries, ends in a pointer to the next page of it.
//!
//! **Every walk ends.** The data's length is bounded by whoever calls, each entry takes up to a page of it, and a page of a
//! list but the first has 511 entries before its pointer. So a list that leads back to itself is read as often as the
//! length says, and not more. An entry is read once.

use memory::{GuestMemory, GuestRange};
use x86::bits::index;
use x86::{Gpa, PAGE_SIZE};

use crate::status::Status;

/// The bytes of an entry of a list.
const ENTRY: u64 = 8;

/// The ranges of `bytes` bytes of data.
///
/// # Errors
/// If an entry has an offset that it must not have, or the list is not in memory. Where data is, is not looked at.
pub(crate) fn ranges(memory: &GuestMemory, prp: [u64; 2], bytes: u64) -> Result<Vec<GuestRange>, Status> {
    let [first, second] = prp;
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut data = Data { ranges: Vec::new(), left: bytes };
    data.add(first);
    match data.left {
        0 => {}
        1..=PAGE_SIZE => data.add_page(second)?,
        _ => data.add_list(memory, second)?,
    }
    Ok(data.ranges)
}

struct Data {
    ranges: Vec<GuestRange>,
    /// How many bytes are still to be described.
    left: u64,
}

impl Data {
    /// Adds what an entry describes: from there to the end of the page, or of the data.
    fn add(&mut self, entry: u64) {
        let gpa = Gpa(entry);
        let len = self.left.min(PAGE_SIZE - gpa.offset());
        self.left -= len;
        match self.ranges.last_mut() {
            Some(last) if last.gpa.checked_add(last.len) == Some(gpa) => last.len += len,
            _ if len == 0 => {}
            _ => self.ranges.push(GuestRange { gpa, len }),
        }
    }

    /// Adds an entry that has to begin a page.
    fn add_page(&mut self, entry: u64) -> Result<(), Status> {
        if !entry.is_multiple_of(PAGE_SIZE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        self.add(entry);
        Ok(())
    }

    fn add_list(&mut self, memory: &GuestMemory, list: u64) -> Result<(), Status> {
        if !list.is_multiple_of(ENTRY) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut at = Gpa(list);
        loop {
            let (room, wanted) = ((PAGE_SIZE - at.offset()) / ENTRY, self.left.div_ceil(PAGE_SIZE));
            let mut bytes = vec![0; index(room.min(wanted) * ENTRY)];
            memory.read(at, &mut bytes)?;
            let mut entries: Vec<u64> =
                bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect();
            let next = if wanted > room { entries.pop() } else { None };
            for entry in entries {
                self.add_page(entry)?;
            }
            match next {
                None => return Ok(()),
                Some(next) if next.is_multiple_of(PAGE_SIZE) => at = Gpa(next),
                Some(_) => return Err(Status::PRP_OFFSET_INVALID),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::RamRange;
    use proptest::prelude::*;

    use super::*;

    const LISTS: u64 = 0x10_0000;

    fn memory() -> GuestMemory {
        GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 2 * LISTS)]).unwrap()
    }

    /// Writes the entries as a driver does, the list beginning `skip` entries before the end of a page; the two entries of the command.
    fn describe(memory: &GuestMemory, entries: &[u64], skip: u64) -> [u64; 2] {
        match entries {
            [first] => [*first, 0xdead],
            [first, second] => [*first, *second],
            [first, rest @ ..] => {
                let list = LISTS + PAGE_SIZE - skip * ENTRY;
                let (mut at, mut page) = (list, LISTS);
                for (number, entry) in rest.iter().enumerate() {
                    if at % PAGE_SIZE == PAGE_SIZE - ENTRY && number + 1 != rest.len() {
                        // Pages of a list are apart from each other.
                        page += 2 * PAGE_SIZE;
                        memory.write_word(Gpa(at), page).unwrap();
                        at = page;
                    }
                    memory.write_word(Gpa(at), *entry).unwrap();
                    at += ENTRY;
                }
                [*first, list]
            }
            [] => [0, 0],
        }
    }

    proptest! {
        /// Whatever pages the data is in and wherever the list begins, each byte is where the driver says.
        #[test]
        fn every_byte_is_where_the_entries_say(
            offset in 0u64..1024,
            bytes in 1u64..(1 << 20),
            pages in prop::collection::vec(0u64..0xfff_ffff, 258),
            skip in 1u64..=512,
        ) {
            let offset = offset * 4;
            let count = index((offset + bytes).div_ceil(PAGE_SIZE));
            let entries: Vec<u64> = pages[..count]
                .iter()
                .enumerate()
                .map(|(number, page)| page * PAGE_SIZE + if number == 0 { offset } else { 0 })
                .collect();
            let memory = memory();
            let found = ranges(&memory, describe(&memory, &entries, skip), bytes).unwrap();
            let (mut expected, mut left) = (Vec::new(), bytes);
            for entry in &entries {
                let len = left.min(PAGE_SIZE - entry % PAGE_SIZE);
                expected.extend((0..len).step_by(4).map(|at| entry + at));
                left -= len;
            }
            let mut seen = Vec::new();
            let mut inside = 0;
            for range in &found {
                // A range may end between words; the next begins a page.
                prop_assert_eq!(inside % 4, 0);
                seen.extend((0..range.len).step_by(4).map(|at| range.gpa.0 + at));
                inside += range.len;
            }
            prop_assert_eq!(inside, bytes);
            prop_assert!(seen == expected);
        }

        /// Any numbers at all: the walk ends, and describes no more than it was asked for.
        #[test]
        fn any_entries_end(first: u64, second in 0u64..(2 << 20), bytes in 0u64..=(1 << 20), fill: u64) {
            let memory = memory();
            for at in (0..2 * LISTS).step_by(8) {
                memory.write_word(Gpa(at), fill & !0xfff).unwrap();
            }
            if let Ok(found) = ranges(&memory, [first, second], bytes) {
                prop_assert_eq!(found.iter().map(|range| range.len).sum::<u64>(), bytes);
            }
        }
    }

    #[test]
    fn a_list_that_leads_to_itself_is_read_as_far_as_the_data_goes() {
        let memory = memory();
        for at in (LISTS..LISTS + PAGE_SIZE).step_by(8) {
            memory.write_word(Gpa(at), LISTS).unwrap();
        }
        let found = ranges(&memory, [0, LISTS], 1 << 24).unwrap();
        assert_eq!(found.iter().map(|range| range.len).sum::<u64>(), 1 << 24);
        // One that begins with its last entry makes no way in its first page, and is still at an end.
        memory.write_word(Gpa(LISTS + PAGE_SIZE - 8), LISTS).unwrap();
        assert!(ranges(&memory, [0, LISTS + PAGE_SIZE - 8], 1 << 20).is_ok());
    }

    #[test]
    fn offsets_that_must_not_be_are_refused() {
        let memory = memory();
        memory.write_word(Gpa(LISTS), 0x1004u64).unwrap();
        for at in (LISTS + PAGE_SIZE..LISTS + 2 * PAGE_SIZE).step_by(8) {
            memory.write_word(Gpa(at), LISTS + 8).unwrap();
        }
        for (prp, bytes) in [
            ([2, 0], 512),
            ([0, 0x1004], 8192),
            ([0, LISTS + 4], 3 * PAGE_SIZE),
            ([0, LISTS], 3 * PAGE_SIZE),
            ([0, LISTS + PAGE_SIZE], 3 * PAGE_SIZE),
            ([0, LISTS + 2 * PAGE_SIZE - 8], 4 * PAGE_SIZE),
        ] {
            assert_eq!(ranges(&memory, prp, bytes), Err(Status::PRP_OFFSET_INVALID), "{prp:x?}");
        }
        assert_eq!(ranges(&memory, [0, 1 << 40], 1 << 20), Err(Status::DATA_TRANSFER_ERROR));
    }
}
