//! The user-mode network between a guest that sends anything and a world that does anything.
//!
//! The guest's segments are mostly nearly right: it listens to what it is told and answers with those numbers, or with
//! some that are a little off. The world is pairs of sockets whose far ends are ours: they are written, read and closed
//! in the middle of everything.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use backend::net::user::{AddressPlan, Datagrams, Outside, Stream, UserConfig, UserNet};
use backend::net::{Abilities, LONGEST_FRAME, Network, Offload};

use super::board::lock;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The most connections that the world keeps.
const MOST_FAR: usize = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

/// The far ends of what the network has opened.
#[derive(Default)]
struct World {
    streams: Vec<UnixStream>,
    datagrams: Vec<UnixDatagram>,
}

struct Doors(Arc<Mutex<World>>);

impl Outside for Doors {
    fn stream(&self, to: SocketAddr) -> std::io::Result<Box<dyn Stream>> {
        let mut world = lock(&self.0);
        if to.port() == 1 || world.streams.len() >= MOST_FAR {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        world.streams.push(far);
        Ok(Box::new(near))
    }

    fn datagrams(&self, _: SocketAddr) -> std::io::Result<Box<dyn Datagrams>> {
        let mut world = lock(&self.0);
        let (near, far) = UnixDatagram::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        if world.datagrams.len() < MOST_FAR {
            world.datagrams.push(far);
        }
        Ok(Box::new(near))
    }

    fn echo(&self, to: IpAddr) -> std::io::Result<Box<dyn Datagrams>> {
        self.datagrams((to, 0).into())
    }
}

/// What the guest knows of a connection.
#[derive(Clone, Copy, Default)]
struct Known {
    local: u16,
    remote: u16,
    /// What it is expected to say next, and to have heard.
    seq: u32,
    ack: u32,
}

struct Bench {
    net: UserNet,
    world: Arc<Mutex<World>>,
    known: Vec<Known>,
    v6: bool,
}

fn config() -> UserConfig {
    UserConfig {
        plan: AddressPlan {
            guest4: GUEST,
            gateway4: GATEWAY,
            dns4: DNS,
            prefix4: 24,
            guest6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15),
            gateway6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2),
            dns6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3),
            router_link: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            guest_mac: GUEST_MAC,
            router_mac: [0x52, 0x55, 0x0a, 0, 2, 2],
        },
        mtu: 1500,
        loopback: true,
        resolvers: vec![(Ipv4Addr::LOCALHOST, 53).into(), (Ipv4Addr::LOCALHOST, 54).into()],
        forwards: Vec::new(),
    }
}

impl Bench {
    /// An IP packet in a frame.
    fn frame(&self, protocol: u8, destination: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x52, 0x55, 0x0a, 0, 2, 2];
        frame.extend(GUEST_MAC);
        let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([protocol, 255]);
            let address = |last| Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, last).octets();
            frame.extend(address(0x15));
            frame.extend(address(destination.into()));
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(len.saturating_add(20).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(GUEST.octets());
            frame.extend([10, 0, 2, destination]);
        }
        frame.extend(payload);
        frame
    }

    fn segment(&mut self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let fresh = Known {
            local: 1000 + u16::from(u.arbitrary::<u8>()?),
            remote: u.int_in_range(1..=4)?,
            seq: 7,
            ack: 0,
        };
        let know = if self.known.is_empty() || u.ratio(1, 4)? { fresh } else { *u.choose(&self.known)? };
        // Calls, acknowledgements, data, ends, resets, and nonsense.
        let any = u.arbitrary()?;
        let flags = *u.choose(&[0x02u8, 0x10, 0x10, 0x18, 0x18, 0x11, 0x12, 0x04, 0x14, any])?;
        let off = |u: &mut Unstructured<'_>| -> Result<u32> {
            Ok(if u.ratio(1, 6)? { u.arbitrary::<i8>()?.into() } else { 0i32 }.cast_unsigned())
        };
        let (seq, ack) = (know.seq.wrapping_add(off(u)?), know.ack.wrapping_add(off(u)?));
        let window: u16 = *u.choose(&[0, 1, 100, 0xffff])?;
        let options: &[u8] = if flags == 2 { &[2, 4, 5, 180, 3, 3, 7, 0] } else { &[] };
        let mut tcp = Vec::new();
        tcp.extend(know.local.to_be_bytes());
        tcp.extend(know.remote.to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([u8::try_from(5 + options.len() / 4).unwrap_or(5) << 4, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        let len = if flags & 8 != 0 { usize::from(u.arbitrary::<u8>()?) * 100 } else { 0 };
        tcp.resize(tcp.len() + len, 0x5a);
        let used = u32::try_from(len).unwrap_or(0) + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        if let Some(known) = self.known.iter_mut().find(|known| known.local == know.local) {
            known.seq = seq.wrapping_add(used);
        } else if self.known.len() < MOST_FAR {
            self.known.push(Known { seq: seq.wrapping_add(used), ..know });
        }
        Ok(self.frame(TCP, 2, &tcp))
    }

    fn transmit(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let destination = *u.choose(&[2, 3, 9, 15, 255])?;
        let mut frame = match u.int_in_range(0..=9u8)? {
            0..=5 => self.segment(u)?,
            6 => {
                let mut udp = *u.choose(&[[0u8, 68, 0, 67], [4, 0, 0, 53], [4, 0, 4, 0]])?;
                udp[0] |= u.arbitrary::<u8>()? & 3;
                let body: Vec<u8> = u.arbitrary()?;
                let len = u16::try_from(body.len() + 8).unwrap_or(0).to_be_bytes();
                self.frame(UDP, destination, &[&udp[..], &len, &[0, 0], &body].concat())
            }
            7 => {
                let any = u.arbitrary()?;
                let kind = *u.choose(&[8u8, 128, 133, 135, 143, any])?;
                let body: Vec<u8> = u.arbitrary()?;
                let protocol = if self.v6 { ICMP6 } else { ICMP };
                self.frame(protocol, destination, &[&[kind, 0, 0, 0], &body[..]].concat())
            }
            8 => {
                let mut arp = self.frame(0, 0, &[])[..12].to_vec();
                arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                arp.extend(u.bytes(20.min(u.len()))?);
                arp
            }
            _ => u.arbitrary()?,
        };
        if u.ratio(1, 8)? && !frame.is_empty() {
            let at = u.choose_index(frame.len())?;
            frame[at] = u.arbitrary()?;
        }
        if u.ratio(1, 16)? {
            frame.truncate(u.arbitrary::<u8>()?.into());
        }
        self.net.transmit(&frame, Offload::default());
        Ok(())
    }

    /// Hears what the network says, and remembers the numbers of segments.
    fn receive(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let room = usize::from(u.arbitrary::<u8>()?);
        let large = u.arbitrary()?;
        let abilities = Abilities { checksum: large, tcp4: large, tcp6: large };
        let (known, mut frames) = (&mut self.known, 0);
        self.net.receive(abilities, &mut |frame| {
            if frames >= room {
                return false;
            }
            frames += 1;
            let bytes = frame.parts.concat();
            assert!(bytes.len() <= LONGEST_FRAME && bytes.starts_with(&GUEST_MAC), "a frame for the guest");
            let ip = if bytes[12] == 8 { 20 } else { 40 };
            let is_tcp = bytes.get(if ip == 20 { 14 + 9 } else { 14 + 6 }) == Some(&TCP);
            if let (true, Some(tcp)) = (is_tcp, bytes.get(14 + ip..)) {
                let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
                let local = u16::from_be_bytes([tcp[2], tcp[3]]);
                let (len, flags) = (tcp.len() - usize::from(tcp[12] >> 4) * 4, tcp[13]);
                if let Some(known) = known.iter_mut().find(|known| known.local == local) {
                    known.ack =
                        word(4).wrapping_add(u32::try_from(len).unwrap_or(0) + u32::from(flags & 3 != 0));
                }
            }
            true
        });
        Ok(())
    }

    /// The world does something.
    fn happen(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let mut world = lock(&self.world);
        if u.arbitrary()? && !world.datagrams.is_empty() {
            let at = u.choose_index(world.datagrams.len())?;
            // Nobody listens any more, or it is too much: all the same.
            let _ = world.datagrams[at].send(u.arbitrary()?);
            return Ok(());
        }
        if world.streams.is_empty() {
            let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), u.arbitrary()?);
            let Ok((near, far)) = UnixStream::pair() else { return Ok(()) };
            if near.set_nonblocking(true).and(far.set_nonblocking(true)).is_ok() {
                world.streams.push(far);
                drop(world);
                self.net.admit(Box::new(near), peer, u.int_in_range(1..=4)?);
            }
            return Ok(());
        }
        let at = u.choose_index(world.streams.len())?;
        match u.int_in_range(0..=7u8)? {
            0 => drop(world.streams.swap_remove(at)),
            1..=3 => {
                let _ = world.streams[at].read(&mut [0; 4096]);
            }
            _ => {
                let _ = world.streams[at].write(&vec![0xa5; usize::from(u.arbitrary::<u8>()?) * 64]);
            }
        }
        Ok(())
    }
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let world = Arc::new(Mutex::new(World::default()));
    // Without descriptors nothing can be tried.
    let Ok(net) = UserNet::new(config(), Box::new(Doors(world.clone()))) else { return Ok(()) };
    let mut bench = Bench { net, world, known: Vec::new(), v6: u.ratio(1, 4)? };
    while !u.is_empty() {
        match u.int_in_range(0..=7u8)? {
            0..=3 => bench.transmit(&mut u)?,
            4 => bench.net.wait(Some(Duration::ZERO)),
            5 | 6 => bench.receive(&mut u)?,
            _ => bench.happen(&mut u)?,
        }
    }
    Ok(())
}
