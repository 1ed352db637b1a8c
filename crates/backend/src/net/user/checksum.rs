//! The Internet checksum (RFC 1071), over parts of any length.

use std::net::IpAddr;

/// A sum in the making.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    total: u64,
    /// An odd number of bytes went before.
    odd: bool,
}

impl Sum {
    /// That of a pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
    pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, bytes: usize) -> Self {
        let mut sum = Self::default();
        for address in [source, destination] {
            match address {
                IpAddr::V4(v4) => sum.add(&v4.octets()),
                IpAddr::V6(v6) => sum.add(&v6.octets()),
            }
        }
        sum.total += u64::from(protocol) + bytes as u64;
        sum
    }

    /// Adds bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.odd
            && let Some((first, others)) = rest.split_first()
        {
            self.total += u64::from(*first);
            self.odd = false;
            rest = others;
        }
        // 32 bits at a time: carries fold in the end, and 4 GiB of them fit.
        let (words, tail) = rest.as_chunks::<4>();
        self.total += words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum::<u64>();
        let (halves, last) = tail.as_chunks::<2>();
        self.total += halves.iter().map(|half| u64::from(u16::from_be_bytes(*half))).sum::<u64>();
        if let [byte] = last {
            self.total += u64::from(*byte) << 8;
            self.odd = true;
        }
    }

    /// The sum in 16 bits, as it stands in a checksum that is to be made.
    pub(super) fn folded(self) -> u16 {
        let mut total = self.total;
        while total > 0xffff {
            total = (total >> 16) + (total & 0xffff);
        }
        u16::try_from(total).unwrap_or(0)
    }

    /// The checksum.
    pub(super) fn finish(self) -> u16 {
        !self.folded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, 3.
    const EXAMPLE: [u8; 8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

    #[test]
    fn the_example_in_any_cut() {
        for first in 0..=8 {
            for second in first..=8 {
                let mut sum = Sum::default();
                sum.add(&EXAMPLE[..first]);
                sum.add(&EXAMPLE[first..second]);
                sum.add(&EXAMPLE[second..]);
                assert_eq!(sum.folded(), 0xddf2, "{first} {second}");
            }
        }
    }

    #[test]
    fn carries_are_not_lost() {
        let mut sum = Sum::default();
        sum.add(&[0xff; 65_535]);
        assert_eq!(sum.folded(), 0xff00);
    }
}
