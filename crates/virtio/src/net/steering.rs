//! Which pair of queues a flow is on: that on which the guest last sent a frame of it (VIRTIO 1.2, 5.1.6.5.6.1).
//!
//! A flow is its two ends, in whatever order, so that what comes back has the hash of what was sent. The table forgets nothing and
//! may confuse flows whose hashes are alike: then a frame comes on a queue that another processor looks after, which costs time and is
//! right all the same.

use backend::net::LONGEST_FRAME;

/// How many flows are told apart.
const ENTRIES: usize = 256;
/// As much of a frame as has addresses and ports, IPv4's options included.
pub(super) const HEAD: usize = 14 + 60 + 4;

/// Ethernet's types.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Protocols whose headers begin with two ports.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is remembered of flows.
pub(super) struct Steering {
    table: [u16; ENTRIES],
}

impl Steering {
    /// Every flow is on the first pair.
    pub(super) fn new() -> Self {
        Self { table: [0; ENTRIES] }
    }

    /// The guest has sent a frame that begins so on this pair.
    pub(super) fn sent(&mut self, head: &[u8], pair: u16) {
        if let Some(entry) = self.table.get_mut(flow(head)) {
            *entry = pair;
        }
    }

    /// On which of `pairs` a frame that begins so is to come.
    pub(super) fn pair(&self, head: &[u8], pairs: u16) -> u16 {
        // A pair that the driver does not use any more is none.
        self.table.get(flow(head)).copied().filter(|pair| *pair < pairs).unwrap_or(0)
    }
}

/// A hash of the flow that a frame belongs to. What is no IP, or a fragment without ports, is of the flow of its addresses.
fn flow(head: &[u8]) -> usize {
    let hash = ends(head).unwrap_or(0);
    // Multiplied, so that every bit has a say in those that count (Knuth, 6.4).
    (hash.wrapping_mul(0x9e37_79b1) >> 24) as usize % ENTRIES
}

/// The sum of both ends of a flow: the same in both directions.
fn ends(head: &[u8]) -> Option<u32> {
    let kind = head.get(12..14)?;
    let packet = head.get(14..)?;
    let (addresses, protocol, behind) = if kind == IPV4 {
        let first_fragment = packet.get(6)? & 0x1f == 0 && *packet.get(7)? == 0;
        let protocol = if first_fragment { *packet.get(9)? } else { 0 };
        (packet.get(12..20)?, protocol, packet.get(usize::from(packet.first()? & 15) * 4..))
    } else if kind == IPV6 {
        (packet.get(8..40)?, *packet.get(6)?, packet.get(40..))
    } else {
        return None;
    };
    let ports = behind.and_then(|rest| rest.first_chunk()).filter(|_| matches!(protocol, TCP | UDP));
    let words = addresses.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
    let ports = ports.map_or(0, |[a, b, c, d]: &[u8; 4]| {
        u32::from(u16::from_be_bytes([*a, *b])).wrapping_add(u16::from_be_bytes([*c, *d]).into())
    });
    Some(words.chain([ports]).fold(0, u32::wrapping_add))
}

const _: () = assert!(HEAD < LONGEST_FRAME);

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame's beginning.
    fn head(ends: [([u8; 4], u16); 2], options: usize) -> Vec<u8> {
        let mut head = vec![0; 12];
        head.extend(IPV4);
        let words = 5 + u8::try_from(options).unwrap();
        head.extend([0x40 | words, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
        ends.iter().for_each(|end| head.extend(end.0));
        head.extend(vec![7; options * 4]);
        ends.iter().for_each(|end| head.extend(end.1.to_be_bytes()));
        head
    }

    fn head6(ends: [(u8, u16); 2]) -> Vec<u8> {
        let mut head = vec![0; 12];
        head.extend(IPV6);
        head.extend([0x60, 0, 0, 0, 0, 20, UDP, 64]);
        ends.iter().for_each(|end| head.extend([end.0; 16]));
        ends.iter().for_each(|end| head.extend(end.1.to_be_bytes()));
        head
    }

    const GUEST: [u8; 4] = [10, 0, 2, 15];
    const PEER: [u8; 4] = [192, 0, 2, 1];

    #[test]
    fn a_flow_comes_back_where_it_went_out() {
        for options in [0, 3, 10] {
            let mut steering = Steering::new();
            let ports = 40_000..40_016;
            let pair = |port: u16| port % 4;
            // The last that went out counts; these are few enough not to share their places.
            for port in ports.clone() {
                steering.sent(&head([(GUEST, port), (PEER, 80)], options), 1);
                steering.sent(&head([(GUEST, port), (PEER, 80)], options), pair(port));
            }
            for port in ports {
                let back = head([(PEER, 80), (GUEST, port)], options);
                assert_eq!(steering.pair(&back, 4), pair(port), "port {port}");
                assert_eq!(steering.pair(&back, 1), 0);
            }
        }
        let mut steering = Steering::new();
        steering.sent(&head6([(1, 5000), (2, 53)]), 3);
        assert_eq!(steering.pair(&head6([(2, 53), (1, 5000)]), 4), 3);
    }

    #[test]
    fn flows_are_spread() {
        let of = |port: u16| flow(&head([(GUEST, port), (PEER, 443)], 0));
        let places: std::collections::BTreeSet<_> = (40_000..40_064).map(of).collect();
        assert!(places.len() > 48, "{} places for 64 flows", places.len());
    }

    #[test]
    fn whatever_a_frame_is_it_has_a_pair() {
        let whole = head([(GUEST, 1), (PEER, 2)], 2);
        for len in 0..whole.len() {
            assert!(flow(&whole[..len]) < ENTRIES);
        }
        let mut steering = Steering::new();
        steering.sent(&[0xff; HEAD], u16::MAX);
        assert_eq!(steering.pair(&[0xff; HEAD], 8), 0);
        // A later fragment has no ports: what is there is data.
        let fragment = |data: u16| {
            let mut head = head([(GUEST, data), (PEER, 2)], 0);
            head[21] = 1;
            head
        };
        assert_eq!(flow(&fragment(1)), flow(&fragment(999)));
    }
}
