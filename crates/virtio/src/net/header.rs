//! What stands before each frame in a buffer (`struct virtio_net_hdr`, VIRTIO 1.2, 5.1.6).

use backend::net::{IpVersion, Offload, PartialChecksum, Segments};

/// Its bytes.
pub(super) const HEADER: usize = 12;

// Flags.
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;

// Types of segments.
const NO_SEGMENTS: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// TCP with explicit congestion notification, which says nothing to us.
const ECN: u8 = 0x80;

/// What a header of the driver's says; nothing if it asks for what was not offered.
pub(super) fn parse(header: &[u8; HEADER]) -> Option<Offload> {
    let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *header;
    let half = |low, high| u16::from_le_bytes([low, high]);
    let segments = |version| Some(Segments { version, headers: half(h0, h1), payload: half(g0, g1) });
    Some(Offload {
        checksum: (flags & NEEDS_CHECKSUM != 0)
            .then(|| PartialChecksum { start: half(s0, s1), offset: half(o0, o1) }),
        segments: match kind & !ECN {
            NO_SEGMENTS => None,
            TCP4 => segments(IpVersion::V4),
            TCP6 => segments(IpVersion::V6),
            _ => return None,
        },
    })
}

/// The header of a frame for the driver, which lies in so many chains. `valid` says that checksums are known to be right.
pub(super) fn build(offload: Offload, chains: u16, valid: bool) -> [u8; HEADER] {
    let mut flags = if valid { DATA_VALID } else { 0 };
    let [mut start, mut offset] = [0; 2];
    if let Some(checksum) = offload.checksum {
        flags = NEEDS_CHECKSUM;
        (start, offset) = (checksum.start, checksum.offset);
    }
    let (kind, headers, payload) = match offload.segments {
        None => (NO_SEGMENTS, 0, 0),
        Some(Segments { version, headers, payload }) => {
            (if version == IpVersion::V4 { TCP4 } else { TCP6 }, headers, payload)
        }
    };
    let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let halves = [headers, payload, start, offset, chains];
    for (place, half) in header.as_chunks_mut::<2>().0.iter_mut().skip(1).zip(halves) {
        *place = half.to_le_bytes();
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_they_were_made_of() {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        for version in [IpVersion::V4, IpVersion::V6] {
            let segments = Some(Segments { version, headers: 54, payload: 1460 });
            for offload in
                [Offload::default(), Offload { checksum, segments: None }, Offload { checksum, segments }]
            {
                let header = build(offload, 3, true);
                assert_eq!(parse(&header), Some(offload));
                assert_eq!(header[10..], [3, 0]);
            }
        }
        assert_eq!(build(Offload::default(), 1, true)[0], DATA_VALID);
        assert_eq!(parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UDP fragments were not offered");
    }
}
