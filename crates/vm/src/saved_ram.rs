//! The contents of guest RAM as a record: the pages that hold anything but zeros.

use memory::GuestMemory;
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

fn frames(memory: &GuestMemory) -> impl Iterator<Item = Gfn> + '_ {
    memory.ranges().iter().flat_map(|range| range.base.0..range.base.0 + range.frames).map(Gfn)
}

impl SavedRam {
    /// Copies all of RAM that is not zero.
    ///
    /// # Errors
    /// If a frame of the layout is not readable memory at the moment.
    pub(crate) fn of(memory: &GuestMemory) -> Result<Self, VmError> {
        let mut pages = Vec::new();
        let mut page = [0; PAGE];
        for gfn in frames(memory) {
            memory.read(gfn.base(), &mut page)?;
            if page != [0; PAGE] {
                pages.push((gfn, page.to_vec()));
            }
        }
        Ok(Self { pages })
    }

    /// Makes RAM what it was.
    ///
    /// # Errors
    /// If a page lies outside the memory.
    pub(crate) fn restore(&self, memory: &GuestMemory) -> Result<(), VmError> {
        let mut saved = self.pages.iter().peekable();
        let mut page = [0; PAGE];
        for gfn in frames(memory) {
            if let Some((_, bytes)) = saved.next_if(|(at, bytes)| *at == gfn && bytes.len() == PAGE) {
                memory.write(gfn.base(), bytes)?;
                continue;
            }
            memory.read(gfn.base(), &mut page)?;
            if page != [0; PAGE] {
                memory.fill(gfn.base(), PAGE_SIZE, 0)?;
            }
        }
        match saved.next() {
            None => Ok(()),
            Some((gfn, _)) => Err(VmError::OtherMachine(format!("page {:#x} is not of its memory", gfn.0))),
        }
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
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        for page in [(Gfn(8), vec![1; PAGE]), (Gfn(1), vec![1; 7])] {
            let saved = SavedRam { pages: vec![page] };
            assert!(matches!(saved.restore(&memory()), Err(VmError::OtherMachine(_))));
        }
    }
}
