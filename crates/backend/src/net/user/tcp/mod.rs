//! TCP: all connections of a guest.
//!
//! Their number is bounded, and so are those that have one end only and those that somebody outside has made. When too many
//! have one end only, the oldest of them goes. When there are too many in all, one on which nothing has happened for long
//! goes; if there is none, the oldest that has one end only; else the new one is refused. What comes from outside
//! pushes out what came from there first, and nothing else once there is too much of it: so whoever floods the guest does not
//! take its own connections.

mod flow;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use host::poll::Trigger;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use self::flow::{Emitted, Flow, Outgoing, Phase};
use super::checksum::Sum;
use super::icmp;
use super::link::{Ends, Link, Owner};
use super::outside::Stream;
use super::packet::{ETHERNET, Incoming};
use super::plan::{Forward, Route};
use crate::net::{Abilities, Frame, IpVersion, Offload, PartialChecksum, Segments};

/// The most connections.
const MOST_FLOWS: usize = 512;
/// The most of them that have one end only.
const MOST_HALF_OPEN: usize = 128;
/// The most of them that somebody outside has made: the rest is the guest's.
const MOST_FROM_OUTSIDE: usize = 384;
/// How long one end waits for the other.
const HALF_OPEN: Duration = Duration::from_secs(75);
/// After what time of silence a connection may be pushed out.
const SILENT: Duration = Duration::from_secs(60);
/// After what time of silence it goes by itself (RFC 5382, REQ-5, asks for 2 hours and 4 minutes at least).
const DEAD: Duration = Duration::from_secs(3 * 3600);
/// How often connections are looked at for what takes no time to be exact.
const ROUND: Duration = Duration::from_secs(15);
/// The most connections taken from a listening socket at once: more do not wait there.
const MOST_ACCEPTS: usize = 256;
const TCP_HEADER: u16 = 20;
const CHECKSUM_OFFSET: u16 = 16;

struct Listener {
    socket: TcpListener,
    port: u16,
}

/// All connections.
#[derive(Default)]
pub(super) struct Tcp {
    flows: HashMap<u64, Flow>,
    by_ends: HashMap<Ends, u64>,
    /// Those that may have something to send, each once.
    ready: VecDeque<u64>,
    listeners: HashMap<u64, Listener>,
    /// When to look at all of them.
    round: Option<Instant>,
}

impl Tcp {
    /// Listens on a port of the host.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(super) fn listen(&mut self, link: &mut Link, forward: &Forward) -> io::Result<()> {
        let socket = TcpListener::bind(forward.listen)?;
        socket.set_nonblocking(true)?;
        let id = link.new_id();
        // Once for each caller: one for whom there is no descriptor waits on, and must not keep us awake.
        link.watch(socket.as_fd(), Owner::TcpListener, id, Trigger::Edge)?;
        self.listeners.insert(id, Listener { socket, port: forward.port });
        Ok(())
    }

    // ---- from the guest --------------------------------------------------------------------------------------------

    /// Takes a segment of the guest.
    pub(super) fn arrive(&mut self, link: &mut Link, packet: &Incoming<'_>, now: Instant) {
        let Ok(view) = TcpPacket::new_checked(packet.payload) else { return };
        let ignored = ChecksumCapabilities::ignored();
        let (source, destination) = (packet.source.into(), packet.destination.into());
        let Ok(segment) = TcpRepr::parse(&view, &source, &destination, &ignored) else { return };
        let ends = Ends {
            guest: (packet.source, segment.src_port).into(),
            remote: (packet.destination, segment.dst_port).into(),
        };
        if let Some(&id) = self.by_ends.get(&ends) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.arrive(&segment, now);
                self.attend(id, now);
            }
            return;
        }
        match (segment.control, segment.ack_number) {
            (TcpControl::Rst, _) => {}
            (TcpControl::Syn, None) => self.call(link, packet, ends, &segment, now),
            _ => refuse(link, ends, &segment),
        }
    }

    /// The guest calls somebody.
    fn call(&mut self, link: &mut Link, packet: &Incoming<'_>, ends: Ends, call: &TcpRepr<'_>, now: Instant) {
        let to = match link.config.route(ends.remote) {
            Route::To(to) | Route::Resolvers(to) => to,
            Route::Refused => return refuse(link, ends, call),
            Route::None => return icmp::unreachable(link, packet, icmp::Reason::NoRoute),
        };
        if !self.make_room(false, now) {
            return refuse(link, ends, call);
        }
        match link.outside.stream(to) {
            Ok(stream) => {
                let id = link.new_id();
                let watched = link.watch(stream.as_fd(), Owner::Tcp, id, Trigger::Edge);
                // Where the host has nothing left for us the call is not heard, and the guest calls again.
                if let (Ok(()), Some(start)) = (watched, first_number()) {
                    self.add(id, Flow::from_guest(ends, call, stream, start, now), now);
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    icmp::unreachable(link, packet, icmp::Reason::NoRoute);
                }
                _ => refuse(link, ends, call),
            },
        }
    }

    fn add(&mut self, id: u64, flow: Flow, now: Instant) {
        self.by_ends.insert(flow.ends, id);
        self.flows.insert(id, flow);
        self.attend(id, now);
    }

    /// Sees to it that there is room for one more, from outside or of the guest's; false if there is none.
    fn make_room(&mut self, from_outside: bool, now: Instant) -> bool {
        let count = |which: fn(&Flow) -> bool| self.flows.values().filter(|flow| which(flow)).count();
        let many_half_open = count(Flow::is_half_open) >= MOST_HALF_OPEN;
        let many_from_outside = from_outside && count(|flow| flow.from_outside) >= MOST_FROM_OUTSIDE;
        if !many_half_open && !many_from_outside && self.flows.len() < MOST_FLOWS {
            return true;
        }
        let oldest = |which: &dyn Fn(&Flow) -> bool| {
            let may_go = |flow: &Flow| which(flow) && (flow.from_outside || !many_from_outside);
            self.flows
                .iter()
                .filter(|(_, flow)| may_go(flow))
                .min_by_key(|(_, flow)| (from_outside && !flow.from_outside, flow.touched))
                .map(|(id, _)| *id)
        };
        let silent = |flow: &Flow| now.saturating_duration_since(flow.touched) >= SILENT;
        let spare = if many_half_open { None } else { oldest(&|flow| !flow.is_half_open() && silent(flow)) };
        let Some(id) = spare.or_else(|| oldest(&Flow::is_half_open)) else { return false };
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.abort();
        }
        self.attend(id, now);
        true
    }

    // ---- from the host ---------------------------------------------------------------------------------------------

    /// A connection's socket is ready.
    pub(super) fn host_ready(&mut self, id: u64, readable: bool, writable: bool, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.host_ready(readable, writable);
            self.attend(id, now);
        }
    }

    /// Somebody calls a forwarded port.
    pub(super) fn accept(&mut self, link: &mut Link, listener: u64, now: Instant) {
        for _ in 0..MOST_ACCEPTS {
            let Some(Listener { socket, port }) = self.listeners.get(&listener) else { return };
            let (port, accepted) = (*port, socket.accept());
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // Whatever was wrong with one caller says nothing of the next.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => return,
            };
            let good = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if good.is_ok() {
                self.admit(link, Box::new(stream), peer, port, now);
            }
        }
    }

    /// Calls the guest for somebody outside, if there is room.
    pub(super) fn admit(
        &mut self,
        link: &mut Link,
        stream: Box<dyn Stream>,
        peer: SocketAddr,
        port: u16,
        now: Instant,
    ) {
        if !self.make_room(true, now) {
            return;
        }
        let mut remote = link.config.visible(peer);
        let guest = link.config.guest_end(remote, port);
        // Two callers may look the same to the guest, since the host has more than one loopback address.
        for _ in 0..=u16::MAX {
            if remote.port() != 0 && !self.by_ends.contains_key(&Ends { guest, remote }) {
                let id = link.new_id();
                let watched = link.watch(stream.as_fd(), Owner::Tcp, id, Trigger::Edge);
                if let (Ok(()), Some(start)) = (watched, first_number()) {
                    self.add(id, Flow::from_outside(Ends { guest, remote }, stream, start, now), now);
                }
                return;
            }
            remote.set_port(remote.port().wrapping_add(1));
        }
    }

    // ---- time ------------------------------------------------------------------------------------------------------

    /// After something has happened to a connection: it goes, or it is put among those that have something to send.
    fn attend(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.watch_clock(now);
        if flow.phase == Phase::Over {
            self.by_ends.remove(&flow.ends);
            self.flows.remove(&id);
            return;
        }
        let due = flow.deadline.unwrap_or(now + ROUND).min(now + ROUND);
        self.round = Some(self.round.map_or(due, |round| round.min(due)));
        if flow.has_segment() && !flow.queued {
            flow.queued = true;
            self.ready.push_back(id);
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.round
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.round.is_none_or(|round| now < round) {
            return;
        }
        self.round = None;
        let ids: Vec<u64> = self.flows.keys().copied().collect();
        for id in ids {
            if let Some(flow) = self.flows.get_mut(&id) {
                let silence = now.saturating_duration_since(flow.touched);
                if silence >= if flow.is_half_open() { HALF_OPEN } else { DEAD } {
                    flow.abort();
                }
            }
            self.attend(id, now);
        }
    }

    // ---- to the guest ----------------------------------------------------------------------------------------------

    /// Hands segments out, one connection after the other; true if some are left.
    pub(super) fn receive(
        &mut self,
        link: &Link,
        abilities: Abilities,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>) -> bool,
    ) -> bool {
        while let Some(&id) = self.ready.front() {
            let Some(flow) = self.flows.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let cut = Cut::of(link, flow, abilities);
            let emitted =
                flow.emit(cut.most, cut.local_mss, now, &mut |segment| cut.frame(link, segment, deliver));
            if emitted == Emitted::NoRoom {
                return true;
            }
            self.ready.pop_front();
            flow.queued = false;
            self.attend(id, now);
        }
        false
    }
}

/// A sequence number that nobody can foretell.
fn first_number() -> Option<u32> {
    let mut bytes = [0; 4];
    host::random::fill(&mut bytes).then(|| u32::from_ne_bytes(bytes))
}

/// Says that nobody is there (RFC 9293, 3.10.7.1).
fn refuse(link: &mut Link, ends: Ends, segment: &TcpRepr<'_>) {
    let after =
        flow::number(segment.seq_number).wrapping_add(u32::try_from(segment.segment_len()).unwrap_or(0));
    let (seq, ack) = match segment.ack_number {
        Some(ack) => (flow::number(ack), None),
        None => (0, Some(after)),
    };
    let reset = Outgoing {
        ends,
        control: TcpControl::Rst,
        seq,
        ack,
        window: 0,
        scale: None,
        mss: 0,
        data: [&[], &[]],
    };
    let mut frame = Vec::new();
    Cut::WHOLE.frame(link, &reset, &mut |built| {
        frame = built.parts.concat();
        true
    });
    link.send(frame);
}

/// How segments are cut for a guest.
#[derive(Clone, Copy)]
struct Cut {
    /// The most data of a segment.
    most: usize,
    /// The most data of a segment of the guest's network.
    local_mss: u16,
    /// The guest cuts longer ones up itself, to this.
    segments: Option<u16>,
    /// The guest makes checksums itself.
    checksum: bool,
}

impl Cut {
    const WHOLE: Self = Self { most: 0, local_mss: 0, segments: None, checksum: false };

    fn of(link: &Link, flow: &Flow, abilities: Abilities) -> Self {
        let v4 = flow.ends.remote.is_ipv4();
        let headers = TCP_HEADER + if v4 { 20 } else { 40 };
        let local_mss = link.config.mtu.saturating_sub(headers).max(1);
        let mss = flow.mss().min(local_mss);
        let large = abilities.checksum && if v4 { abilities.tcp4 } else { abilities.tcp6 };
        let most = if large { (u16::MAX - headers) / mss * mss } else { mss };
        Self { most: most.into(), local_mss, segments: large.then_some(mss), checksum: abilities.checksum }
    }

    /// Hands a segment out as a frame.
    fn frame(self, link: &Link, segment: &Outgoing<'_>, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        let (source, destination) = (segment.ends.remote.ip(), segment.ends.guest.ip());
        let repr = TcpRepr {
            src_port: segment.ends.remote.port(),
            dst_port: segment.ends.guest.port(),
            control: segment.control,
            seq_number: TcpSeqNumber(segment.seq.cast_signed()),
            ack_number: segment.ack.map(|ack| TcpSeqNumber(ack.cast_signed())),
            window_len: segment.window,
            window_scale: segment.scale,
            max_seg_size: (segment.control == TcpControl::Syn).then_some(segment.mss),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let data_bytes = segment.data.iter().map(|part| part.len()).sum::<usize>();
        let bytes = repr.header_len() + data_bytes;
        let mut head = link.envelope(source, destination, IpProtocol::Tcp).open(bytes);
        let start = head.len();
        head.resize(start + repr.header_len(), 0);
        let (_, tcp) = head.split_at_mut(start);
        let ignored = ChecksumCapabilities::ignored();
        repr.emit(&mut TcpPacket::new_unchecked(&mut *tcp), &source.into(), &destination.into(), &ignored);
        let mut sum = Sum::pseudo_header(source, destination, IpProtocol::Tcp.into(), bytes);
        let mut offload = Offload::WHOLE;
        let checksum = if self.checksum && data_bytes > 0 {
            offload = self.offload(source, start, head.len(), data_bytes);
            sum.folded()
        } else {
            sum.add(tcp);
            segment.data.iter().for_each(|part| sum.add(part));
            sum.finish()
        };
        TcpPacket::new_unchecked(&mut *head.split_at_mut(start).1).set_checksum(checksum);
        deliver(&Frame { parts: [&head, segment.data[0], segment.data[1]], offload })
    }

    /// What is left to the guest.
    fn offload(self, source: IpAddr, start: usize, headers: usize, data: usize) -> Offload {
        let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        let version = if source.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        debug_assert!(start > ETHERNET);
        Offload {
            checksum: Some(PartialChecksum { start: short(start), offset: CHECKSUM_OFFSET }),
            segments: self.segments.filter(|payload| data > usize::from(*payload)).map(|payload| Segments {
                version,
                headers: short(headers),
                payload,
            }),
            valid: false,
        }
    }
}
