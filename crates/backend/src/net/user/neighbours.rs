//! Who has which address on the link: ARP (RFC 826), neighbour discovery (RFC 4861) and router advertisements.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, Icmpv6Repr,
    NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
    RawHardwareAddress,
};

use super::icmp;
use super::link::Link;
use super::packet::{self, Incoming};

/// How long the guest is to rely on what it is told: half an hour, and it may ask again.
const LIFETIME: Duration = Duration::from_secs(1800);
const HOPS: u8 = 64;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Answers an ARP request for one of our addresses.
pub(super) fn arp(link: &mut Link, bytes: &[u8]) {
    let Ok(view) = ArpPacket::new_checked(bytes) else { return };
    let Ok(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&view)
    else {
        return;
    };
    if !link.config.is_ours(target_protocol_addr.into()) {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(link.config.plan.router_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = packet::ethernet(link.macs(), EthernetProtocol::Arp, reply.buffer_len());
    let start = frame.len();
    frame.resize(start + reply.buffer_len(), 0);
    reply.emit(&mut ArpPacket::new_unchecked(frame.split_at_mut(start).1));
    link.send(frame);
}

/// Answers questions for our addresses and for the router; false if the packet is none of them.
pub(super) fn discovery(link: &mut Link, packet: &Incoming<'_>) -> bool {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return false;
    };
    let Ok(view) = Icmpv6Packet::new_checked(packet.payload) else { return false };
    let ignored = ChecksumCapabilities::ignored();
    // Who has no address yet, and asks whether somebody else has the one that it wants, is told so as all are.
    let to = if source.is_unspecified() { ALL_NODES } else { source };
    match Icmpv6Repr::parse(&source, &destination, &view, &ignored) {
        Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) => {
            if link.config.is_ours(target_addr.into()) {
                let router = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
                let flags =
                    if source.is_unspecified() { router } else { router | NdiscNeighborFlags::SOLICITED };
                let lladdr = Some(hardware(link));
                let advert = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr };
                icmp::send6(link, target_addr.into(), to.into(), &Icmpv6Repr::Ndisc(advert));
            }
            true
        }
        Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. })) => {
            advertise(link, to);
            true
        }
        Ok(Icmpv6Repr::Ndisc(_) | Icmpv6Repr::Mld(_)) => true,
        _ => false,
    }
}

fn hardware(link: &Link) -> RawHardwareAddress {
    RawHardwareAddress::from_bytes(&link.config.plan.router_mac)
}

/// Says that here is a router, and by which prefix guests make addresses for themselves.
fn advertise(link: &mut Link, to: Ipv6Addr) {
    let plan = link.config.plan;
    let [a, b, c, d, ..] = plan.gateway6.segments();
    let prefix_info = Some(NdiscPrefixInformation {
        prefix_len: 64,
        flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
        valid_lifetime: Duration::from_secs(86_400),
        preferred_lifetime: Duration::from_secs(14_400),
        prefix: Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0),
    });
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: HOPS,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(hardware(link)),
        mtu: Some(link.config.mtu.into()),
        prefix_info,
    };
    icmp::send6(link, plan.router_link.into(), to.into(), &Icmpv6Repr::Ndisc(advert));
}
