//! Which guest frames have memory at all.
//!
//! A layout is a few ascending, disjoint ranges (below and above the PC's hole for devices, say) and is fixed for a
//! machine's life. Its frames are numbered consecutively across the ranges; that number, the *slot*, indexes the dirty
//! log and is the machine frame that a guest frame starts with.

use x86::{Gfn, PAGE_SIZE};

use crate::MemoryError;

/// The widest guest-physical address of RAM: 16 TiB. Bounds the top level of the P2M.
pub const MAX_RAM_BITS: u32 = 44;

/// Consecutive guest frames that are memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// The first frame.
    pub base: Gfn,
    /// How many frames there are.
    pub frames: u64,
}

impl RamRange {
    /// The range of `bytes` bytes from `base`; both are rounded down to whole frames.
    pub fn from_bytes(base: x86::Gpa, bytes: u64) -> Self {
        Self { base: base.frame(), frames: bytes / PAGE_SIZE }
    }

    /// The first frame past the end.
    pub(crate) fn end(&self) -> Gfn {
        Gfn(self.base.0.saturating_add(self.frames))
    }
}

/// A valid layout: ascending, disjoint, not empty, within [`MAX_RAM_BITS`].
#[derive(Debug)]
pub(crate) struct Layout {
    ranges: Box<[RamRange]>,
    frames: u64,
}

impl Layout {
    pub(crate) fn new(ranges: &[RamRange]) -> Result<Self, MemoryError> {
        let mut end = Gfn(0);
        let mut frames = 0;
        for range in ranges {
            let wrong = |problem| MemoryError::Layout { base: range.base, frames: range.frames, problem };
            if range.frames == 0 {
                return Err(wrong("is empty"));
            }
            if range.base < end {
                return Err(wrong("overlaps or precedes the range before it"));
            }
            end = range.end();
            if end > Gfn(1 << (MAX_RAM_BITS - x86::PAGE_SHIFT)) {
                return Err(wrong("reaches past the 16 TiB that guest memory may span"));
            }
            // Disjoint and below 2^32 frames: cannot overflow.
            frames += range.frames;
        }
        if frames == 0 {
            return Err(MemoryError::Layout { base: Gfn(0), frames: 0, problem: "is empty" });
        }
        Ok(Self { ranges: ranges.into(), frames })
    }

    pub(crate) fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// How many frames all ranges have together.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// The first frame past the last range.
    pub(crate) fn end(&self) -> Gfn {
        self.ranges.last().map_or(Gfn(0), RamRange::end)
    }

    /// A frame's slot, if it has memory.
    pub(crate) fn slot(&self, gfn: Gfn) -> Option<u64> {
        let mut before = 0;
        for range in &self.ranges {
            let into = gfn.0.checked_sub(range.base.0)?;
            if into < range.frames {
                return Some(before + into);
            }
            before += range.frames;
        }
        None
    }

    /// The frame of a slot.
    pub(crate) fn gfn(&self, slot: u64) -> Option<Gfn> {
        let mut left = slot;
        for range in &self.ranges {
            if left < range.frames {
                return Some(Gfn(range.base.0 + left));
            }
            left -= range.frames;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, frames: u64) -> RamRange {
        RamRange { base: Gfn(base), frames }
    }

    #[test]
    fn slots_run_across_ranges() {
        let layout = Layout::new(&[range(0, 10), range(16, 4)]).unwrap();
        assert_eq!((layout.frames(), layout.end()), (14, Gfn(20)));
        let slots: Vec<_> = (0..22).filter_map(|gfn| layout.slot(Gfn(gfn))).collect();
        assert_eq!(slots, (0..14).collect::<Vec<_>>());
        assert_eq!(
            [9, 10, 13, 14].map(|s| layout.gfn(s)),
            [Some(Gfn(9)), Some(Gfn(16)), Some(Gfn(19)), None]
        );
    }

    #[test]
    fn impossible_layouts_are_refused() {
        let top = 1 << 32;
        for ranges in [
            vec![],
            vec![range(0, 0)],
            vec![range(0, 8), range(7, 1)],
            vec![range(8, 8), range(0, 8)],
            vec![range(top - 1, 2)],
            vec![range(u64::MAX, u64::MAX)],
        ] {
            assert!(matches!(Layout::new(&ranges), Err(MemoryError::Layout { .. })), "{ranges:?}");
        }
        assert!(Layout::new(&[range(0, 8), range(8, 8), range(top - 1, 1)]).is_ok());
    }
}
