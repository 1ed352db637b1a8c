//! The saved form of the guest-to-machine map: layout and kinds, not contents.
//!
//! Kinds are stored as runs over the layout's frames in order, since nearly all frames of a guest are of one kind. Machine
//! frame numbers are not saved: they mean nothing on another host.

use serde::{Deserialize, Serialize};
use state::Saved;
use x86::Gfn;

use crate::{FrameKind, MemoryError, RamRange};

/// Layout and kinds of a guest's frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedP2m {
    /// First frame and length of each range.
    ranges: Vec<(Gfn, u64)>,
    /// Consecutive frames of the layout that are of one kind.
    runs: Vec<(u64, FrameKind)>,
}

impl Saved for SavedP2m {
    const NAME: &'static str = "p2m";
    const VERSION: u16 = 1;
}

impl SavedP2m {
    pub(crate) fn new(ranges: &[RamRange], kind_of: impl Fn(Gfn) -> FrameKind) -> Self {
        let mut runs: Vec<(u64, FrameKind)> = Vec::new();
        for gfn in ranges.iter().flat_map(|range| range.base.0..range.end().0) {
            let kind = kind_of(Gfn(gfn));
            match runs.last_mut() {
                Some((length, last)) if *last == kind => *length += 1,
                _ => runs.push((1, kind)),
            }
        }
        Self { ranges: ranges.iter().map(|range| (range.base, range.frames)).collect(), runs }
    }

    pub(crate) fn ranges(&self) -> Vec<RamRange> {
        self.ranges.iter().map(|&(base, frames)| RamRange { base, frames }).collect()
    }

    /// The frames that are not RAM, which is what every frame starts as. `slots` is the size of the layout.
    pub(crate) fn kinds(
        &self,
        slots: u64,
        gfn_of: impl Fn(u64) -> Option<Gfn>,
    ) -> Result<impl Iterator<Item = (Gfn, FrameKind)>, MemoryError> {
        let total = self.runs.iter().try_fold(0u64, |sum, &(length, _)| sum.checked_add(length));
        if total != Some(slots) {
            return Err(MemoryError::Damaged { problem: "the kinds do not cover the layout" });
        }
        let mut next = 0;
        let spans = self.runs.iter().map(move |&(length, kind)| {
            let start = next;
            next += length;
            (start..next, kind)
        });
        Ok(spans
            .filter(|&(_, kind)| kind != FrameKind::Ram)
            .flat_map(|(span, kind)| span.map(move |slot| (slot, kind)))
            .filter_map(move |(slot, kind)| Some((gfn_of(slot)?, kind))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;
    use state::Record;

    fn memory() -> GuestMemory {
        let ranges = [RamRange { base: Gfn(0), frames: 160 }, RamRange { base: Gfn(256), frames: 900 }];
        let memory = GuestMemory::new(&ranges).unwrap();
        for gfn in 140..150 {
            memory.set_kind(Gfn(gfn), FrameKind::ReadOnly).unwrap();
        }
        memory.set_kind(Gfn(159), FrameKind::Ballooned).unwrap();
        memory.set_kind(Gfn(256), FrameKind::Ballooned).unwrap();
        memory.set_kind(Gfn(1155), FrameKind::Absent).unwrap();
        memory
    }

    #[test]
    fn the_map_round_trips() {
        let before = memory();
        let saved = Record::encode(&before.save()).decode::<SavedP2m>().unwrap();
        let after = GuestMemory::restore(&saved, before.ranges()).unwrap();
        assert_eq!(after.ranges(), before.ranges());
        assert_eq!(after.save(), before.save());
        for gfn in (0..1300).map(Gfn) {
            assert_eq!(after.entry(gfn), before.entry(gfn));
        }
    }

    #[test]
    fn maps_that_contradict_themselves_are_refused() {
        let good = memory().save();
        let ranges = memory().ranges().to_vec();
        let short = SavedP2m { runs: good.runs[1..].to_vec(), ..good.clone() };
        let long = SavedP2m { runs: vec![(u64::MAX, FrameKind::Ram), (2, FrameKind::Ram)], ..good.clone() };
        let crossed = SavedP2m { ranges: vec![(Gfn(9), 1), (Gfn(0), 1059)], ..good };
        assert!(matches!(GuestMemory::restore(&short, &ranges), Err(MemoryError::Damaged { .. })));
        assert!(matches!(GuestMemory::restore(&long, &ranges), Err(MemoryError::Damaged { .. })));
        assert!(matches!(GuestMemory::restore(&crossed, &ranges), Err(MemoryError::Damaged { .. })));
        let ranges = crossed.ranges();
        assert!(matches!(GuestMemory::restore(&crossed, &ranges), Err(MemoryError::Layout { .. })));
    }
}
