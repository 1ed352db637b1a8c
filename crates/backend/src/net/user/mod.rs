//! A network that needs no privileges: the guest's connections end here and go on as sockets of this process.
//!
//! | file | concept |
//! |---|---|
//! | `plan` | who is who on the network, and where its addresses lead on the host |
//! | `outside` | the host's sockets behind traits |
//! | `link` | what all parts share |
//! | `packet`, `checksum` | IP packets, taken apart and put together |
//! | `neighbours`, `dhcp` | how the guest finds its address and its router |
//! | `resolvers` | the host's name servers |
//! | `tcp`, `udp`, `icmp` | flows, each with a socket |
//! | `ring` | bytes that wait for the guest |
//!
//! # Bounds
//! Whatever a guest or somebody outside sends, there are at most so many flows, each with so many bytes: see `tcp`, `udp` and
//! `icmp`. Frames that wait for the guest are bounded; data of connections waits in the host's sockets, whose senders notice.
//!
//! # Threads
//! One, which waits for all sockets and for the guest. No socket blocks.

mod checksum;
mod dhcp;
mod icmp;
mod link;
mod neighbours;
mod outside;
mod packet;
mod plan;
mod resolvers;
mod ring;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use host::poll::{Bell, Poller, Ready, Trigger};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, UdpPacket};

use self::icmp::Echo;
use self::link::{Link, Owner};
pub use self::outside::{Datagrams, HostNetwork, Outside, Stream};
use self::packet::Incoming;
pub use self::plan::{AddressPlan, Forward, Transport, UserConfig};
pub use self::resolvers::resolvers;
use self::tcp::Tcp;
use self::udp::Udp;
use super::{Abilities, Frame, Network, Offload};

/// The longest datagram.
const DATAGRAM: usize = 65_536;

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// The host has no descriptors for us.
    #[error("cannot set up the user-mode network")]
    Poll(#[source] io::Error),
    /// A port cannot be listened on.
    #[error("cannot listen on {} for port {} of the guest: {}", forward.listen, forward.port, hint(source))]
    Listen {
        /// What was to be forwarded.
        forward: Forward,
        /// What the host said.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "somebody else does; choose another port of the host",
        io::ErrorKind::PermissionDenied => "the host does not let this user; choose a port from 1024 on",
        io::ErrorKind::AddrNotAvailable => "the host has no such address",
        _ => "the host refuses it",
    }
}

/// The network.
pub struct UserNet {
    link: Link,
    bell: Bell,
    tcp: Tcp,
    udp: Udp,
    echo: Echo,
    ready: Vec<Ready>,
    buffer: Box<[u8]>,
}

impl UserNet {
    /// The network, with its ports forwarded.
    ///
    /// # Errors
    /// If the host has no descriptors, or a port cannot be listened on.
    pub fn new(config: UserConfig, outside: Box<dyn Outside>) -> Result<Self, UserNetError> {
        let poller = Poller::new().map_err(UserNetError::Poll)?;
        let bell = Bell::new().map_err(UserNetError::Poll)?;
        let forwards = config.forwards.clone();
        let mut link = Link::new(config, outside, poller);
        link.watch(bell.as_fd(), Owner::Bell, 0, Trigger::Edge).map_err(UserNetError::Poll)?;
        let (mut tcp, mut udp) = (Tcp::default(), Udp::default());
        for forward in forwards {
            match forward.transport {
                Transport::Tcp => tcp.listen(&mut link, &forward),
                Transport::Udp => udp.listen(&mut link, &forward),
            }
            .map_err(|source| UserNetError::Listen { forward, source })?;
        }
        let buffer = vec![0; DATAGRAM].into_boxed_slice();
        Ok(Self { link, bell, tcp, udp, echo: Echo::default(), ready: Vec::new(), buffer })
    }

    /// Calls the guest's port for somebody outside, as a forwarded port does.
    pub fn admit(&mut self, stream: Box<dyn Stream>, peer: SocketAddr, port: u16) {
        self.tcp.admit(&mut self.link, stream, peer, port, Instant::now());
    }

    fn deadline(&self) -> Option<Instant> {
        [self.tcp.deadline(), self.udp.deadline(), self.echo.deadline()].into_iter().flatten().min()
    }

    fn dispatch(&mut self, ready: Ready, now: Instant) {
        let Some((owner, id)) = Owner::of(ready.token) else { return };
        let (link, buffer) = (&mut self.link, &mut self.buffer[..]);
        match owner {
            Owner::Bell => {}
            Owner::Tcp => self.tcp.host_ready(id, ready.readable, ready.writable, now),
            Owner::TcpListener => self.tcp.accept(link, id, now),
            Owner::Udp => self.udp.host_ready(link, id, buffer, now),
            Owner::UdpListener => self.udp.accept(link, id, buffer, now),
            Owner::Echo => self.echo.host_ready(link, id, buffer),
        }
    }

    /// Takes an IP packet of the guest.
    fn arrive(&mut self, packet: &Incoming<'_>, now: Instant) {
        let link = &mut self.link;
        match packet.protocol {
            IpProtocol::Icmpv6 if neighbours::discovery(link, packet) => {}
            IpProtocol::Udp => {
                let Ok(datagram) = UdpPacket::new_checked(packet.payload) else { return };
                if datagram.dst_port() == dhcp::SERVER_PORT && datagram.src_port() == dhcp::CLIENT_PORT {
                    answer_dhcp(link, datagram.payload());
                } else if link.config.is_inside(packet.source) {
                    self.udp.arrive(link, packet, &datagram, now);
                }
            }
            // Nobody answers to an address that is not of this network.
            _ if !link.config.is_inside(packet.source) => {}
            IpProtocol::Tcp => self.tcp.arrive(link, packet, now),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.echo.arrive(link, packet, now),
            _ => {}
        }
    }
}

fn answer_dhcp(link: &mut Link, message: &[u8]) {
    if let Some(reply) = dhcp::answer(&link.config, message) {
        let from = SocketAddr::new(link.config.plan.gateway4.into(), dhcp::SERVER_PORT);
        let to = SocketAddr::new(IpAddr::V4(reply.to), dhcp::CLIENT_PORT);
        link.send_udp(from, to, &reply.message);
    }
}

impl Network for UserNet {
    fn bell(&self) -> Bell {
        self.bell.clone()
    }

    fn wait(&mut self, limit: Option<Duration>) {
        let now = Instant::now();
        let due = self.deadline().map(|deadline| deadline.saturating_duration_since(now));
        let limit = [limit, due].into_iter().flatten().min();
        // It fails for what cannot be: a set that is none. Then nothing is ready.
        let _ = self.link.poller.wait(&mut self.ready, limit);
        let now = Instant::now();
        for number in 0..self.ready.len() {
            if let Some(ready) = self.ready.get(number) {
                self.dispatch(*ready, now);
            }
        }
        self.tcp.tick(now);
        self.udp.tick(now);
        self.echo.tick(now);
    }

    fn transmit(&mut self, frame: &[u8], _offload: Offload) {
        // Checksums are not looked at, and segments of any length are taken: nothing is left to be done.
        let Ok(view) = EthernetFrame::new_checked(frame) else { return };
        match view.ethertype() {
            EthernetProtocol::Arp => neighbours::arp(&mut self.link, view.payload()),
            kind => {
                if let Some(packet) = packet::parse(kind, view.payload()) {
                    self.arrive(&packet, Instant::now());
                }
            }
        }
    }

    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        while let Some(frame) = self.link.queue.front() {
            if !deliver(&Frame { parts: [frame, &[], &[]], offload: Offload::WHOLE }) {
                return true;
            }
            self.link.queue.pop_front();
        }
        self.tcp.receive(&self.link, abilities, Instant::now(), deliver)
    }
}
