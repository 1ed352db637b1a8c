//! What an entry of an L2 table says of a cluster.

/// The only one who leads to a cluster, which may so be written in place.
pub(super) const OWN: u64 = 1 << 63;
/// The entry of a cluster of zeros, wherever it is.
pub(super) const ZERO: u64 = 1;

const COMPRESSED: u64 = 1 << 62;
/// Where a cluster or a table is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where a cluster's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file, for this cluster alone.
    Own(u64),
    /// In the file, and perhaps for others as well.
    Shared(u64),
    /// Compressed, so many bytes from there on, or some less.
    Compressed {
        /// Where they begin.
        at: u64,
        /// How many there may be.
        len: u64,
    },
    /// It is zeros, and has a cluster of the file all the same, or has none.
    Zeros(Option<u64>),
    /// Not here: whatever the image is made upon has them.
    Below,
}

impl Place {
    /// What an entry says; none if no image can have it.
    pub(super) fn of(entry: u64, cluster_bits: u32) -> Option<Self> {
        if entry & COMPRESSED != 0 {
            // The offset has 62 - (cluster_bits - 8) bits; above it is how many sectors more than the first one it touches.
            let offset_bits = 70 - cluster_bits;
            let at = entry & ((1 << offset_bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            return Some(Self::Compressed { at, len: (sectors + 1) * 512 - at % 512 });
        }
        let at = entry & OFFSET;
        if !at.is_multiple_of(1 << cluster_bits) {
            return None;
        }
        Some(match (at, entry & ZERO != 0) {
            (0, true) => Self::Zeros(None),
            (_, true) => Self::Zeros(Some(at)),
            (0, false) => Self::Below,
            (_, false) if entry & OWN != 0 => Self::Own(at),
            (..) => Self::Shared(at),
        })
    }

    /// Whether `next`, `bytes` further on, goes on with this, so that both are moved at once.
    pub(super) fn goes_on(self, next: Self, bytes: u64) -> bool {
        match (self, next) {
            (Self::Own(at), Self::Own(next)) => at + bytes == next,
            (Self::Zeros(None), Self::Zeros(None)) | (Self::Below, Self::Below) => true,
            _ => false,
        }
    }

    /// The first and the last byte of the file that it takes.
    pub(super) fn in_file(self, cluster_bytes: u64) -> Option<(u64, u64)> {
        match self {
            Self::Own(at) | Self::Shared(at) | Self::Zeros(Some(at)) => Some((at, at + cluster_bytes - 1)),
            Self::Compressed { at, len } => Some((at, at + len - 1)),
            Self::Zeros(None) | Self::Below => None,
        }
    }
}

/// Where an entry of the L1 table leads; none if no image can have it.
pub(super) fn table(entry: u64, cluster_bits: u32) -> Option<u64> {
    let at = entry & OFFSET;
    at.is_multiple_of(1 << cluster_bits).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_understood() {
        let place = |entry| Place::of(entry, 16);
        assert_eq!(place(0), Some(Place::Below));
        assert_eq!(place(1), Some(Place::Zeros(None)));
        assert_eq!(place(0x5_0001), Some(Place::Zeros(Some(0x5_0000))));
        assert_eq!(place(OWN | 0x5_0000), Some(Place::Own(0x5_0000)));
        assert_eq!(place(0x5_0000), Some(Place::Shared(0x5_0000)));
        assert_eq!(place(0x5_0200), None);
        // Three sectors more than the one that it begins in, 256 clusters of 512 bytes at most.
        let compressed = COMPRESSED | 3 << 54 | 0x1234;
        assert_eq!(place(compressed), Some(Place::Compressed { at: 0x1234, len: 4 * 512 - 0x34 }));
        assert_eq!(Place::of(u64::MAX, 21).unwrap().in_file(1 << 21).unwrap().0, (1 << 49) - 1);
    }
}
