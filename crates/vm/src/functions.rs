//! What is on the PCI bus, and the threads that serve it.
//!
//! Order matters to guests: the entropy source is device 1, disks follow in the order of the description, then shared
//! directories, then the socket device, then the network adapter, then the balloon, then the console with its ports. Slots are counted down from
//! the last device ([`crate::slots`]).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use backend::net::user::{AddressPlan, Forward, HostNetwork, Transport, UserConfig, UserNet, resolvers};
use backend::net::{Limited, Mac, Network, TapNetwork};
use backend::share::{Access, Share};
use backend::vsock::SocketFiles;
use backend::{Changes, Counted, Disk, DiskError, Format, Image, Volume};
use bus::pci::{Function, Socket};
use host::jail::{self, Directory, Role};
use host::tap::{Facts, Tap};
use nvme::Nvme;
use spec::{
    ByteSize, DiskBus, DiskChanges, DiskFormat, DiskSpec, NetQueues, NetSpec, PortKind, PortSpec, ShareSpec,
    TapNetSpec, UserNetSpec, VmSpec, VsockSpec,
};
use virtio::balloon::{self, Balloon};
use virtio::blk::Blk;
use virtio::fs::{Fs, Validity};
use virtio::net::Net;
use virtio::rng::Rng;
use virtio::service::Service;
use virtio::transport::VirtioPci;
use virtio::vsock::Vsock;

use crate::VmError;
use crate::events::{EventSink, Watch};

/// The most disks, shared directories, socket devices and slots: device 0 is the bridge, device 1 the entropy source, three more the
/// network adapter, the balloon and the console.
const MOST: usize = 27;
/// The most bytes of a packet on the user-mode network, as on any Ethernet.
const MTU: u16 = 1500;

/// A device that is to be plugged in.
pub(crate) enum Card {
    /// A virtio device.
    Virtio(Box<dyn Service>),
    /// An NVM Express controller of a disk.
    Nvme {
        /// The disk.
        volume: Volume,
        /// Which disk of the machine it is.
        number: u16,
        /// How many I/O queues it has.
        queues: u16,
    },
}

/// A PCI function with threads of its own.
pub(crate) trait Served: Function {
    /// What they do on the host.
    fn role(&self) -> Role;
    /// What each of them does with its life.
    fn lives(&self) -> Vec<Box<dyn FnOnce() + Send>>;
    /// Ends the threads, after what they are doing.
    fn end(&self);
}

impl Served for VirtioPci {
    fn role(&self) -> Role {
        self.role()
    }

    fn lives(&self) -> Vec<Box<dyn FnOnce() + Send>> {
        self.workers().into_iter().map(|worker| Box::new(move || worker.live()) as _).collect()
    }

    fn end(&self) {
        self.end();
    }
}

impl Served for Nvme {
    fn role(&self) -> Role {
        self.role()
    }

    fn lives(&self) -> Vec<Box<dyn FnOnce() + Send>> {
        self.workers().into_iter().map(|worker| Box::new(move || worker.live()) as _).collect()
    }

    fn end(&self) {
        self.end();
    }
}

impl Card {
    /// Plugs it in.
    pub(crate) fn plug(self, socket: Socket) -> Arc<Mutex<dyn Served>> {
        match self {
            Self::Virtio(service) => socket.plug(|socket| VirtioPci::new(service, socket)),
            Self::Nvme { volume, number, queues } => {
                socket.plug(|socket| Nvme::new(volume, number, queues, socket))
            }
        }
    }
}

/// Devices, and what they need of the host for as long as they live.
pub(crate) struct Functions {
    /// The devices.
    pub(crate) cards: Vec<Card>,
    /// The host's hold on the balloon, if there is one.
    pub(crate) balloon: Option<balloon::Control>,
    /// Where they will open files.
    pub(crate) directories: Vec<Directory>,
}

/// The devices of a description. Images and directories are opened and ports listened on here, once for the life of the
/// machine.
///
/// # Errors
/// If an image cannot be a disk or a directory cannot be shared, there are too many, or a port is somebody else's.
pub(crate) fn of(spec: &VmSpec) -> Result<Functions, VmError> {
    if spec.disks.len() > DiskSpec::MOST {
        return Err(VmError::TooManyDisks { count: spec.disks.len(), most: DiskSpec::MOST });
    }
    if spec.shares.len() > ShareSpec::MOST {
        return Err(VmError::TooManyShares { count: spec.shares.len(), most: ShareSpec::MOST });
    }
    let count = spec.disks.len()
        + spec.shares.len()
        + usize::from(spec.vsock.is_some())
        + usize::from(spec.slots.get());
    if count > MOST {
        return Err(VmError::TooManyDevices { count, most: MOST });
    }
    let mut cards = vec![virtio(Rng)];
    let mut directories = Vec::new();
    // A queue for each processor, so that none waits for another's requests.
    let queues = u16::try_from(spec.cpus.get()).unwrap_or(u16::MAX);
    for (number, disk) in (0..).zip(&spec.disks) {
        let volume = volume_of(disk)?;
        cards.push(match disk.bus {
            DiskBus::Virtio => virtio(Blk::new(volume, &format!("disk{number}"), queues)),
            DiskBus::Nvme => Card::Nvme { volume, number, queues },
        });
    }
    for ShareSpec { tag, directory, read_only, settled } in &spec.shares {
        let access = if *read_only { Access::ReadOnly } else { Access::ReadWrite };
        let validity = if *settled { Validity::Settled } else { Validity::Changing };
        let share = Share::open(directory, access, spec.shares.len())?;
        let access = if *read_only { jail::Access::Read } else { jail::Access::Change };
        directories.push(Directory { descriptor: share.root()?, access });
        cards.push(virtio(Fs::new(share, tag, validity, queues)));
    }
    if let Some(VsockSpec { path }) = &spec.vsock {
        let doors = SocketFiles::open(path)?;
        let vsock = Vsock::new(VsockSpec::GUEST, Box::new(doors)).map_err(VmError::Descriptors)?;
        cards.push(virtio(vsock));
    }
    cards.extend(adapter(spec)?);
    let balloon = spec.balloon.then(balloon::Control::default);
    cards.extend(balloon.clone().map(|control| virtio(Balloon::new(control))));
    Ok(Functions { cards, balloon, directories })
}

/// A card with a virtio device.
pub(crate) fn virtio(service: impl Service + 'static) -> Card {
    Card::Virtio(Box::new(service))
}

/// The network adapter, if there is one.
fn adapter(spec: &VmSpec) -> Result<Option<Card>, VmError> {
    match &spec.net {
        NetSpec::None => Ok(None),
        NetSpec::User(user) => user_adapter(user, &spec.ports, host_resolvers(), 0).map(Some),
        NetSpec::Tap(tap) => {
            let refused = |source| VmError::Tap { device: tap.device.clone(), source };
            let (device, facts) = Tap::open(&tap.device).map_err(refused)?;
            tap_adapter(device, facts, tap).map(Some)
        }
    }
}

/// The host's name servers; a host without the file asks itself.
pub fn host_resolvers() -> Vec<SocketAddr> {
    resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// An adapter on a user-mode network, the VM's `number`th.
///
/// # Errors
/// If the host has no descriptors left, or a port is somebody else's.
pub(crate) fn user_adapter(
    user: &UserNetSpec,
    ports: &[PortSpec],
    resolvers: Vec<SocketAddr>,
    number: u8,
) -> Result<Card, VmError> {
    let config = user_network(user, ports, resolvers, number);
    let mac = config.plan.guest_mac;
    let network = UserNet::new(config, Box::new(HostNetwork))?;
    Ok(on_network(network, user.rate, mac, MTU, user.queues))
}

/// An adapter on the network behind a TAP device.
///
/// # Errors
/// If the host has no descriptors left.
pub(crate) fn tap_adapter(device: Tap, facts: Facts, spec: &TapNetSpec) -> Result<Card, VmError> {
    let network = TapNetwork::new(device).map_err(VmError::Descriptors)?;
    let mac = spec.mac.unwrap_or(neighbour(facts.address));
    Ok(on_network(network, spec.rate, mac, facts.mtu, spec.queues))
}

fn on_network(
    network: impl Network + 'static,
    rate: Option<ByteSize>,
    mac: Mac,
    mtu: u16,
    queues: Option<NetQueues>,
) -> Card {
    let network: Box<dyn Network> = match rate {
        Some(rate) => Box::new(Limited::new(network, rate.bytes())),
        None => Box::new(network),
    };
    virtio(Net::new(network, mac, mtu, queues.map_or(1, NetQueues::get)))
}

/// The guest's address at the other end of the cable from this one: the same as long as the device is there, and as likely to be
/// nobody else's as its own.
fn neighbour(address: Mac) -> Mac {
    let [first, rest @ ..] = address;
    let [a, b, c, d, e] = rest;
    // Local, of one adapter, and not the device's.
    [(first ^ 0x10) & !1 | 2, a, b, c, d, e]
}

/// A disk's image.
pub fn disk_image(disk: &DiskSpec) -> Image {
    Image {
        file: disk.file.clone(),
        format: disk.format.map(|format| match format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        }),
        changes: match &disk.changes {
            DiskChanges::Refused => Changes::Refused,
            DiskChanges::Made => Changes::Made,
            DiskChanges::Discarded => Changes::Discarded,
            DiskChanges::Kept(file) => Changes::Kept(file.clone()),
        },
        backing: disk.backing.clone(),
    }
}

/// Opens a disk's image.
fn volume_of(disk: &DiskSpec) -> Result<Volume, DiskError> {
    Ok(limited(disk_image(disk).open()?, disk))
}

/// A disk with the limits that it is to have.
pub(crate) fn limited(image: Arc<dyn Disk>, disk: &DiskSpec) -> Volume {
    let mut volume = Volume::new(image);
    if let Some(ops) = disk.ops {
        volume = volume.limited(Counted::Requests, ops.get().into());
    }
    if let Some(rate) = disk.rate {
        volume = volume.limited(Counted::Bytes, rate.bytes());
    }
    volume
}

fn user_network(
    user: &UserNetSpec,
    ports: &[PortSpec],
    resolvers: Vec<SocketAddr>,
    number: u8,
) -> UserConfig {
    let forward = |port: &PortSpec| Forward {
        transport: match port.kind {
            PortKind::Tcp => Transport::Tcp,
            PortKind::Udp => Transport::Udp,
        },
        listen: port.listen,
        port: port.guest,
    };
    UserConfig {
        plan: address_plan(number),
        mtu: MTU,
        loopback: user.loopback,
        resolvers: user.dns.map_or(resolvers, |dns| vec![dns]),
        forwards: ports.iter().map(forward).collect(),
    }
}

/// The addresses on the VM's `number`th user-mode network: 10.0.2.0/24 and fec0::/64, 10.0.3.0/24 and fec0:0:0:1::/64, and so on.
fn address_plan(number: u8) -> AddressPlan {
    let four = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        Ipv4Addr::from([a, b, c.wrapping_add(number), d])
    };
    let six = |address: Ipv6Addr| {
        let [a, b, c, d, rest @ ..] = address.segments();
        let [e, f, g, h] = rest;
        Ipv6Addr::from([a, b, c, d.wrapping_add(number.into()), e, f, g, h])
    };
    let [a, b, c, d, e, f] = UserNetSpec::GUEST_MAC;
    AddressPlan {
        guest4: four(UserNetSpec::GUEST4),
        gateway4: four(UserNetSpec::GATEWAY4),
        dns4: four(UserNetSpec::DNS4),
        prefix4: UserNetSpec::PREFIX4,
        guest6: six(UserNetSpec::GUEST6),
        gateway6: six(UserNetSpec::GATEWAY6),
        dns6: six(UserNetSpec::DNS6),
        router_link: UserNetSpec::ROUTER_LINK,
        guest_mac: [a, b, c, d, e.wrapping_add(number), f],
        router_mac: UserNetSpec::ROUTER_MAC,
    }
}

/// The threads that serve one device's queues.
pub(crate) struct Workers {
    function: Arc<Mutex<dyn Served>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// If the host has no threads for us.
    pub(crate) fn start(function: Arc<Mutex<dyn Served>>, events: &EventSink) -> Result<Self, VmError> {
        let (name, role, lives) = {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            (function.name(), function.role(), function.lives())
        };
        let mut workers = Self { function, threads: Vec::new() };
        for life in lives {
            let watch = Watch { thread: "a device's worker", events: events.clone() };
            let live = move || {
                let _watch = watch;
                life();
            };
            let thread = host::thread::spawn(name, role, live);
            workers.threads.push(thread.map_err(VmError::Thread)?);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    /// Waits for what they are doing: a disk's last request.
    fn drop(&mut self) {
        self.function.lock().unwrap_or_else(PoisonError::into_inner).end();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the panic hook, and to the driver by an event.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_network_of_a_vm_has_addresses_of_its_own() {
        let (first, fourth) = (address_plan(0), address_plan(3));
        assert_eq!((first.guest4, first.gateway6), (UserNetSpec::GUEST4, UserNetSpec::GATEWAY6));
        assert_eq!(
            (fourth.guest4.to_string(), fourth.dns6.to_string()),
            ("10.0.5.15".into(), "fec0:0:0:3::3".into())
        );
        assert_ne!(first.guest_mac, fourth.guest_mac);
        assert_eq!(first.router_link, fourth.router_link);
    }
}
