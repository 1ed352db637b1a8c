//! Who gets which guest memory while a machine is being loaded.
//!
//! One ledger of usable RAM and of what is taken. Kernels claim the exact ranges that their format demands; boot
//! data and initrds ask for a place and get a free one. A range is handed out at most once and only inside RAM that
//! the map gives to the operating system, so loading cannot overlap anything, whatever the file says.
//!
//! The first page is never handed out: it holds the real-mode vectors and the BIOS data area, and several boot
//! protocols take address 0 for "not there".

use std::collections::BTreeMap;

use x86::{Gpa, PAGE_SIZE};

use crate::layout::{MemoryMap, RegionKind};

/// Why a claim was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not all of it is usable RAM.
    NotRam,
    /// Something else is there already.
    Taken,
}

/// The ledger.
pub(crate) struct Arena {
    /// Usable RAM as start and end, ascending.
    usable: Vec<(u64, u64)>,
    /// Start to end of what is taken; disjoint, never empty, each inside one usable range.
    taken: BTreeMap<u64, u64>,
}

impl Arena {
    /// Everything usable is free.
    pub(crate) fn new(map: &MemoryMap) -> Self {
        let usable = map
            .regions()
            .into_iter()
            .filter(|region| region.kind == RegionKind::Usable)
            .map(|region| (region.start.0.max(PAGE_SIZE), region.end.0))
            .collect();
        Self { usable, taken: BTreeMap::new() }
    }

    /// Takes exactly `len` bytes at `start`. Taking nothing always succeeds.
    pub(crate) fn claim(&mut self, start: u64, len: u64) -> Result<(), Refusal> {
        if len == 0 {
            return Ok(());
        }
        let end = start.checked_add(len).ok_or(Refusal::NotRam)?;
        if !self.usable.iter().any(|&(first, last)| first <= start && end <= last) {
            return Err(Refusal::NotRam);
        }
        if self.taken.range(..end).next_back().is_some_and(|(_, &taken_end)| taken_end > start) {
            return Err(Refusal::Taken);
        }
        self.taken.insert(start, end);
        Ok(())
    }

    /// Takes the lowest free `len` bytes that start at or after `from`, end at or before `limit`, and are aligned to
    /// `align`, a power of two.
    pub(crate) fn lowest(&mut self, len: u64, align: u64, from: u64, limit: u64) -> Option<Gpa> {
        let len = len.max(1);
        let start = self.gaps().into_iter().find_map(|(first, last)| {
            let start = first.max(from).checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= last.min(limit)).then_some(start)
        })?;
        self.claim(start, len).ok()?;
        Some(Gpa(start))
    }

    /// Takes the highest free `len` bytes that start at or after `from`, end at or before `limit`, and are aligned
    /// to `align`, a power of two.
    pub(crate) fn highest(&mut self, len: u64, align: u64, from: u64, limit: u64) -> Option<Gpa> {
        let len = len.max(1);
        let start = self.gaps().into_iter().rev().find_map(|(first, last)| {
            let start = last.min(limit).checked_sub(len)? & !(align - 1);
            (start >= first.max(from)).then_some(start)
        })?;
        self.claim(start, len).ok()?;
        Some(Gpa(start))
    }

    /// The size of the largest free range between `from` and `limit`.
    pub(crate) fn largest_gap(&self, from: u64, limit: u64) -> u64 {
        let sizes =
            self.gaps().into_iter().map(|(first, last)| last.min(limit).saturating_sub(first.max(from)));
        sizes.max().unwrap_or(0)
    }

    /// The free ranges as start and end, ascending.
    fn gaps(&self) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        for &(first, last) in &self.usable {
            let mut free = first;
            for (&start, &end) in self.taken.range(first..last) {
                if free < start {
                    gaps.push((free, start));
                }
                free = end;
            }
            if free < last {
                gaps.push((free, last));
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn claims_do_not_overlap_and_stay_in_ram() {
        let mut arena = Arena::new(&MemoryMap::new(16 * MIB));
        assert_eq!(arena.claim(MIB, MIB), Ok(()));
        assert_eq!(arena.claim(2 * MIB, MIB), Ok(()));
        assert_eq!(arena.claim(2 * MIB - 1, 1), Err(Refusal::Taken));
        assert_eq!(arena.claim(0x5000, 2 * MIB), Err(Refusal::NotRam), "across the video hole");
        assert_eq!(arena.claim(0, 4096), Err(Refusal::NotRam), "the first page");
        assert_eq!(arena.claim(15 * MIB, MIB + 1), Err(Refusal::NotRam));
        assert_eq!(arena.claim(u64::MAX, 2), Err(Refusal::NotRam));
        assert_eq!(arena.claim(u64::MAX, 0), Ok(()));
    }

    #[test]
    fn places_are_the_lowest_and_the_highest() {
        let mut arena = Arena::new(&MemoryMap::new(16 * MIB));
        assert_eq!(arena.lowest(10, 16, 0, u64::MAX), Some(Gpa(0x1000)));
        assert_eq!(arena.lowest(10, 16, 0, u64::MAX), Some(Gpa(0x1010)));
        assert_eq!(arena.lowest(10, 4096, MIB, u64::MAX), Some(Gpa(MIB)));
        assert_eq!(arena.highest(10, 4096, 0, u64::MAX), Some(Gpa(16 * MIB - 4096)));
        assert_eq!(arena.highest(10, 4096, 0, 8 * MIB), Some(Gpa(8 * MIB - 4096)));
        assert_eq!(arena.highest(10, 4096, 8 * MIB, 8 * MIB + 5), None);
        assert_eq!(arena.lowest(64 * MIB, 1, 0, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn whatever_is_handed_out_is_disjoint_ram(
            asks in proptest::collection::vec((any::<bool>(), 0u64..3 * MIB, 0u32..22, 0u64..40 * MIB), 1..60)
        ) {
            let map = MemoryMap::new(32 * MIB);
            let mut arena = Arena::new(&map);
            let mut given: Vec<(u64, u64)> = Vec::new();
            for (low, len, shift, bound) in asks {
                let align = 1 << shift;
                let place = if low {
                    arena.lowest(len, align, bound, u64::MAX)
                } else {
                    arena.highest(len, align, 0, bound)
                };
                let Some(place) = place else { continue };
                let end = place.0 + len;
                prop_assert_eq!(place.0 % align, 0);
                let in_bounds = if low { place.0 >= bound } else { end <= bound };
                prop_assert!(in_bounds);
                let regions = map.regions();
                let mut usable = regions.iter().filter(|r| r.kind == RegionKind::Usable);
                prop_assert!(usable.any(|r| r.start.0 <= place.0 && end <= r.end.0));
                prop_assert!(given.iter().all(|&(s, e)| end <= s || e <= place.0));
                given.push((place.0, end));
            }
        }
    }
}
