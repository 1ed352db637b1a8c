//! A set of regions that can say "surely not": which parts of an address space *may* be in the TLB in pieces.
//!
//! INVLPG must drop a large page however many 4 KiB pieces of it were cached, and a global page under whatever address
//! space it was cached. Both are rare, and both need a look at every entry. A bit per hashed region number tells when
//! that look can be left out. Bits are cleared only together, when the TLB is emptied; until then a full set costs
//! time, never correctness.

const WORDS: usize = 8;
const BITS: u32 = 64 * 8;

/// A set of region numbers, too large at times.
#[derive(Clone, Debug, Default)]
pub struct RegionFilter([u64; WORDS]);

impl RegionFilter {
    const fn place(region: u64) -> (usize, u64) {
        // Neighbouring regions get neighbouring bits; far ones are folded over them.
        let hash = region ^ region >> 9 ^ region >> 18 ^ region >> 27;
        let bit = hash % BITS as u64;
        ((bit / 64) as usize % WORDS, 1 << (bit % 64))
    }

    /// Puts a region in.
    pub const fn insert(&mut self, region: u64) {
        let (word, bit) = Self::place(region);
        self.0[word] |= bit;
    }

    /// False if the region surely was not put in.
    pub const fn may_contain(&self, region: u64) -> bool {
        let (word, bit) = Self::place(region);
        self.0[word] & bit != 0
    }
}

/// Which large pages may be in the TLB in pieces, by regions of 4 MiB (2 MiB pages too: what is dropped too much comes
/// back). Apart for the two halves of the address space: kernels map all memory by large pages, most programs nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct LargePages([RegionFilter; 2]);

impl LargePages {
    /// Binary logarithm of a region's size.
    pub(crate) const SHIFT: u32 = 22;

    /// Puts the large page of an address in.
    pub(crate) const fn insert(&mut self, va: u64) {
        self.0[(va >> 63) as usize].insert(va >> Self::SHIFT);
    }

    /// False if the address surely lies in no large page.
    pub(crate) const fn may_contain(&self, va: u64) -> bool {
        self.0[(va >> 63) as usize].may_contain(va >> Self::SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_maps_is_nothing_to_programs() {
        let mut pages = LargePages::default();
        (0..512).for_each(|n| pages.insert(0xffff_8880_0000_0000 + (n << LargePages::SHIFT)));
        assert!(pages.may_contain(0xffff_8880_0020_0000));
        assert!((0..512).all(|n| !pages.may_contain(0x5555_0000_0000 + (n << LargePages::SHIFT))));
    }

    #[test]
    fn what_was_inserted_is_found_and_neighbours_are_not() {
        let mut set = RegionFilter::default();
        set.insert(0x7_ffff_ffff);
        set.insert(5);
        assert!(set.may_contain(0x7_ffff_ffff) && set.may_contain(5));
        assert!(!set.may_contain(6) && !set.may_contain(4));
    }
}
