//! From an access of 1 to 8 bytes at any offset to whole registers.
//!
//! Guests access registers in every width and alignment. A register file of `width`-byte registers sees each touched
//! register once, with the bytes that the access covers, so that a device has one case per register and none per width.

/// Answers a read: `register` gives the value of the register at an aligned offset.
pub fn read(width: u64, offset: u64, data: &mut [u8], mut register: impl FnMut(u64) -> u64) {
    let mut current: Option<(u64, u64)> = None;
    for (at, byte) in (offset..).zip(data) {
        let base = at - at % width;
        let value = match current {
            Some((known, value)) if known == base => value,
            _ => register(base),
        };
        current = Some((base, value));
        *byte = x86::bits::low8(value >> (8 * (at % width)));
    }
}

/// Carries out a write: `register` gets an aligned offset, the value in place and the mask of the bits written.
pub fn write(width: u64, offset: u64, data: &[u8], mut register: impl FnMut(u64, u64, u64)) {
    let mut pending: Option<(u64, u64, u64)> = None;
    for (at, byte) in (offset..).zip(data) {
        let (base, shift) = (at - at % width, 8 * (at % width));
        let (old, mask) = match pending {
            Some((known, value, mask)) if known == base => (value, mask),
            Some((known, value, mask)) => {
                register(known, value, mask);
                (0, 0)
            }
            None => (0, 0),
        };
        pending = Some((base, old | u64::from(*byte) << shift, mask | 0xff << shift));
    }
    if let Some((base, value, mask)) = pending {
        register(base, value, mask);
    }
}

/// `old` with the bits of `mask` taken from `value`.
pub const fn merge(old: u64, value: u64, mask: u64) -> u64 {
    old & !mask | value & mask
}

/// The access as one little-endian number.
pub fn number(data: &[u8]) -> u64 {
    data.iter().rev().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_may_straddle_registers() {
        let mut data = [0; 4];
        let mut asked = Vec::new();
        read(4, 2, &mut data, |at| {
            asked.push(at);
            0x0403_0201 + at
        });
        assert_eq!((data, asked), ([3, 4, 5, 2], vec![0, 4]));
    }

    #[test]
    fn a_write_names_the_bytes_it_covers() {
        let mut seen = Vec::new();
        write(2, 1, &[0xaa, 0xbb, 0xcc], |at, value, mask| seen.push((at, value, mask)));
        assert_eq!(seen, [(0, 0xaa00, 0xff00), (2, 0xccbb, 0xffff)]);
        assert_eq!(merge(0x1234, 0xaa00, 0xff00), 0xaa34);
    }

    #[test]
    fn numbers_are_little_endian() {
        assert_eq!(number(&[1, 2, 3]), 0x03_0201);
    }
}
