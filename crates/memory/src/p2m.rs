//! The physical-to-machine map: what each guest frame is, and which machine frame stands behind it.
//!
//! One 64-bit word per guest frame, in leaves of 512 words (2 MiB of guest memory each) under one top-level array; a
//! part of the guest-physical space without memory has no leaf. The two levels themselves never change after creation,
//! so a look-up takes no lock: it is two loads and no more than two bounds checks. An entry changes as a whole, by one
//! atomic store.
//!
//! ```text
//!   63            12 11     4  3        2    0
//!  | machine frame  |  zero  | backed | kind  |
//! ```
//!
//! The map costs 8 bytes for each 4096 of guest memory.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use x86::bits::index;
use x86::{Gfn, Mfn};

use crate::layout::Layout;

/// log2 of the entries in a leaf.
const LEAF_SHIFT: u32 = 9;
const LEAF_ENTRIES: usize = 1 << LEAF_SHIFT;
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

type Leaf = [AtomicU64; LEAF_ENTRIES];

/// The map of one guest.
#[derive(Debug)]
pub(crate) struct P2m {
    leaves: Box<[Option<Box<Leaf>>]>,
}

impl P2m {
    /// Every frame of `layout` as RAM, backed by the machine frame of its slot.
    pub(crate) fn new(layout: &Layout) -> Self {
        let count = index(layout.end().0).div_ceil(LEAF_ENTRIES);
        let mut leaves: Box<[Option<Box<Leaf>>]> = std::iter::repeat_with(|| None).take(count).collect();
        let mut mfn = 0;
        for range in layout.ranges() {
            for gfn in range.base.0..range.end().0 {
                if let Some(leaf) = leaves.get_mut(index(gfn >> LEAF_SHIFT)) {
                    let leaf =
                        leaf.get_or_insert_with(|| Box::new([const { AtomicU64::new(0) }; LEAF_ENTRIES]));
                    *leaf[index(gfn) % LEAF_ENTRIES].get_mut() =
                        mfn << MFN_SHIFT | BACKED | FrameKind::Ram as u64;
                    mfn += 1;
                }
            }
        }
        Self { leaves }
    }

    #[inline(always)]
    fn word(&self, gfn: Gfn) -> Option<&AtomicU64> {
        let leaf = self.leaves.get(index(gfn.0 >> LEAF_SHIFT))?.as_ref()?;
        Some(&leaf[index(gfn.0) % LEAF_ENTRIES])
    }

    /// What `gfn` is; [`FrameKind::Mmio`] outside the layout.
    #[inline(always)]
    pub(crate) fn entry(&self, gfn: Gfn) -> P2mEntry {
        // Acquire: whoever sees the new kind sees what was done to the frame before it was set.
        let word = self.word(gfn).map_or(0, |word| word.load(Ordering::Acquire));
        P2mEntry { kind: FrameKind::from_bits(word), mfn: Mfn(word >> MFN_SHIFT) }
    }

    /// Changes a frame's kind and returns what it was, or `None` if there is no machine frame behind it.
    pub(crate) fn set_kind(&self, gfn: Gfn, kind: FrameKind) -> Option<P2mEntry> {
        let word = self.word(gfn)?;
        let before = word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                (old & BACKED != 0).then_some(old & !KIND_MASK | kind as u64)
            })
            .ok()?;
        Some(P2mEntry { kind: FrameKind::from_bits(before), mfn: Mfn(before >> MFN_SHIFT) })
    }
}
