//! A guest: smoltcp's stack on the far side of the network.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::net::user::{HostNetwork, Outside, UserConfig, UserNet};
use crate::net::{Abilities, Network, Offload};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's adapter.
#[derive(Default)]
pub(super) struct Adapter {
    pub(super) inbox: VecDeque<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Adapter {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.inbox.pop_front()?), Sending(&mut self.outbox)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// The guest and the network.
pub(super) struct Guest {
    pub(super) net: UserNet,
    pub(super) adapter: Adapter,
    pub(super) sockets: SocketSet<'static>,
    interface: Interface,
    start: Instant,
    /// One in so many frames is lost, in either direction.
    loss: Option<u32>,
    random: u32,
}

impl Guest {
    pub(super) fn new(config: UserConfig) -> Self {
        Self::with_outside(config, Box::new(HostNetwork))
    }

    pub(super) fn with_outside(config: UserConfig, outside: Box<dyn Outside>) -> Self {
        let plan = config.plan;
        let mut adapter = Adapter::default();
        let mut own = Config::new(EthernetAddress(plan.guest_mac).into());
        own.random_seed = 7;
        let mut interface = Interface::new(own, &mut adapter, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(plan.guest4.into(), 24)).unwrap();
            addresses.push(IpCidr::new(plan.guest6.into(), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(plan.gateway4).unwrap();
        interface.routes_mut().add_default_ipv6_route(plan.gateway6).unwrap();
        Self {
            net: UserNet::new(config, outside).unwrap(),
            adapter,
            sockets: SocketSet::new(Vec::new()),
            interface,
            start: Instant::now(),
            loss: None,
            random: 1,
        }
    }

    /// Loses one in so many frames.
    pub(super) fn losing(mut self, one_in: u32) -> Self {
        self.loss = Some(one_in);
        self
    }

    fn is_lost(&mut self) -> bool {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.loss.is_some_and(|one_in| (self.random >> 8).is_multiple_of(one_in))
    }

    /// Lets everybody do something.
    pub(super) fn step(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.start.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.adapter, &mut self.sockets);
        for frame in std::mem::take(&mut self.adapter.outbox) {
            if !self.is_lost() {
                self.net.transmit(&frame, Offload::default());
            }
        }
        self.net.wait(Some(Duration::from_millis(1)));
        let mut frames = Vec::new();
        self.net.receive(Abilities::default(), &mut |frame| {
            frames.push(frame.parts.concat());
            frames.len() < 64
        });
        for frame in frames {
            if !self.is_lost() {
                self.adapter.inbox.push_back(frame);
            }
        }
    }

    /// Goes on until `done`.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what} takes too long");
            self.step();
        }
    }

    pub(super) fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Calls somebody.
    pub(super) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.socket();
        let port = 40_000 + (self.random as u16 & 0xfff);
        self.random = self.random.wrapping_add(1);
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(context, to, port).unwrap();
        handle
    }

    /// Sends all of this and the end, and reads until the other end's.
    pub(super) fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        self.until("an exchange", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            !socket.may_recv() && sent == data.len()
        });
        received
    }

    /// Sends all of this and the end, until whoever reads it has it.
    pub(super) fn exchange_rest<T>(
        &mut self,
        handle: SocketHandle,
        data: &[u8],
        reader: &std::thread::JoinHandle<T>,
    ) {
        let mut sent = 0;
        self.until("the rest", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            }
            reader.is_finished()
        });
    }
}
