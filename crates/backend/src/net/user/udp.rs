//! UDP: a socket for each pair of ends, so that the host's kernel lets nobody else in.
//!
//! Name servers are asked in turn: a client that asks again without having had an answer is sent to the next one.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use host::poll::Trigger;
use smoltcp::wire::{IpProtocol, UdpPacket};

use super::icmp;
use super::link::{Ends, Link, Owner};
use super::outside::Datagrams;
use super::packet::Incoming;
use super::plan::{Forward, Route};

/// The most pairs of ends; the one that was silent longest makes room.
const MOST_FLOWS: usize = 256;
/// The most that have come by forwarded ports, among which the one that was silent longest makes room: the rest is the guest's.
const MOST_FORWARDED: usize = 128;
/// How long a silent one is kept (RFC 4787, REQ-5).
const SILENT: Duration = Duration::from_secs(300);
/// How long one is kept that had no answer.
const UNANSWERED: Duration = Duration::from_secs(60);
/// How long a name server may take before another is asked.
const RESOLVER_PATIENCE: Duration = Duration::from_millis(500);
/// The most datagrams taken from a socket at once.
const MOST_DATAGRAMS: usize = 32;

/// How datagrams of a flow leave.
enum Way {
    /// By a socket of its own.
    Own(Box<dyn Datagrams>),
    /// By that of a forwarded port, on which this peer has come.
    Forwarded { listener: u64, peer: SocketAddr },
}

struct Flow {
    ends: Ends,
    way: Way,
    touched: Instant,
    answered: bool,
    /// Of a flow to the name servers: the number of the one that is asked.
    resolver: Option<usize>,
}

impl Flow {
    fn is_forwarded(&self) -> bool {
        matches!(self.way, Way::Forwarded { .. })
    }

    fn ends_at(&self) -> Instant {
        self.touched + if self.answered { SILENT } else { UNANSWERED }
    }
}

struct Listener {
    socket: UdpSocket,
    port: u16,
}

/// All flows.
#[derive(Default)]
pub(super) struct Udp {
    flows: HashMap<u64, Flow>,
    by_ends: HashMap<Ends, u64>,
    listeners: HashMap<u64, Listener>,
}

impl Udp {
    /// Listens on a port of the host.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(super) fn listen(&mut self, link: &mut Link, forward: &Forward) -> io::Result<()> {
        let socket = UdpSocket::bind(forward.listen)?;
        socket.set_nonblocking(true)?;
        let id = link.new_id();
        link.watch(socket.as_fd(), Owner::UdpListener, id, Trigger::Readable)?;
        self.listeners.insert(id, Listener { socket, port: forward.port });
        Ok(())
    }

    /// Takes a datagram of the guest.
    pub(super) fn arrive(
        &mut self,
        link: &mut Link,
        packet: &Incoming<'_>,
        datagram: &UdpPacket<&[u8]>,
        now: Instant,
    ) {
        let ends = Ends {
            guest: (packet.source, datagram.src_port()).into(),
            remote: (packet.destination, datagram.dst_port()).into(),
        };
        let id = match self.by_ends.get(&ends) {
            Some(id) => *id,
            None => match self.begin(link, ends, now) {
                Ok(id) => id,
                Err(reason) => return icmp::unreachable(link, packet, reason),
            },
        };
        self.try_next_resolver(link, id, now);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.touched = now;
        // Whoever came by a forwarded port hears from the guest by this.
        flow.answered |= flow.is_forwarded();
        let send = || match &flow.way {
            Way::Own(socket) => socket.send(datagram.payload()),
            Way::Forwarded { listener, peer } => match self.listeners.get(listener) {
                Some(Listener { socket, .. }) => socket.send_to(datagram.payload(), peer),
                None => Ok(0),
            },
        };
        // The first error may be news of an earlier datagram. One that cannot be sent is lost, as on any network.
        if let Err(error) = send() {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                let _ = send();
            }
            if let Some(reason) = reason(&error) {
                icmp::unreachable(link, packet, reason);
            }
        }
    }

    /// Opens a way for a flow of the guest.
    fn begin(&mut self, link: &mut Link, ends: Ends, now: Instant) -> Result<u64, icmp::Reason> {
        let (to, resolver) = match link.config.route(ends.remote) {
            Route::To(to) => (to, None),
            Route::Resolvers(first) => (first, Some(0)),
            Route::Refused => return Err(icmp::Reason::Port),
            Route::None => return Err(icmp::Reason::NoRoute),
        };
        let socket = link.outside.datagrams(to).map_err(|_| icmp::Reason::NoRoute)?;
        let id = link.new_id();
        let watched = link.watch(socket.as_fd(), Owner::Udp, id, Trigger::Readable);
        watched.map_err(|_| icmp::Reason::NoRoute)?;
        self.add(id, Flow { ends, way: Way::Own(socket), touched: now, answered: false, resolver });
        Ok(id)
    }

    fn add(&mut self, id: u64, flow: Flow) {
        let forwarded = flow.is_forwarded();
        let many =
            forwarded && self.flows.values().filter(|flow| flow.is_forwarded()).count() >= MOST_FORWARDED;
        // What comes from outside pushes out what came from there first.
        let oldest = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.is_forwarded() || !many)
            .min_by_key(|(_, flow)| (forwarded && !flow.is_forwarded(), flow.touched))
            .map(|(id, _)| *id);
        if (many || self.flows.len() >= MOST_FLOWS)
            && let Some(oldest) = oldest
        {
            self.drop_flow(oldest);
        }
        self.by_ends.insert(flow.ends, id);
        self.flows.insert(id, flow);
    }

    fn drop_flow(&mut self, id: u64) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_ends.remove(&flow.ends);
        }
    }

    /// A name server that has not answered by the time that it is asked again gives way to the next.
    fn try_next_resolver(&mut self, link: &mut Link, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let waited = now.saturating_duration_since(flow.touched);
        let count = link.config.resolvers.len();
        if let Some(number) = flow.resolver.filter(|_| !flow.answered && count > 1)
            && waited > RESOLVER_PATIENCE
        {
            let next = (number + 1) % count;
            let Some(to) = link.config.resolvers.get(next) else { return };
            if let Ok(socket) = link.outside.datagrams(*to)
                && link.watch(socket.as_fd(), Owner::Udp, id, Trigger::Readable).is_ok()
            {
                (flow.way, flow.resolver) = (Way::Own(socket), Some(next));
            }
        }
    }

    /// Datagrams have come for a flow.
    pub(super) fn host_ready(&mut self, link: &mut Link, id: u64, buffer: &mut [u8], now: Instant) {
        for _ in 0..MOST_DATAGRAMS {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            let Way::Own(socket) = &flow.way else { return };
            match socket.receive(buffer) {
                Ok(count) => {
                    (flow.touched, flow.answered) = (now, true);
                    link.send_udp(flow.ends.remote, flow.ends.guest, buffer.get(..count).unwrap_or_default());
                }
                Err(error) => {
                    if let Some(reason) = reason(&error) {
                        undeliverable(link, flow.ends, reason);
                    }
                    return;
                }
            }
        }
    }

    /// Datagrams have come for a forwarded port.
    pub(super) fn accept(&mut self, link: &mut Link, listener: u64, buffer: &mut [u8], now: Instant) {
        for _ in 0..MOST_DATAGRAMS {
            let Some(Listener { socket, port }) = self.listeners.get(&listener) else { return };
            let Ok((count, peer)) = socket.recv_from(buffer) else { return };
            let remote = link.config.visible(peer);
            let ends = Ends { guest: link.config.guest_end(remote, *port), remote };
            match self.by_ends.get(&ends).and_then(|id| self.flows.get_mut(id)) {
                Some(flow) => flow.touched = now,
                None => {
                    let way = Way::Forwarded { listener, peer };
                    let id = link.new_id();
                    self.add(id, Flow { ends, way, touched: now, answered: false, resolver: None });
                }
            }
            link.send_udp(ends.remote, ends.guest, buffer.get(..count).unwrap_or_default());
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flows.values().map(Flow::ends_at).min()
    }

    /// Forgets who has been silent for long.
    pub(super) fn tick(&mut self, now: Instant) {
        let old: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| flow.ends_at() <= now).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.drop_flow(id));
    }
}

/// What the guest is told of an error of the host's.
fn reason(error: &io::Error) -> Option<icmp::Reason> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(icmp::Reason::Port),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Some(icmp::Reason::NoRoute),
        _ => None,
    }
}

/// Tells the guest that a datagram, which we have no more, was not delivered. Ports are enough to know whose it was.
fn undeliverable(link: &mut Link, ends: Ends, reason: icmp::Reason) {
    let mut header = [0; 8];
    let [a, b, c, d, ..] = &mut header;
    [*a, *b] = ends.guest.port().to_be_bytes();
    [*c, *d] = ends.remote.port().to_be_bytes();
    let packet = Incoming {
        source: ends.guest.ip(),
        destination: ends.remote.ip(),
        protocol: IpProtocol::Udp,
        payload: &header,
    };
    icmp::unreachable(link, &packet, reason);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn forwarded_ports_push_out_nothing_but_their_own() {
        let mut udp = Udp::default();
        let now = Instant::now();
        let mut add = |id: u64, way| {
            let remote = ([192, 0, 2, 1], u16::try_from(id).unwrap()).into();
            let ends = Ends { guest: ([10, 0, 2, 15], 53).into(), remote };
            let touched = now + Duration::from_millis(id);
            udp.add(id, Flow { ends, way, touched, answered: false, resolver: None });
        };
        for id in 0..10 {
            add(id, Way::Own(Box::new(UnixDatagram::unbound().unwrap())));
        }
        let peer = ([192, 0, 2, 1], 1).into();
        for id in 10..1000 {
            add(id, Way::Forwarded { listener: 0, peer });
        }
        assert!((0..10).all(|id| udp.flows.contains_key(&id)));
        assert!((1000 - 128..1000).all(|id| udp.flows.contains_key(&id)));
        assert_eq!((udp.flows.len(), udp.by_ends.len()), (138, 138));
    }
}
