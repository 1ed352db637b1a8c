//! Which host pages may have been written, and through which slots of a TLB.
//!
//! Nearly every page is written through one slot, and there are tens of thousands of them: a page takes one place in a table by hash, and
//! only one with further slots has a list of those.

use std::collections::hash_map::Entry;

use x86::Gfn;

use crate::cache::NumberMap;

/// A page that may have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writer {
    frame: Gfn,
    /// The first slot through which.
    slot: u32,
}

/// Pages that may have been written, by host address.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    pages: NumberMap<Writer>,
    /// The slots behind the first.
    others: NumberMap<Vec<u32>>,
    slots: usize,
}

impl Writers {
    /// The slots of all pages together.
    pub(crate) const fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.others.clear();
        self.slots = 0;
    }

    /// A page, which is this guest frame, may be written through a slot from now on.
    pub(crate) fn insert(&mut self, page: u64, frame: Gfn, slot: u32) {
        match self.pages.entry(page) {
            Entry::Vacant(place) => drop(place.insert(Writer { frame, slot })),
            Entry::Occupied(writer) if writer.get().slot == slot => return,
            Entry::Occupied(_) => {
                let others = self.others.entry(page).or_default();
                if others.contains(&slot) {
                    return;
                }
                others.push(slot);
            }
        }
        self.slots += 1;
    }

    /// The guest frame of a page that may have been written.
    pub(crate) fn frame(&self, page: u64) -> Option<Gfn> {
        self.pages.get(&page).map(|writer| writer.frame)
    }

    /// All pages.
    pub(crate) fn pages(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    /// Forgets a page: its guest frame and its slots.
    pub(crate) fn remove(&mut self, page: u64) -> Option<(Gfn, impl Iterator<Item = u32> + use<>)> {
        let Writer { frame, slot } = self.pages.remove(&page)?;
        let others = self.others.remove(&page).unwrap_or_default();
        self.slots -= 1 + others.len();
        Some((frame, std::iter::once(slot).chain(others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_of_a_page_is_known_once_until_the_page_is_removed() {
        let mut writers = Writers::default();
        for (page, slot) in [(0x1000, 4), (0x2000, 5), (0x1000, 6), (0x1000, 4), (0x1000, 7), (0x1000, 6)] {
            writers.insert(page, Gfn(page >> 12), slot);
        }
        assert_eq!(writers.slots(), 4);
        assert_eq!(writers.frame(0x2000), Some(Gfn(2)));
        let (frame, slots) = writers.remove(0x1000).unwrap();
        assert_eq!((frame, slots.collect::<Vec<_>>()), (Gfn(1), vec![4, 6, 7]));
        assert!(writers.remove(0x1000).is_none());
        assert_eq!((writers.slots(), writers.pages()), (1, vec![0x2000]));
        writers.insert(0x1000, Gfn(3), 8);
        assert_eq!(writers.remove(0x1000).map(|(frame, slots)| (frame, slots.count())), Some((Gfn(3), 1)));
        writers.clear();
        assert_eq!((writers.slots(), writers.frame(0x2000)), (0, None));
    }
}
