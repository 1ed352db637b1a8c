//! IP packets, taken apart and put together.
//!
//! What comes from the guest is parsed by smoltcp's checked views; whatever they refuse is not there. Checksums of the guest
//! are not verified: nothing on the way from its memory to ours could have changed a bit.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr,
};

use super::checksum::Sum;
use crate::net::Mac;

/// The bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const HOPS: u8 = 64;

/// A packet of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) payload: &'a [u8],
}

/// An IP packet; nothing if it is none, or a fragment.
pub(super) fn parse(kind: EthernetProtocol, bytes: &[u8]) -> Option<Incoming<'_>> {
    match kind {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(bytes).ok()?;
            let repr = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
            Some(Incoming {
                source: repr.src_addr.into(),
                destination: repr.dst_addr.into(),
                protocol: repr.next_header,
                payload: packet.payload(),
            })
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(bytes).ok()?;
            let repr = Ipv6Repr::parse(&packet).ok()?;
            Some(Incoming {
                source: repr.src_addr.into(),
                destination: repr.dst_addr.into(),
                protocol: repr.next_header,
                payload: packet.payload(),
            })
        }
        _ => None,
    }
}

/// Who sends and who gets frames on the link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Macs {
    pub(super) from: Mac,
    pub(super) to: Mac,
}

/// What stands before the payload of an IP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    pub(super) macs: Macs,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) hops: u8,
}

impl Envelope {
    /// With the usual number of hops.
    pub(super) fn new(macs: Macs, source: IpAddr, destination: IpAddr, protocol: IpProtocol) -> Self {
        Self { macs, source, destination, protocol, hops: HOPS }
    }

    /// The headers of Ethernet and IP of a packet of so many bytes, which are to follow.
    pub(super) fn open(&self, payload: usize) -> Vec<u8> {
        let ip = IpRepr::new(self.source.into(), self.destination.into(), self.protocol, payload, self.hops);
        let mut frame = ethernet(self.macs, ether_type(self.destination), ip.header_len() + payload);
        let start = frame.len();
        frame.resize(start + ip.header_len(), 0);
        if let Some(header) = frame.get_mut(start..) {
            ip.emit(header, &ChecksumCapabilities::default());
        }
        frame
    }
}

/// The header of Ethernet, with room for what follows.
pub(super) fn ethernet(macs: Macs, kind: EthernetProtocol, room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + room);
    frame.resize(ETHERNET, 0);
    EthernetRepr {
        src_addr: EthernetAddress(macs.from),
        dst_addr: EthernetAddress(macs.to),
        ethertype: kind,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame
}

fn ether_type(address: IpAddr) -> EthernetProtocol {
    if address.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 }
}

/// A UDP datagram, in as many frames as it takes; none if it does not fit. Over IPv6 it is not cut up.
pub(super) fn udp(macs: Macs, from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let Ok(len) = u16::try_from(UDP_HEADER + payload.len()) else { return Vec::new() };
    let mut header = [0; UDP_HEADER];
    for (at, word) in [from.port(), to.port(), len, 0].into_iter().enumerate() {
        if let Some(place) = header.get_mut(2 * at..2 * at + 2) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }
    let mut sum = Sum::pseudo_header(from.ip(), to.ip(), IpProtocol::Udp.into(), len.into());
    sum.add(&header);
    sum.add(payload);
    // No sum is written as its other form of zero (RFC 768).
    let checksum = if sum.finish() == 0 { 0xffff } else { sum.finish() };
    let [.., high, low] = &mut header;
    [*high, *low] = checksum.to_be_bytes();
    let envelope = Envelope::new(macs, from.ip(), to.ip(), IpProtocol::Udp);
    let whole = [&header[..], payload].concat();
    let room = usize::from(mtu).saturating_sub(IPV4_HEADER);
    if whole.len() <= room || to.is_ipv6() {
        let mut frame = envelope.open(whole.len());
        frame.extend_from_slice(&whole);
        let fits = frame.len() <= ETHERNET + usize::from(mtu);
        return if fits { vec![frame] } else { Vec::new() };
    }
    fragments(&envelope, &whole, room)
}

/// An IPv4 packet in fragments (RFC 791, 3.2).
fn fragments(envelope: &Envelope, payload: &[u8], room: usize) -> Vec<Vec<u8>> {
    let step = room / 8 * 8;
    if step == 0 {
        return Vec::new();
    }
    // The same for all fragments, another for the next packet: any sum over it will do.
    let mut sum = Sum::default();
    sum.add(payload);
    let ident = sum.folded();
    let count = payload.len().div_ceil(step);
    let piece = |(number, part): (usize, &[u8])| {
        let mut frame = envelope.open(part.len());
        if let Some(header) = frame.get_mut(ETHERNET..) {
            let mut packet = Ipv4Packet::new_unchecked(header);
            packet.set_ident(ident);
            packet.set_dont_frag(false);
            packet.set_more_frags(number + 1 < count);
            packet.set_frag_offset(u16::try_from(number * step).unwrap_or(0));
            packet.fill_checksum();
        }
        frame.extend_from_slice(part);
        frame
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::UdpPacket;

    use super::*;

    const MACS: Macs = Macs { from: [2; 6], to: [4; 6] };

    #[test]
    fn datagrams_are_what_smoltcp_takes_for_such() {
        for (from, to) in [("10.0.2.2:7", "10.0.2.15:9"), ("[fec0::2]:7", "[fec0::15]:9")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let frames = udp(MACS, from, to, b"some bytes, odd", 1500);
            let frame = EthernetFrame::new_checked(&frames[0][..]).unwrap();
            let packet = parse(frame.ethertype(), frame.payload()).unwrap();
            assert_eq!((packet.source, packet.destination), (from.ip(), to.ip()));
            let datagram = UdpPacket::new_checked(packet.payload).unwrap();
            assert!(datagram.verify_checksum(&from.ip().into(), &to.ip().into()));
            assert_eq!((datagram.dst_port(), datagram.payload()), (9, &b"some bytes, odd"[..]));
        }
    }

    #[test]
    fn what_is_too_long_comes_in_pieces() {
        let (from, to) = ("10.0.2.2:7".parse().unwrap(), "10.0.2.15:9".parse().unwrap());
        let payload: Vec<u8> = (0..=u8::MAX).cycle().take(5000).collect();
        let frames = udp(MACS, from, to, &payload, 1500);
        assert_eq!(frames.len(), 4);
        let mut whole = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.len() <= 1514);
            let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
            assert!(packet.verify_checksum());
            assert_eq!(usize::from(packet.frag_offset()), whole.len());
            assert_eq!(packet.more_frags(), number < 3);
            whole.extend_from_slice(packet.payload());
        }
        let datagram = UdpPacket::new_checked(&whole[..]).unwrap();
        assert!(datagram.verify_checksum(&from.ip().into(), &to.ip().into()));
        assert_eq!(datagram.payload(), payload);
        assert_eq!(udp(MACS, from, to, &[0; 65_535], 1500).len(), 0);
    }
}
