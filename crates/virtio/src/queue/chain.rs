//! A chain of buffers, as read from its descriptors.

use memory::{GuestMemory, GuestRange, MemoryError};
use x86::Gpa;
use x86::bits::index;

use super::QueueError;

/// The most buffers of a chain. The specification's own bound is the queue's size, which Linux's drivers exceed by indirect
/// tables where a queue is small.
pub const MAX_CHAIN: usize = 1024;

/// The bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = DESCRIPTOR_BYTES as u64;
const DESCRIPTOR_BYTES: usize = 16;

// Flags of a descriptor, the same in both layouts (2.7.5, 2.8.7).
pub(super) const NEXT: u16 = 1 << 0;
pub(super) const WRITE: u16 = 1 << 1;
pub(super) const INDIRECT: u16 = 1 << 2;

/// What a queue needs to take a chain back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The driver's name for the chain.
    pub(super) id: u16,
    /// How many descriptors of the ring it took up.
    pub(super) slots: u16,
}

/// A chain of buffers: those that the device reads, then those that it writes.
#[derive(Debug)]
pub struct Chain {
    /// Gives it back.
    pub ticket: Ticket,
    /// What the device may read.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

/// Ranges of guest memory, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    ranges: Vec<GuestRange>,
    bytes: u64,
}

impl Buffers {
    /// The ranges.
    pub fn ranges(&self) -> &[GuestRange] {
        &self.ranges
    }

    /// The sum of their lengths, at most 4 GiB.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn push(&mut self, range: GuestRange) {
        self.bytes += range.len;
        self.ranges.push(range);
    }

    /// The first `at` bytes, and the rest; `None` if there are not as many.
    pub fn split_at(&self, at: u64) -> Option<(Self, Self)> {
        if at > self.bytes {
            return None;
        }
        let (mut first, mut rest) = (Self::default(), Self::default());
        for range in &self.ranges {
            let here = (at - first.bytes).min(range.len);
            if here > 0 {
                first.push(GuestRange { len: here, ..*range });
            }
            if here < range.len {
                rest.push(GuestRange { gpa: range.gpa.wrapping_add(here), len: range.len - here });
            }
        }
        Some((first, rest))
    }

    /// Copies the first bytes out, as many as there are and `to` holds; returns how many.
    ///
    /// # Errors
    /// If memory refuses.
    pub fn read(&self, memory: &GuestMemory, mut to: &mut [u8]) -> Result<usize, MemoryError> {
        let mut done = 0;
        for range in &self.ranges {
            let here = index(range.len).min(to.len());
            let (part, rest) = std::mem::take(&mut to).split_at_mut(here);
            memory.read(range.gpa, part)?;
            to = rest;
            done += here;
        }
        Ok(done)
    }

    /// Copies `from` to the first bytes, as far as there is room; returns how many were copied.
    ///
    /// # Errors
    /// If memory refuses.
    pub fn write(&self, memory: &GuestMemory, mut from: &[u8]) -> Result<usize, MemoryError> {
        let mut done = 0;
        for range in &self.ranges {
            let (part, rest) = from.split_at(index(range.len).min(from.len()));
            memory.write(range.gpa, part)?;
            from = rest;
            done += part.len();
        }
        Ok(done)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// If memory refuses.
    pub fn fill(&self, memory: &GuestMemory, byte: u8) -> Result<(), MemoryError> {
        self.ranges.iter().try_for_each(|range| memory.fill(range.gpa, range.len, byte))
    }
}

/// A descriptor, read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    gpa: Gpa,
    len: u32,
    /// The third field of 16 bits: flags if split, the buffer's identifier if packed.
    third: u16,
    /// The fourth: the next descriptor if split, flags if packed.
    fourth: u16,
}

impl Descriptor {
    pub(super) fn read(memory: &GuestMemory, at: Gpa) -> Result<Self, MemoryError> {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        memory.read(at, &mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8; DESCRIPTOR_BYTES]) -> Self {
        let word = u128::from_le_bytes(*bytes);
        let low = x86::bits::low64(word);
        let high = x86::bits::high64(word);
        Self {
            gpa: Gpa(low),
            len: x86::bits::low32(high),
            third: x86::bits::low16(high >> 32),
            fourth: x86::bits::low16(high >> 48),
        }
    }

    /// Flags and the next descriptor's index, of a split ring.
    pub(super) fn split(&self) -> (u16, u16) {
        (self.third, self.fourth)
    }

    /// Flags and the buffer's identifier, of a packed ring.
    pub(super) fn packed(&self) -> (u16, u16) {
        (self.fourth, self.third)
    }
}

/// A chain in the making.
#[derive(Debug, Default)]
pub(super) struct Builder {
    readable: Buffers,
    writable: Buffers,
}

impl Builder {
    /// Adds a buffer.
    pub(super) fn add(&mut self, descriptor: &Descriptor, flags: u16) -> Result<(), QueueError> {
        let range = GuestRange { gpa: descriptor.gpa, len: descriptor.len.into() };
        let (readable, writable) = (&mut self.readable, &mut self.writable);
        if readable.ranges.len() + writable.ranges.len() >= MAX_CHAIN {
            return Err(QueueError::Chain("is too long"));
        }
        if readable.bytes + writable.bytes + range.len > 1 << 32 {
            return Err(QueueError::Chain("has more than 4 GiB"));
        }
        if flags & WRITE != 0 {
            writable.push(range);
        } else if writable.ranges.is_empty() {
            readable.push(range);
        } else {
            return Err(QueueError::Chain("has a buffer to read behind one to write"));
        }
        Ok(())
    }

    /// The descriptors of an indirect table, all of them read at once.
    pub(super) fn table(memory: &GuestMemory, table: &Descriptor) -> Result<Vec<Descriptor>, QueueError> {
        let len = u64::from(table.len);
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) || len / DESCRIPTOR > MAX_CHAIN as u64 {
            return Err(QueueError::Chain("has an indirect table of a length that cannot be"));
        }
        let mut bytes = vec![0; index(len)];
        memory.read(table.gpa, &mut bytes)?;
        let (descriptors, _) = bytes.as_chunks();
        Ok(descriptors.iter().map(Descriptor::parse).collect())
    }

    /// The chain.
    pub(super) fn finish(self, id: u16, slots: u16) -> Chain {
        Chain { ticket: Ticket { id, slots }, readable: self.readable, writable: self.writable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_split_anywhere() {
        let mut all = Buffers::default();
        for (gpa, len) in [(100, 10), (50, 0), (200, 5)] {
            all.push(GuestRange { gpa: Gpa(gpa), len });
        }
        for at in 0..=15 {
            let (first, rest) = all.split_at(at).unwrap();
            assert_eq!((first.bytes(), rest.bytes()), (at, 15 - at));
            let bytes = |b: &Buffers| -> Vec<u64> {
                b.ranges().iter().flat_map(|r| r.gpa.0..r.gpa.0 + r.len).collect()
            };
            assert_eq!([bytes(&first), bytes(&rest)].concat(), bytes(&all));
        }
        assert_eq!(all.split_at(16), None);
    }
}
