//! What stands before each frame, between a guest's driver and its adapter as between this program and a TAP device of the
//! host (`struct virtio_net_hdr`, VIRTIO 1.2, 5.1.6).

use super::{IpVersion, Offload, PartialChecksum, Segments};

/// Its bytes.
pub const HEADER: usize = host::tap::HEADER;

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
pub fn parse(header: &[u8; HEADER]) -> Option<Offload> {
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
        valid: flags & DATA_VALID != 0,
    })
}

/// The header of a frame, which lies in so many chains of a driver.
pub fn build(offload: Offload, chains: u16) -> [u8; HEADER] {
    let mut flags = if offload.valid { DATA_VALID } else { 0 };
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
            let plain = Offload::default();
            for offload in [plain, Offload { checksum, ..plain }, Offload { checksum, segments, ..plain }] {
                let header = build(offload, 3);
                assert_eq!(parse(&header), Some(offload));
                assert_eq!(header[10..], [3, 0]);
            }
        }
        let valid = Offload { valid: true, ..Offload::default() };
        assert_eq!((build(valid, 1)[0], parse(&build(valid, 1))), (DATA_VALID, Some(valid)));
        assert_eq!(parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UDP fragments were not offered");
    }
}
