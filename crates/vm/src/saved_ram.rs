//! The contents of guest RAM as a record: the pages that hold anything but zeros.

use memory::{FrameKind, GuestMemory, GuestRange};
use serde::{Deserialize, Serialize};
use state::Saved;
use x86::bits::index;
use x86::{Gfn, PAGE_SIZE};

use crate::VmError;

/// Pages by guest frame, ascending; all others are zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRam {
    pages: Vec<(Gfn, Vec<u8>)>,
}

impl Saved for SavedRam {
    const NAME: &'static str = "ram";
    const VERSION: u16 = 1;
}

const PAGE: usize = index(PAGE_SIZE);

impl SavedRam {
    /// Copies all of RAM that is not zero. What the guest has never touched or has given back costs nothing, and does so afterwards.
    ///
    /// # Errors
    /// If a frame of the layout is not readable memory at the moment.
    pub(crate) fn of(memory: &GuestMemory) -> Result<Self, VmError> {
        let mut pages = Vec::new();
        let mut page = [0; PAGE];
        for gfn in memory.resident() {
            let gfn = gfn?;
            memory.read(gfn.base(), &mut page)?;
            if page != [0; PAGE] {
                pages.push((gfn, page.to_vec()));
            }
        }
        Ok(Self { pages })
    }

    /// Makes RAM what it was, and no more of it cost anything.
    ///
    /// # Errors
    /// If a page lies outside the memory.
    pub(crate) fn restore(&self, memory: &GuestMemory) -> Result<(), VmError> {
        for range in memory.ranges() {
            memory.empty(GuestRange { gpa: range.base.base(), len: range.frames * PAGE_SIZE })?;
        }
        for (gfn, bytes) in &self.pages {
            if bytes.len() != PAGE || memory.entry(*gfn).kind != FrameKind::Ram {
                return Err(VmError::OtherMachine(format!("page {:#x} is not of its memory", gfn.0)));
            }
            memory.write(gfn.base(), bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::RamRange;
    use state::Record;
    use x86::Gpa;

    fn memory() -> GuestMemory {
        let ranges = [RamRange { base: Gfn(0), frames: 4 }, RamRange { base: Gfn(16), frames: 4 }];
        GuestMemory::new(&ranges).unwrap()
    }

    #[test]
    fn round_trip() {
        let (old, new) = (memory(), memory());
        old.write(Gpa(0x1ffe), b"across pages").unwrap();
        old.write(Gpa(0x1_3fff), &[9]).unwrap();
        new.write(Gpa(0x3000), b"to be forgotten").unwrap();
        let saved = SavedRam::of(&old).unwrap();
        assert_eq!(saved.pages.len(), 3);
        let record = Record::encode(&saved);
        record.decode::<SavedRam>().unwrap().restore(&new).unwrap();
        assert_eq!(SavedRam::of(&new).unwrap(), saved);
        assert_eq!(new.resident_bytes().unwrap(), 3 * PAGE_SIZE);
    }

    #[test]
    fn what_costs_nothing_goes_on_costing_nothing() {
        let (old, new) = (memory(), memory());
        let cost = |memory: &GuestMemory| memory.resident_bytes().unwrap();
        for gfn in [0, 1, 2, 16, 17] {
            old.write(Gfn(gfn).base(), &[7; PAGE]).unwrap();
        }
        old.inflate(&[Gfn(1)]).unwrap();
        old.empty(GuestRange { gpa: Gfn(16).base(), len: PAGE_SIZE }).unwrap();
        let saved = SavedRam::of(&old).unwrap();
        assert_eq!((saved.pages.len(), cost(&old)), (3, 3 * PAGE_SIZE));
        new.take_over(&old.save()).unwrap();
        saved.restore(&new).unwrap();
        assert_eq!((cost(&new), new.ballooned_frames()), (3 * PAGE_SIZE, 1));
        assert_eq!(SavedRam::of(&new).unwrap(), saved);
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        for page in [(Gfn(8), vec![1; PAGE]), (Gfn(1), vec![1; 7]), (Gfn(u64::MAX), vec![1; PAGE])] {
            let saved = SavedRam { pages: vec![page] };
            assert!(matches!(saved.restore(&memory()), Err(VmError::OtherMachine(_))));
        }
    }
}
