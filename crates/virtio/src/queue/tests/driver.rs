//! The driver's side of both layouts, written from the specification and not from the device's side.

#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use memory::{GuestMemory, RamRange};
use x86::Gpa;

use super::super::{Areas, RingFeatures};

pub(crate) const AREAS: Areas = Areas { descriptors: 0x1000, driver: 0x3000, device: 0x4000 };
/// Indirect tables, one for each descriptor or identifier.
const TABLES: u64 = 0x1_0000;
const TABLE: u64 = 0x400;

/// The same areas so much further on.
pub(crate) fn shifted(shift: u64) -> Areas {
    Areas {
        descriptors: AREAS.descriptors + shift,
        driver: AREAS.driver + shift,
        device: AREAS.device + shift,
    }
}

/// A buffer: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// When the driver wants to be interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Always,
    Never,
    /// For the chain so many after the next (event index only).
    After(u16),
}

pub(crate) fn memory() -> GuestMemory {
    GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x4_0000)]).unwrap()
}

/// A driver of one queue.
pub(crate) struct Driver<'a> {
    memory: &'a GuestMemory,
    areas: Areas,
    /// Where indirect tables are.
    tables: u64,
    size: u16,
    features: RingFeatures,
    /// What is out, by head or identifier: the descriptors it took up.
    out: BTreeMap<u16, Vec<u16>>,
    free: Vec<u16>,
    /// Split: free-running indices. Packed: places.
    avail: u16,
    used: u16,
    wraps: (bool, bool),
}

impl<'a> Driver<'a> {
    /// A driver that has made `start` chains available and got them back (split only).
    pub(crate) fn new(memory: &'a GuestMemory, size: u16, features: RingFeatures, start: u16) -> Self {
        Self::at(0, memory, size, features, start)
    }

    /// The same with everything so much further on in memory.
    pub(crate) fn at(
        shift: u64,
        memory: &'a GuestMemory,
        size: u16,
        features: RingFeatures,
        start: u16,
    ) -> Self {
        let start = if features.packed { 0 } else { start };
        let free = (0..size).rev().collect();
        let driver = Self {
            memory,
            areas: shifted(shift),
            tables: TABLES + shift,
            size,
            features,
            out: BTreeMap::new(),
            free,
            avail: start,
            used: start,
            wraps: (true, true),
        };
        if !features.packed {
            driver.put16(driver.areas.driver + 2, start);
            driver.put16(driver.areas.device + 2, start);
        }
        driver
    }

    fn put16(&self, at: u64, value: u16) {
        self.memory.write_word(Gpa(at), value).unwrap();
    }

    fn get16(&self, at: u64) -> u16 {
        self.memory.read_word(Gpa(at)).unwrap()
    }

    fn descriptor(&self, at: u64, buffer: Buffer, third: u16, fourth: u16) {
        self.memory.write_word(Gpa(at), buffer.0).unwrap();
        self.memory.write_word(Gpa(at + 8), buffer.1).unwrap();
        self.put16(at + 12, third);
        self.put16(at + 14, fourth);
    }

    /// Makes a chain available; gives its name, or none if there is no room.
    pub(crate) fn offer(&mut self, buffers: &[Buffer], indirect: bool) -> Option<u16> {
        let slots = if indirect { 1 } else { buffers.len() };
        if self.free.len() < slots {
            return None;
        }
        // A packed ring has as many identifiers as places, and a chain takes up as many of either.
        let taken: Vec<u16> = self.free.split_off(self.free.len() - slots);
        let name = taken[0];
        if self.features.packed {
            self.offer_packed(name, buffers, indirect);
        } else {
            self.offer_split(&taken, buffers, indirect);
        }
        self.out.insert(name, taken);
        Some(name)
    }

    fn offer_split(&mut self, taken: &[u16], buffers: &[Buffer], indirect: bool) {
        let write = |buffer: &Buffer| if buffer.2 { 2 } else { 0 };
        let last = buffers.len() - 1;
        let next = |n: usize| u16::from(n != last);
        if indirect {
            let table = self.tables + u64::from(taken[0]) * TABLE;
            // In reverse order, but for the first: linked, not side by side.
            let place = |n: usize| if n == 0 { 0 } else { buffers.len() - n };
            for (n, buffer) in buffers.iter().enumerate() {
                let at = table + 16 * place(n) as u64;
                self.descriptor(at, *buffer, write(buffer) | next(n), place(n + 1) as u16);
            }
            let at = self.areas.descriptors + 16 * u64::from(taken[0]);
            self.descriptor(at, (table, 16 * buffers.len() as u32, false), 4, 0xffff);
        } else {
            for (n, buffer) in buffers.iter().enumerate() {
                let at = self.areas.descriptors + 16 * u64::from(taken[n]);
                let link = taken.get(n + 1).copied().unwrap_or(0xffff);
                self.descriptor(at, *buffer, write(buffer) | next(n), link);
            }
        }
        self.put16(self.areas.driver + 4 + 2 * u64::from(self.avail % self.size), taken[0]);
        self.avail = self.avail.wrapping_add(1);
        self.put16(self.areas.driver + 2, self.avail);
    }

    fn offer_packed(&mut self, name: u16, buffers: &[Buffer], indirect: bool) {
        let write = |buffer: &Buffer| if buffer.2 { 2 } else { 0 };
        let first = (self.avail, self.wraps.0);
        let list: Vec<(Buffer, u16)> = if indirect {
            let table = self.tables + u64::from(name) * TABLE;
            for (n, buffer) in buffers.iter().enumerate() {
                // Linked by position: NEXT means nothing here.
                self.descriptor(table + 16 * n as u64, *buffer, 0xdead, write(buffer));
            }
            vec![((table, 16 * buffers.len() as u32, false), 4)]
        } else {
            let last = buffers.len() - 1;
            let flags = |n: usize, buffer: &Buffer| write(buffer) | u16::from(n != last);
            buffers.iter().enumerate().map(|(n, buffer)| (*buffer, flags(n, buffer))).collect()
        };
        let mut head = 0;
        for (n, (buffer, flags)) in list.iter().enumerate() {
            let flags = flags | if self.wraps.0 { 1 << 7 } else { 1 << 15 };
            let at = self.areas.descriptors + 16 * u64::from(self.avail);
            if n == 0 {
                // Published last; until then as it was.
                head = flags;
                let old = self.get16(at + 14);
                self.descriptor(at, *buffer, name, old);
            } else {
                self.descriptor(at, *buffer, name, flags);
            }
            self.avail += 1;
            if self.avail == self.size {
                self.avail = 0;
                self.wraps.0 = !self.wraps.0;
            }
        }
        self.put16(self.areas.descriptors + 16 * u64::from(first.0) + 14, head);
    }

    /// The next chain that was given back: its name and how much was written.
    pub(crate) fn collect(&mut self) -> Option<(u16, u32)> {
        let (name, written) = if self.features.packed {
            let at = self.areas.descriptors + 16 * u64::from(self.used);
            let flags = self.get16(at + 14);
            let set = |bit: u16| flags >> bit & 1 != 0;
            if set(7) != self.wraps.1 || set(15) != self.wraps.1 {
                return None;
            }
            let written = self.memory.read_word::<u32>(Gpa(at + 8)).unwrap();
            assert_eq!(set(1), written != 0, "the flag that says something was written");
            let name = self.get16(at + 12);
            self.used += self.out[&name].len() as u16;
            if self.used >= self.size {
                self.used -= self.size;
                self.wraps.1 = !self.wraps.1;
            }
            (name, written)
        } else {
            if self.get16(self.areas.device + 2) == self.used {
                return None;
            }
            let at = self.areas.device + 4 + 8 * u64::from(self.used % self.size);
            self.used = self.used.wrapping_add(1);
            let element: u64 = self.memory.read_word(Gpa(at)).unwrap();
            (u16::try_from(element & 0xffff_ffff).unwrap(), (element >> 32) as u32)
        };
        self.free.extend(self.out.remove(&name).expect("a chain that was offered"));
        Some((name, written))
    }

    /// Says when the driver wants to be interrupted.
    pub(crate) fn wish(&self, wish: Wish) {
        if self.features.packed {
            match wish {
                Wish::Always => self.put16(self.areas.driver + 2, 0),
                Wish::Never => self.put16(self.areas.driver + 2, 1),
                Wish::After(places) => {
                    let at = self.used + places % self.size;
                    let (place, wrap) =
                        if at >= self.size { (at - self.size, !self.wraps.1) } else { (at, self.wraps.1) };
                    self.put16(self.areas.driver, place | u16::from(wrap) << 15);
                    self.put16(self.areas.driver + 2, 2);
                }
            }
        } else {
            match wish {
                Wish::Always => self.put16(self.areas.driver, 0),
                Wish::Never => self.put16(self.areas.driver, 1),
                Wish::After(chains) => {
                    let event = self.areas.driver + 4 + 2 * u64::from(self.size);
                    self.put16(event, self.used.wrapping_add(chains % self.size));
                }
            }
        }
    }

    /// How many chains, or places if packed, of what is out the device may use before it fulfils an event wish.
    pub(crate) fn places(&self, name: u16) -> u16 {
        if self.features.packed { self.out[&name].len() as u16 } else { 1 }
    }

    /// Whether the device wants to be notified, given that the driver's index was `before` chains (or places) less before it
    /// made the last ones available.
    pub(crate) fn must_notify(&self, before: u16) -> bool {
        if self.features.packed {
            return match self.get16(self.areas.device + 2) {
                0 => true,
                1 => false,
                _ => {
                    let wish = self.get16(self.areas.device);
                    let (place, wrap) = (wish & 0x7fff, wish >> 15 != 0);
                    let number = |place: u16, wrap: bool| place + if wrap { 0 } else { self.size };
                    let whole = 2 * self.size;
                    let now = number(self.avail, self.wraps.0);
                    let then = (now + whole - before) % whole;
                    (number(place, wrap) + whole - then) % whole < before
                }
            };
        }
        if self.features.event_index {
            let event = self.get16(self.areas.device + 4 + 8 * u64::from(self.size));
            let then = self.avail.wrapping_sub(before);
            event.wrapping_sub(then) < before
        } else {
            self.get16(self.areas.device) & 1 == 0
        }
    }
}
