//! What all parts of the network share: who is where, the frames that wait for the guest, the set of files to wait for.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use host::poll::{Poller, Trigger};
use smoltcp::wire::IpProtocol;

use super::outside::Outside;
use super::packet::{self, ETHERNET, Envelope, Macs};
use super::plan::UserConfig;

/// The most frames that wait for the guest, beside the data of connections, which waits elsewhere. What comes when there are
/// as many is lost, as on any network.
const MOST_FRAMES: usize = 1024;

/// Whose file it is that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Bell,
    Tcp,
    TcpListener,
    Udp,
    UdpListener,
    Echo,
}

impl Owner {
    const ALL: [Self; 6] =
        [Self::Bell, Self::Tcp, Self::TcpListener, Self::Udp, Self::UdpListener, Self::Echo];
    const BITS: u32 = 3;

    /// The owner of a token, and the token without it.
    pub(super) fn of(token: u64) -> Option<(Self, u64)> {
        let number = usize::try_from(token & ((1 << Self::BITS) - 1)).ok()?;
        Some((*Self::ALL.get(number)?, token >> Self::BITS))
    }

    fn token(self, id: u64) -> u64 {
        id << Self::BITS | self as u64
    }
}

/// The link to the guest.
pub(super) struct Link {
    pub(super) config: UserConfig,
    pub(super) outside: Box<dyn Outside>,
    pub(super) poller: Poller,
    pub(super) queue: VecDeque<Vec<u8>>,
    next_id: u64,
}

impl Link {
    pub(super) fn new(config: UserConfig, outside: Box<dyn Outside>, poller: Poller) -> Self {
        Self { config, outside, poller, queue: VecDeque::new(), next_id: 0 }
    }

    /// A number that nothing had before.
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Waits for a file from now on. It leaves the set when it is closed.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn watch(
        &self,
        file: BorrowedFd<'_>,
        owner: Owner,
        id: u64,
        trigger: Trigger,
    ) -> std::io::Result<()> {
        self.poller.add(file, owner.token(id), trigger)
    }

    pub(super) fn macs(&self) -> Macs {
        Macs { from: self.config.plan.router_mac, to: self.config.plan.guest_mac }
    }

    /// Sends a frame, unless too many wait or it is longer than what the network carries: the guest's buffers need not hold such.
    pub(super) fn send(&mut self, frame: Vec<u8>) {
        let fits = frame.len() <= ETHERNET + usize::from(self.config.mtu);
        if fits && self.queue.len() < MOST_FRAMES {
            self.queue.push_back(frame);
        }
    }

    /// Sends a datagram.
    pub(super) fn send_udp(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        for frame in packet::udp(self.macs(), from, to, payload, self.config.mtu) {
            self.send(frame);
        }
    }

    /// An envelope to the guest.
    pub(super) fn envelope(&self, source: IpAddr, destination: IpAddr, protocol: IpProtocol) -> Envelope {
        Envelope::new(self.macs(), source, destination, protocol)
    }
}

/// The two ends of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}
