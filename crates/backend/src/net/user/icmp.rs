//! ICMP: echo requests, which go on by a socket for such where the host has one for us, and news of what cannot be reached.
//!
//! The gateway answers for itself. Where the host lets nobody send echo requests (`net.ipv4.ping_group_range`), the guest
//! hears that they are prohibited.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use host::poll::Trigger;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv4Repr, Ipv6Repr,
};

use super::link::{Link, Owner};
use super::outside::Datagrams;
use super::packet::Incoming;
use super::plan::Route;

/// The most that ask at the same time.
const MOST_FLOWS: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most answers taken at once.
const MOST_ANSWERS: usize = 16;
/// The bytes of an echo message before its data.
const ECHO_HEADER: usize = 8;
/// How much of a packet's payload is sent back with the news that it could not be delivered: messages have 576 bytes at most
/// (RFC 1812, 4.3.2.3).
const QUOTED: usize = 528;

/// Why something cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// There is no way there.
    NoRoute,
    /// Nobody listens there.
    Port,
    /// It is not allowed.
    Prohibited,
}

/// Tells the guest that a packet of its cannot be delivered.
pub(super) fn unreachable(link: &mut Link, packet: &Incoming<'_>, reason: Reason) {
    let data = packet.payload.get(..QUOTED).unwrap_or(packet.payload);
    // A host speaks of its own ports; of everything else the gateway does.
    let from = if reason == Reason::Port {
        packet.destination
    } else {
        link.config.plan.gateway(packet.destination)
    };
    let (payload_len, hop_limit, next_header) = (packet.payload.len(), 64, packet.protocol);
    match (packet.source, packet.destination) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let reason = match reason {
                Reason::NoRoute => Icmpv4DstUnreachable::NetUnreachable,
                Reason::Port => Icmpv4DstUnreachable::PortUnreachable,
                Reason::Prohibited => Icmpv4DstUnreachable::CommProhibited,
            };
            let header = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
            send4(link, from, packet.source, &Icmpv4Repr::DstUnreachable { reason, header, data });
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let reason = match reason {
                Reason::NoRoute => Icmpv6DstUnreachable::NoRoute,
                Reason::Port => Icmpv6DstUnreachable::PortUnreachable,
                Reason::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
            };
            let header = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
            send6(link, from, packet.source, &Icmpv6Repr::DstUnreachable { reason, header, data });
        }
        _ => {}
    }
}

fn send4(link: &mut Link, from: IpAddr, to: IpAddr, message: &Icmpv4Repr<'_>) {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    send(link, from, to, IpProtocol::Icmp, &bytes);
}

/// Sends a message of ICMPv6.
pub(super) fn send6(link: &mut Link, from: IpAddr, to: IpAddr, message: &Icmpv6Repr<'_>) {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from, to) else { return };
    let mut bytes = vec![0; message.buffer_len()];
    let packet = &mut Icmpv6Packet::new_unchecked(&mut bytes);
    message.emit(&source, &destination, packet, &ChecksumCapabilities::default());
    send(link, from, to, IpProtocol::Icmpv6, &bytes);
}

fn send(link: &mut Link, from: IpAddr, to: IpAddr, protocol: IpProtocol, message: &[u8]) {
    let mut envelope = link.envelope(from, to, protocol);
    // Neighbours believe only what cannot have come from further away (RFC 4861, 7.1).
    envelope.hops = 255;
    let mut frame = envelope.open(message.len());
    frame.extend_from_slice(message);
    link.send(frame);
}

/// Who asks whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asker {
    guest: IpAddr,
    remote: IpAddr,
    ident: u16,
}

struct Flow {
    asker: Asker,
    socket: Box<dyn Datagrams>,
    touched: Instant,
}

/// Echo requests that are out.
#[derive(Default)]
pub(super) struct Echo {
    flows: HashMap<u64, Flow>,
    by_asker: HashMap<Asker, u64>,
}

/// An echo message.
struct Question<'a> {
    ident: u16,
    seq_no: u16,
    data: &'a [u8],
}

fn question<'a>(packet: &Incoming<'a>) -> Option<Question<'a>> {
    let ignored = ChecksumCapabilities::ignored();
    match (packet.source, packet.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let view = Icmpv4Packet::new_checked(packet.payload).ok()?;
            match Icmpv4Repr::parse(&view, &ignored).ok()? {
                Icmpv4Repr::EchoRequest { ident, seq_no, data } => Some(Question { ident, seq_no, data }),
                _ => None,
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let view = Icmpv6Packet::new_checked(packet.payload).ok()?;
            match Icmpv6Repr::parse(&source, &destination, &view, &ignored).ok()? {
                Icmpv6Repr::EchoRequest { ident, seq_no, data } => Some(Question { ident, seq_no, data }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// An answer to the guest.
fn answer(link: &mut Link, asker: Asker, seq_no: u16, data: &[u8]) {
    let ident = asker.ident;
    if asker.remote.is_ipv4() {
        send4(link, asker.remote, asker.guest, &Icmpv4Repr::EchoReply { ident, seq_no, data });
    } else {
        send6(link, asker.remote, asker.guest, &Icmpv6Repr::EchoReply { ident, seq_no, data });
    }
}

impl Echo {
    /// Takes a message of the guest.
    pub(super) fn arrive(&mut self, link: &mut Link, packet: &Incoming<'_>, now: Instant) {
        let Some(question) = question(packet) else { return };
        let asker = Asker { guest: packet.source, remote: packet.destination, ident: question.ident };
        if link.config.is_ours(packet.destination) {
            return answer(link, asker, question.seq_no, question.data);
        }
        let Route::To(to) = link.config.route(SocketAddr::new(packet.destination, 0)) else {
            return unreachable(link, packet, Reason::NoRoute);
        };
        match self.ask(link, asker, to.ip(), &question, now) {
            Ok(()) => {}
            Err(error) => {
                let prohibited = error.kind() == io::ErrorKind::PermissionDenied;
                unreachable(link, packet, if prohibited { Reason::Prohibited } else { Reason::NoRoute });
            }
        }
    }

    fn ask(
        &mut self,
        link: &mut Link,
        asker: Asker,
        to: IpAddr,
        question: &Question<'_>,
        now: Instant,
    ) -> io::Result<()> {
        let id = match self.by_asker.get(&asker) {
            Some(id) => *id,
            None => self.begin(link, asker, to, now)?,
        };
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(()) };
        flow.touched = now;
        // Type; code, checksum and identifier are the kernel's.
        let mut message = vec![if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0];
        message.extend(question.seq_no.to_be_bytes());
        message.extend_from_slice(question.data);
        flow.socket.send(&message).map(drop)
    }

    fn begin(&mut self, link: &mut Link, asker: Asker, to: IpAddr, now: Instant) -> io::Result<u64> {
        if self.flows.len() >= MOST_FLOWS
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.touched).map(|(id, _)| *id)
        {
            self.drop_flow(oldest);
        }
        let socket = link.outside.echo(to)?;
        let id = link.new_id();
        link.watch(socket.as_fd(), Owner::Echo, id, Trigger::Readable)?;
        self.flows.insert(id, Flow { asker, socket, touched: now });
        self.by_asker.insert(asker, id);
        Ok(id)
    }

    fn drop_flow(&mut self, id: u64) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_asker.remove(&flow.asker);
        }
    }

    /// Answers have come.
    pub(super) fn host_ready(&mut self, link: &mut Link, id: u64, buffer: &mut [u8]) {
        for _ in 0..MOST_ANSWERS {
            let Some(Flow { asker, socket, .. }) = self.flows.get(&id) else { return };
            let Ok(count) = socket.receive(buffer) else { return };
            let message = buffer.get(..count).unwrap_or_default();
            let reply = if asker.remote.is_ipv4() { 0 } else { 129 };
            if let (Some((header, data)), true) =
                (message.split_first_chunk::<ECHO_HEADER>(), message.first() == Some(&reply))
            {
                let [.., high, low] = *header;
                answer(link, *asker, u16::from_be_bytes([high, low]), data);
            }
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flows.values().map(|flow| flow.touched + PATIENCE).min()
    }

    /// Forgets who has waited too long.
    pub(super) fn tick(&mut self, now: Instant) {
        let late = |flow: &Flow| now.saturating_duration_since(flow.touched) >= PATIENCE;
        let old: Vec<u64> = self.flows.iter().filter(|(_, flow)| late(flow)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.drop_flow(id));
    }
}
