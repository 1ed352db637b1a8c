//! Which of a guest's memory costs anything: the rest of it reads as zeros, and whoever reads all of it to see that has it paid for.

use std::ops::Range;

use x86::{Gfn, Mfn};

use super::GuestMemory;
use crate::{FrameKind, Frames, MemoryError};

impl GuestMemory {
    /// The frames of the layout that exist on the host, ascending, as far as the kernel can tell them apart. All others read as zeros: those that were never
    /// touched, that the guest has reported as free, or that are in the balloon.
    ///
    /// An item is an error if the kernel cannot say.
    pub fn resident(&self) -> impl Iterator<Item = Result<Gfn, MemoryError>> + '_ {
        let mut known = Known { frames: &self.frames, range: 0..0, exist: false };
        let all = self.ranges().iter().flat_map(|range| range.base.0..range.end().0).map(Gfn);
        all.filter_map(move |gfn| {
            let entry = self.entry(gfn);
            if entry.kind == FrameKind::Ballooned {
                return None;
            }
            known.exists(entry.mfn).map(|exists| exists.then_some(gfn)).transpose()
        })
    }
}

/// What the kernel has said last, which holds for many frames.
struct Known<'a> {
    frames: &'a Frames,
    range: Range<u64>,
    exist: bool,
}

impl Known<'_> {
    fn exists(&mut self, mfn: Mfn) -> Result<bool, MemoryError> {
        if !self.range.contains(&mfn.0) {
            let (count, exist) = self.frames.extent(mfn)?;
            (self.range, self.exist) = (mfn.0..mfn.0.saturating_add(count), exist);
        }
        Ok(self.exist)
    }
}

#[cfg(test)]
mod tests {
    use x86::{Gpa, PAGE_SIZE};

    use super::*;
    use crate::{GuestRange, RamRange};

    #[test]
    fn what_was_touched_is_found_without_being_touched() {
        let ranges = [RamRange { base: Gfn(0), frames: 100 }, RamRange { base: Gfn(256), frames: 100 }];
        let memory = GuestMemory::new(&ranges).unwrap();
        let seen = || memory.resident().map(|gfn| gfn.unwrap().0).collect::<Vec<_>>();
        assert_eq!(seen(), []);
        for gfn in [3, 4, 5, 99, 256, 355] {
            memory.write(Gfn(gfn).base(), &[1]).unwrap();
        }
        memory.inflate(&[Gfn(4)]).unwrap();
        memory.empty(GuestRange { gpa: Gpa(256 * PAGE_SIZE), len: PAGE_SIZE }).unwrap();
        assert_eq!(seen(), [3, 5, 99, 355]);
        assert_eq!(memory.resident_bytes().unwrap(), 4 * PAGE_SIZE);
        // A frame that the kernel has not given back and that is in the balloon is nobody's.
        memory.deflate(&[Gfn(4)]);
        memory.write(Gfn(4).base(), &[1]).unwrap();
        assert_eq!(seen(), [3, 4, 5, 99, 355]);
    }
}
