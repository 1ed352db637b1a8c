//! Bytes on their way from a socket to the guest: read in at the end, kept until the guest has acknowledged them.

use std::io::{self, IoSliceMut, Read};

/// The most bytes of a connection that wait for the guest.
pub(super) const CAPACITY: usize = 256 << 10;

/// The bytes. Memory is taken with the first of them.
#[derive(Default)]
pub(super) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no room.
    pub(super) fn is_full(&self) -> bool {
        self.len == CAPACITY
    }

    /// Reads once from a source, as much as there is room for; how many bytes that was.
    ///
    /// # Errors
    /// The source's.
    pub(super) fn fill(&mut self, source: &mut dyn Read) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.bytes = vec![0; CAPACITY].into_boxed_slice();
        }
        let end = (self.start + self.len) % CAPACITY;
        let room = CAPACITY - self.len;
        let (low, high) = self.bytes.split_at_mut(end);
        let first = high.len().min(room);
        let count = source.read_vectored(&mut [
            IoSliceMut::new(high.split_at_mut(first).0),
            IoSliceMut::new(low.split_at_mut(room - first).0),
        ])?;
        self.len += count.min(room);
        Ok(count)
    }

    /// `count` bytes from `offset` on, or what there is of them.
    pub(super) fn part(&self, offset: usize, count: usize) -> [&[u8]; 2] {
        let offset = offset.min(self.len);
        let count = count.min(self.len - offset);
        if count == 0 {
            return [&[], &[]];
        }
        let (low, high) = self.bytes.split_at(self.start);
        if offset >= high.len() {
            let rest = low.get(offset - high.len()..).unwrap_or_default();
            return [rest.get(..count).unwrap_or_default(), &[]];
        }
        let first = high.get(offset..).unwrap_or_default();
        let (first, rest) = (first.get(..count).unwrap_or(first), count.saturating_sub(first.len()));
        [first, low.get(..rest).unwrap_or_default()]
    }

    /// Drops the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start = if self.len == 0 { 0 } else { (self.start + count) % CAPACITY };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut ring = Ring::default();
        let byte = |n: usize| u8::try_from(n * 7 % 251).unwrap();
        let (mut written, mut consumed) = (0, 0);
        for step in [1, 1000, CAPACITY, 99_999, 3, CAPACITY - 5, 70_000] {
            let source: Vec<u8> = (written..written + step).map(byte).collect();
            written += ring.fill(&mut &source[..]).unwrap();
            assert_eq!(ring.len(), written - consumed);
            for (offset, count) in [(0, 10), (ring.len() / 2, 5000), (ring.len(), 4), (0, CAPACITY)] {
                let seen = ring.part(offset, count).concat();
                let there = count.min(ring.len() - offset);
                let expected: Vec<u8> = (consumed + offset..).take(there).map(byte).collect();
                assert!(seen == expected, "{offset} {count}");
            }
            let some = ring.len() * 2 / 3;
            ring.consume(some);
            consumed += some;
        }
        ring.consume(usize::MAX);
        assert_eq!(ring.part(0, 1).concat(), []);
    }
}
