//! What a guest says of its memory management (VIRTIO 1.2, 5.5.6.3).

use memory::GuestMemory;

use crate::queue::Buffers;

/// The bytes of one statistic: a tag of two and a value of eight.
const BYTES: usize = 10;
/// The most that are read.
const MOST: usize = 64;

/// A number that the guest tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// What it counts.
    pub name: &'static str,
    /// The number.
    pub value: u64,
}

/// By tag.
const NAMES: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "cache_bytes",
    "huge_page_allocations",
    "huge_page_failures",
    "oom_kills",
    "allocation_stalls",
    "background_scans",
    "direct_scans",
    "background_reclaims",
    "direct_reclaims",
];

/// All that it told, in the order of tags; empty if it never did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics([Option<u64>; NAMES.len()]);

impl Statistics {
    /// What is in a buffer. Tags that are not known are left out, and the last value counts of one that is there twice.
    pub(super) fn read(memory: &GuestMemory, buffer: &Buffers) -> Self {
        let mut bytes = [0; BYTES * MOST];
        let len = buffer.read(memory, &mut bytes).unwrap_or(0);
        let mut all = Self::default();
        for [a, b, value @ ..] in bytes.get(..len).unwrap_or_default().as_chunks::<BYTES>().0 {
            if let Some(place) = all.0.get_mut(usize::from(u16::from_le_bytes([*a, *b]))) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
        all
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = Statistic> + '_ {
        NAMES.into_iter().zip(self.0).filter_map(|(name, value)| Some(Statistic { name, value: value? }))
    }
}
