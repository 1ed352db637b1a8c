//! What places hold whose code changes: several blocks that check themselves, one for each code that has been there.
//!
//! A block that finds that it is not a translation of the code any more leads to the next of its place, which checks
//! itself in turn, and so on; so code that goes to and fro between a few forms is translated once for each. If only
//! immediates have changed the next translation reads these from the code, and takes the place of all before.

use std::ops::Range;

use crate::cache::{Key, NumberMap};

/// Variants of one place at the most. Beyond, the code is interpreted until it has proved itself anew.
const VARIANTS: usize = 4;

/// A block that checks itself.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) number: u32,
    /// Where it is in its page.
    pub(crate) offset: u16,
    /// The bytes that it compares, from there on, the loose ones among them.
    pub(crate) bytes: Box<[u8]>,
    /// Immediates that it could read from the code, and those that it does, as offsets in the page.
    pub(crate) fields: Vec<Range<u16>>,
    pub(crate) loose: Vec<Range<u16>>,
}

impl Variant {
    /// The offsets in the page at which `code`, which begins where the block does, is not what it compares.
    fn differences(&self, code: &[u8]) -> impl Iterator<Item = u16> {
        let missing = code.len() < self.bytes.len();
        let differing = self.bytes.iter().zip(code).zip(self.offset..).filter(|((a, b), _)| a != b);
        let differing = differing.map(|(_, at)| at).filter(|at| !is_in(&self.loose, *at));
        // Never so: both go on to the end of the page.
        missing.then_some(self.offset).into_iter().chain(differing)
    }

    /// The loose fields with which it would be a translation of `code`, if they would do.
    fn loosened(&self, code: &[u8]) -> Option<Vec<Range<u16>>> {
        let changed: Vec<u16> = self.differences(code).collect();
        let known = changed.iter().all(|&at| is_in(&self.fields, at));
        let concerned = |field: &&Range<u16>| changed.iter().any(|at| field.contains(at));
        known.then(|| self.loose.iter().chain(self.fields.iter().filter(concerned)).cloned().collect())
    }
}

fn is_in(fields: &[Range<u16>], at: u16) -> bool {
    fields.iter().any(|field| field.contains(&at))
}

/// What is to be done about code that no variant is a translation of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// One more.
    Another,
    /// One instead of all, with these loose fields.
    Loosen(Vec<Range<u16>>),
    /// There have been too many.
    GiveUp,
}

/// The variants of all places.
#[derive(Debug, Default)]
pub(crate) struct Variants(NumberMap<Vec<Variant>>);

impl Variants {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn add(&mut self, key: Key, variant: Variant) {
        self.0.entry(key.number()).or_default().push(variant);
    }

    /// Forgets those of a place; their blocks, the latest first.
    pub(crate) fn remove(&mut self, key: Key) -> Vec<u32> {
        let gone = self.0.remove(&key.number()).unwrap_or_default();
        gone.into_iter().rev().map(|variant| variant.number).collect()
    }

    /// The block that is a translation of `code`.
    pub(crate) fn find(&self, key: Key, code: &[u8]) -> Option<u32> {
        let mut all = self.0.get(&key.number())?.iter();
        all.find(|variant| variant.differences(code).next().is_none()).map(|variant| variant.number)
    }

    /// What to do about `code`, of which there is no translation.
    pub(crate) fn remedy(&self, key: Key, code: &[u8]) -> Remedy {
        let all = self.0.get(&key.number()).map_or(&[][..], Vec::as_slice);
        let loosened = all.iter().find_map(|variant| variant.loosened(code));
        match loosened {
            Some(loose) => Remedy::Loosen(loose),
            None if all.len() < VARIANTS => Remedy::Another,
            None => Remedy::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use translate::Mode;
    use x86::Mfn;

    use super::*;

    const KEY: Key = Key { mfn: Mfn(3), offset: 0x100, mode: Mode::new() };

    fn variant(number: u32, bytes: &[u8], loose: &[Range<u16>]) -> Variant {
        // An immediate behind each block's first byte.
        Variant {
            number,
            offset: 0x100,
            bytes: bytes.into(),
            fields: Vec::from([0x101..0x105]),
            loose: loose.into(),
        }
    }

    #[test]
    fn blocks_are_found_by_the_code_that_is_there() {
        let mut variants = Variants::default();
        variants.add(KEY, variant(1, &[0xb8, 1, 0, 0, 0, 0xc3], &[]));
        variants.add(KEY, variant(2, &[0x90, 0xc3], &[]));
        assert_eq!(variants.find(KEY, &[0x90, 0xc3, 0, 0, 0, 0]), Some(2));
        assert_eq!(variants.find(KEY, &[0xb8, 1, 0, 0, 0, 0xc3]), Some(1));
        assert_eq!(variants.find(KEY, &[0xb8, 2, 0, 0, 0, 0xc3]), None);
        assert_eq!(variants.find(KEY, &[0xb8, 1, 0, 0, 0]), None);
        assert_eq!(variants.remove(KEY), [2, 1]);
    }

    #[test]
    fn immediates_that_change_are_loosened() {
        let mut variants = Variants::default();
        variants.add(KEY, variant(1, &[0xb8, 1, 0, 0, 0, 0xc3], &[]));
        let field = 0x101..0x105;
        assert_eq!(variants.remedy(KEY, &[0xb8, 2, 0, 0, 0, 0xc3]), Remedy::Loosen(vec![field.clone()]));
        assert_eq!(variants.remedy(KEY, &[0xb9, 2, 0, 0, 0, 0xc3]), Remedy::Another);
        assert_eq!(variants.remedy(KEY, &[0xb8, 1, 0, 0, 0, 0xc2]), Remedy::Another);
        variants.remove(KEY);
        variants.add(KEY, variant(2, &[0xb8, 1, 0, 0, 0, 0xc3], &[field]));
        assert_eq!(variants.find(KEY, &[0xb8, 9, 8, 7, 6, 0xc3]), Some(2));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut variants = Variants::default();
        for number in 0..4 {
            assert_eq!(variants.remedy(KEY, &[0xff]), Remedy::Another);
            variants.add(KEY, variant(number, &[u8::try_from(number).unwrap()], &[]));
        }
        assert_eq!(variants.remedy(KEY, &[0xff]), Remedy::GiveUp);
    }
}
