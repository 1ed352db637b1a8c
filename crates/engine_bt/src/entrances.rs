//! Which block translates a place in a machine frame: a table by hash that the engine and translated code both look in.
//!
//! A key lies in the first free slot from its own on, and whatever is taken out is closed up at once, so a look-up ends at
//! the first free slot.

use translate::context::{Entrance, entrance_slot};

#[derive(Debug)]
pub(crate) struct Entrances {
    slots: Box<[Entrance]>,
    /// The last slot that is a key's own; some more lie behind it.
    last: u64,
    used: usize,
}

/// How many slots lie behind the last that is a key's own, the last of all always free.
const BEHIND: usize = 256;

impl Entrances {
    /// With room for at least `places` places.
    pub(crate) fn new(places: usize) -> Self {
        let own = (places.max(1) * 4 / 3).next_power_of_two();
        let slots = vec![Entrance::default(); own + BEHIND].into_boxed_slice();
        Self { slots, last: own as u64 - 1, used: 0 }
    }

    /// Where the table lies, as long as this lives, as [`translate::Context::entrances`] has it.
    pub(crate) fn address(&self) -> [u64; 2] {
        [self.slots.as_ptr() as u64, self.last]
    }

    /// Bytes that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }

    /// Whether there is room for one more, wherever its own slot is.
    pub(crate) fn has_room(&self) -> bool {
        self.used < self.slots.len() / 4 * 3 && self.free_from(self.slots.len() - BEHIND / 2).is_some()
    }

    /// The block of a place.
    pub(crate) fn get(&self, key: u64) -> Option<u32> {
        self.slots.get(self.find(key)?).map(|entrance| entrance.block)
    }

    /// A place gets a block if it has none; there is room.
    pub(crate) fn insert(&mut self, entrance: Entrance) {
        if self.find(entrance.key).is_none()
            && let Some(slot) = self.free_from(entrance_slot(entrance.key, self.last))
        {
            self.used += 1;
            self.put(slot, entrance);
        }
    }

    /// A place has no block any more.
    pub(crate) fn remove(&mut self, key: u64) {
        let Some(mut gap) = self.find(key) else { return };
        self.used -= 1;
        // What lies behind the gap moves into it unless its own slot lies behind the gap too.
        let mut slot = gap + 1;
        while let Some(next) = self.slots.get(slot).copied().filter(|next| next.key != 0) {
            if entrance_slot(next.key, self.last) <= gap {
                self.put(gap, next);
                gap = slot;
            }
            slot += 1;
        }
        self.put(gap, Entrance::default());
    }

    pub(crate) fn clear(&mut self) {
        self.slots.fill(Entrance::default());
        self.used = 0;
    }

    fn put(&mut self, slot: usize, entrance: Entrance) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = entrance;
        }
    }

    fn find(&self, key: u64) -> Option<usize> {
        let own = entrance_slot(key, self.last);
        let from = self.slots.get(own..)?;
        let end = from.iter().position(|entrance| entrance.key == key || entrance.key == 0)?;
        from.get(end).filter(|entrance| entrance.key == key).map(|_| own + end)
    }

    /// The first free slot from one on, but for the last of all.
    fn free_from(&self, slot: usize) -> Option<usize> {
        let slots = self.slots.get(slot..self.slots.len() - 1)?;
        slots.iter().position(|entrance| entrance.key == 0).map(|free| slot + free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(key: u64, block: u32) -> Entrance {
        Entrance { key, block, code: 0 }
    }

    /// Keys of one slot.
    fn alike(number: u64) -> u64 {
        // The frame's high bits do not reach the slot's number.
        number << 60 | 0x5 << 16 | 1
    }

    #[test]
    fn what_is_removed_is_not_found_and_its_neighbours_are() {
        let mut entrances = Entrances::new(64);
        let neighbour = 0x6 << 16 | 1;
        for number in 0..5 {
            entrances.insert(entrance(alike(number), number as u32));
        }
        entrances.insert(entrance(neighbour, 9));
        for number in [2, 0, 4] {
            entrances.remove(alike(number));
            assert_eq!(entrances.get(alike(number)), None);
        }
        assert_eq!([1, 3].map(|number| entrances.get(alike(number))), [Some(1), Some(3)]);
        assert_eq!(entrances.get(neighbour), Some(9));
        entrances.clear();
        assert_eq!(entrances.get(neighbour), None);
    }

    #[test]
    fn there_is_room_until_there_is_not_and_every_look_up_ends() {
        let mut entrances = Entrances::new(64);
        let mut number = 0;
        while entrances.has_room() {
            entrances.insert(entrance(0x7f << 16 | number << 60 | number << 40 | 1, 1));
            number += 1;
            assert!(number < 1000);
        }
        assert!(number >= 64);
        assert_eq!(entrances.get(0x7f << 16 | 3), None);
    }
}
