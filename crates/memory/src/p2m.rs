//! The physical-to-machine map: what each guest frame is, and which machine frame stands behind it.
//!
//! One 64-bit word per guest frame, in leaves of 512 words (2 MiB of guest memory each) under one top-level array; a
//! part of the guest-physical space without memory has no leaf. The two levels themselves never change after creation,
//! so a look-up takes no lock: it is three loads and two bounds checks. An entry changes as a whole, by one atomic store.
//!
//! ```text
//!   63            12 11     4  3        2    0
//!  | machine frame  |  zero  | backed | kind  |
//! ```
//!
//! A word is stored as its difference (exclusive or) from what the leaf would hold if it were RAM in ascending order of
//! machine frames. Nearly all of a guest is exactly that, so nearly all of the map is zeros that were never written and
//! cost nothing; otherwise a large guest would pay for its map before it touches a byte.
//!
//! Who maps large pages asks whether all of one is RAM in ascending machine frames ([`P2m::run`]). A count per leaf of the
//! words that are anything else answers for 512 frames at a time. It is raised before such a word is stored and lowered
//! after it is gone, so a zero is never wrong about a change that has been announced.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use x86::bits::index;
use x86::{Gfn, Mfn};

use crate::layout::Layout;
use crate::zeroed::Table;
use crate::{MemoryError, RamRange};

const LEAF_ENTRIES: u64 = 512;
const KIND_MASK: u64 = 7;
/// A machine frame belongs to this guest frame, whatever its kind.
const BACKED: u64 = 1 << 3;
const MFN_SHIFT: u32 = 12;

/// What a guest frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum FrameKind {
    /// Not memory: accesses go to the bus. What every frame outside the layout is.
    Mmio = 0,
    /// Memory.
    Ram = 1,
    /// Memory whose writes are dropped: ROM.
    ReadOnly = 2,
    /// Nothing: the machine promises that no device answers here either.
    Absent = 3,
    /// Memory that the guest has given back (a balloon). It costs nothing and reads as zeros; whoever is about to write
    /// makes it [`FrameKind::Ram`] again first, with contents that are not promised.
    Ballooned = 4,
    /// Memory whose machine frame others see too: reads are free, a write needs a private copy first.
    Shared = 5,
    /// Memory whose contents are elsewhere: must be brought back before any access.
    Swapped = 6,
}

impl FrameKind {
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        match bits & KIND_MASK {
            0 => Self::Mmio,
            1 => Self::Ram,
            2 => Self::ReadOnly,
            4 => Self::Ballooned,
            5 => Self::Shared,
            6 => Self::Swapped,
            // 7 is never stored.
            _ => Self::Absent,
        }
    }
}

/// What the map says of one guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2mEntry {
    /// What the frame is.
    pub kind: FrameKind,
    /// The machine frame behind it. Means nothing (and is 0) for a frame that is not part of the layout; for one that
    /// is, it stays the same whatever the kind.
    pub mfn: Mfn,
}

impl P2mEntry {
    #[inline(always)]
    fn from_word(word: u64) -> Self {
        Self { kind: FrameKind::from_bits(word), mfn: Mfn(word >> MFN_SHIFT) }
    }
}

/// One entry of the top level.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    /// The index of its first word in the table; past every table's end if there is no leaf.
    at: usize,
    /// What its first word is the difference from. That of the word after is one machine frame more, and so on.
    start: u64,
}

impl Leaf {
    const NONE: Self = Self { at: usize::MAX / 2, start: 0 };

    /// What the word of the leaf's entry for `gfn` is the difference from.
    #[inline(always)]
    fn initial(self, gfn: u64) -> u64 {
        self.start.wrapping_add((gfn % LEAF_ENTRIES) << MFN_SHIFT)
    }
}

/// The map of one guest.
#[derive(Debug)]
pub(crate) struct P2m {
    leaves: Box<[Leaf]>,
    words: Table<AtomicU64>,
    /// By leaf, in the order of their words: how many words are not zero, or are about to be.
    special: Table<AtomicU32>,
    /// How many frames are [`FrameKind::Ballooned`].
    ballooned: AtomicU64,
}

impl P2m {
    /// Every frame of `layout` as RAM, backed by the machine frame of its slot.
    pub(crate) fn new(layout: &Layout) -> Result<Self, MemoryError> {
        let leaves_of = |range: &RamRange| range.base.0 / LEAF_ENTRIES..range.end().0.div_ceil(LEAF_ENTRIES);
        // Ranges that share a leaf count it twice, which wastes nothing but addresses.
        let count: u64 = layout.ranges().iter().map(|range| leaves_of(range).count() as u64).sum();
        let mut map = Self {
            leaves: vec![Leaf::NONE; index(layout.end().0.div_ceil(LEAF_ENTRIES))].into(),
            words: Table::new(count * LEAF_ENTRIES)?,
            special: Table::new(count)?,
            ballooned: AtomicU64::new(0),
        };
        let (mut at, mut slots) = (0, 0);
        for range in layout.ranges() {
            // What a frame of this range is, as a function of its number; the bits above wrap for frames before it.
            let entry = |gfn: u64| {
                gfn.wrapping_sub(range.base.0).wrapping_add(slots) << MFN_SHIFT
                    | BACKED
                    | FrameKind::Ram as u64
            };
            for number in leaves_of(range) {
                map.add_leaf(number, range, entry, &mut at);
            }
            slots += range.frames;
        }
        Ok(map)
    }

    /// Enters the part of `range` that lies in leaf `number`. `at` is where the next leaf's words go.
    fn add_leaf(&mut self, number: u64, range: &RamRange, entry: impl Fn(u64) -> u64, at: &mut usize) {
        let Some(leaf) = self.leaves.get_mut(index(number)) else { return };
        let frames = number * LEAF_ENTRIES..(number + 1) * LEAF_ENTRIES;
        let inside = |gfn: &u64| (range.base.0..range.end().0).contains(gfn);
        let new = leaf.at == Leaf::NONE.at;
        if new {
            *leaf = Leaf { at: *at, start: entry(frames.start) };
            *at += index(LEAF_ENTRIES);
            if inside(&frames.start) && inside(&(frames.end - 1)) {
                return;
            }
        }
        // A leaf that this range does not fill: either the rest of it is no memory, or another range's part is in already.
        let leaf = *leaf;
        for gfn in frames.filter(|gfn| inside(gfn) != new) {
            if let Some(word) = self.words.get(leaf.at + index(gfn % LEAF_ENTRIES)) {
                let value = if new { 0 } else { entry(gfn) };
                let after = value ^ leaf.initial(gfn);
                let before = word.swap(after, Ordering::Relaxed);
                if let Some(special) = self.special.get(leaf.at / index(LEAF_ENTRIES)) {
                    special.fetch_add(u32::from(after != 0), Ordering::Relaxed);
                    special.fetch_sub(u32::from(before != 0), Ordering::Relaxed);
                }
            }
        }
    }

    /// A frame's word, and what it is the difference from.
    #[inline(always)]
    fn word(&self, gfn: Gfn) -> Option<(&AtomicU64, u64)> {
        let leaf = self.leaves.get(index(gfn.0 / LEAF_ENTRIES))?;
        Some((self.words.get(leaf.at + index(gfn.0 % LEAF_ENTRIES))?, leaf.initial(gfn.0)))
    }

    /// What `gfn` is; [`FrameKind::Mmio`] outside the layout.
    #[inline(always)]
    pub(crate) fn entry(&self, gfn: Gfn) -> P2mEntry {
        // Acquire: whoever sees the new kind sees what was done to the frame before it was set.
        let word = self.word(gfn).map_or(0, |(word, initial)| word.load(Ordering::Acquire) ^ initial);
        P2mEntry::from_word(word)
    }

    /// How many frames are [`FrameKind::Ballooned`].
    pub(crate) fn ballooned(&self) -> u64 {
        self.ballooned.load(Ordering::Relaxed)
    }

    /// Changes a frame's kind and returns what it was, or `None` if there is no machine frame behind it.
    pub(crate) fn set_kind(&self, gfn: Gfn, kind: FrameKind) -> Option<P2mEntry> {
        self.change_kind(gfn, kind, |_| true)
    }

    /// As [`P2m::set_kind`], if `may` says so of what the frame is; otherwise nothing happens, and `None`.
    pub(crate) fn change_kind(
        &self,
        gfn: Gfn,
        kind: FrameKind,
        may: impl Fn(FrameKind) -> bool,
    ) -> Option<P2mEntry> {
        let (word, initial) = self.word(gfn)?;
        let special = self.special(gfn)?;
        special.fetch_add(1, Ordering::AcqRel);
        let mut after = 0;
        let before = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |stored| {
            let old = stored ^ initial;
            after = (old & !KIND_MASK | kind as u64) ^ initial;
            (old & BACKED != 0 && may(FrameKind::from_bits(old))).then_some(after)
        });
        // What was counted beforehand stays counted for a word that is special now and was not.
        let surplus = match before {
            Ok(before) => u32::from(before != 0) + u32::from(after == 0),
            Err(_) => 1,
        };
        special.fetch_sub(surplus, Ordering::AcqRel);
        let before = P2mEntry::from_word(before.ok()? ^ initial);
        match (before.kind, kind) {
            (FrameKind::Ballooned, FrameKind::Ballooned) => 0,
            (FrameKind::Ballooned, _) => self.ballooned.fetch_sub(1, Ordering::Relaxed),
            (_, FrameKind::Ballooned) => self.ballooned.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Some(before)
    }

    fn special(&self, gfn: Gfn) -> Option<&AtomicU32> {
        let leaf = self.leaves.get(index(gfn.0 / LEAF_ENTRIES))?;
        self.special.get(leaf.at / index(LEAF_ENTRIES))
    }

    /// The machine frame of `first`, if this frame and the `frames - 1` that follow are RAM in ascending machine frames.
    pub(crate) fn run(&self, first: Gfn, frames: u64) -> Option<Mfn> {
        let start = self.entry(first);
        let end = first.0.checked_add(frames)?;
        let mut gfn = first.0;
        while gfn < end {
            let expected = P2mEntry { kind: FrameKind::Ram, mfn: Mfn(start.mfn.0 + (gfn - first.0)) };
            if self.entry(Gfn(gfn)) != expected {
                return None;
            }
            let whole = gfn.is_multiple_of(LEAF_ENTRIES) && end - gfn >= LEAF_ENTRIES;
            let plain = whole && self.special(Gfn(gfn)).is_some_and(|s| s.load(Ordering::Acquire) == 0);
            gfn += if plain { LEAF_ENTRIES } else { 1 };
        }
        Some(start.mfn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_may_share_leaves_in_any_way() {
        let layouts: [&[(u64, u64)]; 6] = [
            &[(0, 512)],
            &[(0, 1)],
            &[(511, 2)],
            &[(3, 7), (10, 5), (17, 1), (600, 2000)],
            &[(100, 1000), (1200, 336), (1536, 512), (2049, 1)],
            &[(0, 160), (256, 800), (1056, 1)],
        ];
        for ranges in layouts {
            let ranges: Vec<_> =
                ranges.iter().map(|&(base, frames)| RamRange { base: Gfn(base), frames }).collect();
            let layout = Layout::new(&ranges).unwrap();
            let map = P2m::new(&layout).unwrap();
            for gfn in (0..3000).map(Gfn) {
                let expected =
                    layout.slot(gfn).map_or(P2mEntry { kind: FrameKind::Mmio, mfn: Mfn(0) }, |slot| {
                        P2mEntry { kind: FrameKind::Ram, mfn: Mfn(slot) }
                    });
                assert_eq!(map.entry(gfn), expected, "{gfn:?} of {ranges:?}");
                let changed = map.set_kind(gfn, FrameKind::Absent);
                assert_eq!(changed, layout.slot(gfn).map(|_| expected));
                assert_eq!(map.entry(gfn).mfn, expected.mfn);
            }
        }
    }

    #[test]
    fn runs_are_ram_in_ascending_frames() {
        let ranges = [(0, 160), (256, 3000), (4096, 1024)];
        let ranges: Vec<_> =
            ranges.iter().map(|&(base, frames)| RamRange { base: Gfn(base), frames }).collect();
        let layout = Layout::new(&ranges).unwrap();
        let map = P2m::new(&layout).unwrap();
        // By definition, frame by frame.
        let by_frame = |first: u64, frames: u64| {
            let start = map.entry(Gfn(first)).mfn;
            let is =
                |i| map.entry(Gfn(first + i)) == P2mEntry { kind: FrameKind::Ram, mfn: Mfn(start.0 + i) };
            (0..frames).all(is).then_some(start)
        };
        let compare = || {
            for first in (0..5500).step_by(64) {
                for frames in [1, 64, 512, 1024, 2048] {
                    assert_eq!(map.run(Gfn(first), frames), by_frame(first, frames), "{first} {frames}");
                }
            }
        };
        compare();
        assert_eq!(map.run(Gfn(512), 2048), Some(Mfn(160 + 256)));
        for kind in
            [FrameKind::ReadOnly, FrameKind::ReadOnly, FrameKind::Mmio, FrameKind::Ram, FrameKind::Ram]
        {
            for gfn in [0, 200, 700, 1023, 4096, 4607, 5119, 5200] {
                map.set_kind(Gfn(gfn), kind);
            }
            compare();
        }
        assert_eq!(map.run(Gfn(512), 2048), Some(Mfn(160 + 256)), "and back");
        assert_eq!(map.run(Gfn(u64::MAX), 2), None);
    }
}
