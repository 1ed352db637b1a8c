//! A set of interrupt vectors: the shape of IRR, ISR and TMR (SDM vol. 3, 11.8.4).

/// One bit per vector, 256 in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet([u64; 4]);

const fn place(vector: u8) -> (usize, u64) {
    ((vector >> 6) as usize, 1 << (vector & 63))
}

impl VectorSet {
    pub(super) fn insert(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] |= bit;
    }

    pub(super) fn remove(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] &= !bit;
    }

    pub(super) fn assign(&mut self, vector: u8, member: bool) {
        if member { self.insert(vector) } else { self.remove(vector) }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word] & bit != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The largest member, which has the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let (word, bits) = self.0.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        u8::try_from(word * 64 + bits.ilog2() as usize).ok()
    }

    /// Register `part` (bits 2:0 count) of the eight 32-bit registers that show the set.
    pub(super) fn register(&self, part: u32) -> u32 {
        let word = self.0[(part >> 1 & 3) as usize];
        if part & 1 == 0 { x86::bits::low32(word) } else { x86::bits::high32(word) }
    }

    pub(super) const fn words(&self) -> [u64; 4] {
        self.0
    }

    /// From saved words; vectors below 16, which no APIC accepts, are dropped.
    pub(super) const fn from_words(mut words: [u64; 4]) -> Self {
        words[0] &= !0xffff;
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_highest_and_shows_registers() {
        let mut set = VectorSet::default();
        assert_eq!((set.highest(), set.is_empty()), (None, true));
        for vector in [16, 63, 64, 200, 255] {
            set.insert(vector);
        }
        assert_eq!((set.highest(), set.count()), (Some(255), 5));
        assert_eq!([0, 1, 2, 6, 7].map(|part| set.register(part)), [1 << 16, 1 << 31, 1, 1 << 8, 1 << 31]);
        set.remove(255);
        assert_eq!(set.highest(), Some(200));
        assert!(set.contains(63) && !set.contains(62));
        assert_eq!(VectorSet::from_words(set.words()), set);
    }
}
