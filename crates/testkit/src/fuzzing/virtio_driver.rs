//! A virtio driver that lies: it sets a device up as it should, and then does anything to rings, registers and
//! configuration space, in any order, with chains that are nearly right.
//!
//! Checked beside the implied: a device that needs a reset takes nothing more, what the disk is asked for lies on it
//! ([`super::board::MemoryDisk`]), and a device in the middle of anything is saved and goes on as another.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use backend::Volume;
use backend::vsock::Doors;
use bus::pci::Function;
use bus::{Device, Lifecycle};
use memory::{FrameKind, GuestMemory, RamRange};
use virtio::balloon::{Balloon, Control};
use virtio::blk::Blk;
use virtio::console::Console;
use virtio::net::Net;
use virtio::rng::Rng;
use virtio::service::Service;
use virtio::transport::{BAR_BYTES, VirtioPci, Worker};
use virtio::vsock::Vsock;
use x86::{Gfn, Gpa};

use super::board::{LoopNetwork, MemoryDisk, lock};
use super::plugged::plug;

/// Guest memory; all addresses that make sense have 16 bits.
const RAM: u64 = 0x1_0000;

// Offsets of registers.
const SELECT: u64 = 0x08;
const FEATURES: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE: u64 = 0x16;
const NOTIFY: u64 = 0x3000;

const NEEDS_RESET: u8 = 0x40;
const PACKED: u64 = 1 << 34;
/// Features of network adapters: those for the guest, and mergeable buffers.
const NETWORK: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 15;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

/// The guest's number.
const GUEST: u32 = 3;

/// Doors behind which somebody has said something, and does not listen.
struct Echoes;

impl Doors for Echoes {
    fn listener(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn answer(&self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn call(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, mut theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.write_all(&vec![7; 300 * (port as usize & 3)])?;
        Ok(ours)
    }
}

/// What the driver drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Balloon,
    Disk,
    Entropy,
    Network,
    Sockets,
    Ports,
}

/// Two ports with something for the guest.
fn ports() -> Console {
    let bell = host::poll::Bell::new().expect("a descriptor");
    let ports = ["one", "two"].map(|name| Arc::new(backend::Port::new(name, bell.clone())));
    ports.iter().for_each(|port| assert!(port.write(b"input")));
    Console::new(ports.to_vec(), bell).expect("a descriptor")
}

struct Bench {
    memory: Arc<GuestMemory>,
    device: Arc<Mutex<VirtioPci>>,
    workers: Vec<Worker>,
    kind: Kind,
    /// Descriptors, driver area, device area.
    areas: [u64; 3],
    size: u16,
    packed: bool,
    avail: u16,
}

impl Bench {
    fn new(kind: Kind, memory: Arc<GuestMemory>) -> Self {
        let service: Box<dyn Service> = match kind {
            Kind::Disk => Box::new(Blk::new(Volume::new(Arc::new(MemoryDisk::new())), "fuzz", 2)),
            Kind::Balloon => Box::new(Balloon::new(Control::default())),
            Kind::Entropy => Box::new(Rng),
            Kind::Ports => Box::new(ports()),
            Kind::Network => Box::new(Net::new(Box::new(LoopNetwork::new()), [2; 6], 1500, 2)),
            Kind::Sockets => Box::new(Vsock::new(GUEST, Box::new(Echoes)).expect("descriptors")),
        };
        let (device, workers) = plug(service, &memory);
        let areas = [0x1000, 0x2000, 0x3000];
        Self { memory, device, workers, kind, areas, size: 8, packed: false, avail: 0 }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.device).write(0, offset, data);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        lock(&self.device).read(0, STATUS, &mut status);
        status[0]
    }

    /// Sets the device up, mostly as a driver would.
    fn set_up(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        lock(&self.device).write_config(4, &[6, 0]);
        let own = match self.kind {
            Kind::Disk => 1 << 9,
            Kind::Entropy => 0,
            Kind::Balloon => 0x3f,
            Kind::Network => NETWORK,
            Kind::Sockets => 1,
            // Several ports.
            Kind::Ports => 1 << 1,
        };
        let features = 1 << 32 | u.arbitrary::<u64>()? & (PACKED | 3 << 28 | own);
        self.packed = features & PACKED != 0;
        self.size = 1 << u.int_in_range(0..=6u8)?;
        for area in &mut self.areas {
            *area = u.int_in_range(0..=0xfff_u64)? << 4;
        }
        for status in [0, 1, 3] {
            self.write(STATUS, &[status]);
        }
        for (select, half) in [(0u8, features), (1, features >> 32)] {
            self.write(SELECT, &[select, 0, 0, 0]);
            self.write(FEATURES, &half.to_le_bytes()[..4]);
        }
        self.write(STATUS, &[11]);
        let queue = match self.kind {
            Kind::Disk | Kind::Entropy => 0,
            Kind::Network | Kind::Sockets => u.int_in_range(0..=1)?,
            Kind::Balloon => u.int_in_range(0..=4)?,
            Kind::Ports => u.int_in_range(0..=5)?,
        };
        self.write(QUEUE, &[queue, 0]);
        self.write(0x18, &self.size.to_le_bytes());
        for (register, area) in [0x20, 0x28, 0x30].into_iter().zip(self.areas) {
            self.write(register, &area.to_le_bytes());
        }
        self.write(0x1c, &[1, 0]);
        self.write(STATUS, &[15]);
        self.avail = 0;
        Ok(())
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        // A driver writes where it has no memory, too.
        let _ = self.memory.write(Gpa(gpa), bytes);
    }

    /// A descriptor with flags that are mostly right.
    fn descriptor(&self, u: &mut Unstructured<'_>, at: u64, last: bool) -> Result<()> {
        let lens = [1, 16, 16, 512, 512, 4096, u.arbitrary()?];
        let gpa = u64::from(u.arbitrary::<u16>()?) | if u.ratio(1, 20)? { u.arbitrary::<u64>()? } else { 0 };
        let mut flags = if u.arbitrary()? { 2 } else { 0 } | u16::from(!last);
        if u.ratio(1, 8)? {
            flags ^= 1 << u.int_in_range(0..=2)?;
        }
        let next = u16::from(u.arbitrary::<u8>()? & 0x1f);
        let (third, fourth) = if self.packed {
            let turn = (self.avail / self.size).is_multiple_of(2);
            (next, flags | if turn { 1 << 7 } else { 1 << 15 })
        } else {
            (flags, next)
        };
        let mut bytes = gpa.to_le_bytes().to_vec();
        let len: u32 = *u.choose(&lens)?;
        bytes.extend(len.to_le_bytes());
        bytes.extend(third.to_le_bytes());
        bytes.extend(fourth.to_le_bytes());
        self.put(at, &bytes);
        Ok(())
    }

    /// A chain, made available.
    fn chain(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let count = u.int_in_range(1..=4u16)?;
        let head =
            u64::from(if self.packed { self.avail % self.size } else { u.arbitrary::<u16>()? % self.size });
        for n in 0..count {
            let place = (head + u64::from(n)) % u64::from(self.size);
            self.descriptor(u, self.areas[0] + 16 * place, n + 1 == count)?;
            if self.packed {
                self.avail = self.avail.wrapping_add(1);
            }
        }
        if !self.packed {
            let entry = self.areas[1] + 4 + 2 * u64::from(self.avail % self.size);
            self.put(entry, &head.to_le_bytes()[..2]);
            self.avail = self.avail.wrapping_add(1);
            self.put(self.areas[1] + 2, &self.avail.to_le_bytes());
        }
        if self.kind == Kind::Disk {
            // A header somewhere, in case a descriptor leads there.
            let kind = *u.choose(&[0u32, 1, 4, 8, 11, 13, 99])?;
            let at = u64::from(u.arbitrary::<u16>()?);
            self.put(at, &kind.to_le_bytes());
            self.put(at + 8, &u64::from(u.arbitrary::<u8>()?).to_le_bytes());
        }
        if self.kind == Kind::Balloon {
            // Numbers of pages, of which most are there.
            let at = u64::from(u.arbitrary::<u16>()?);
            for n in 0..4 {
                let page = u32::from(u.arbitrary::<u8>()? & 0x1f);
                self.put(at + 4 * n, &page.to_le_bytes());
            }
        }
        if self.kind == Kind::Sockets {
            // The same, from few ports to few, with counts that are small or anything.
            let at = u64::from(u.arbitrary::<u16>()?);
            let mut port = || Ok::<_, arbitrary::Error>(u32::from(u.arbitrary::<u8>()? & 3));
            let [from, to, len, ends, room, count] = [
                port()?,
                port()?,
                u.int_in_range(0..=600)?,
                u.int_in_range(0..=3)?,
                u.arbitrary()?,
                u.arbitrary()?,
            ];
            let operation = 1 | u32::from(u.int_in_range(0..=8u8)?) << 16;
            let header = [GUEST, 0, 2, 0, from, to, len, operation, ends, room, count];
            header.iter().zip(0..).for_each(|(word, n)| self.put(at + 4 * n, &word.to_le_bytes()));
        }
        self.write(NOTIFY, &[0, 0]);
        Ok(())
    }

    fn serve(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let worker = &self.workers[u.choose_index(self.workers.len())?];
        let stopped = self.status() & NEEDS_RESET != 0;
        let served = worker.step();
        assert!(!(stopped && served), "a device that needs a reset takes nothing");
        Ok(())
    }

    /// The device's state in another device, on the same memory.
    fn moved(self) -> Self {
        lock(&self.device).pause();
        let record = lock(&self.device).save();
        let next = Self::new(self.kind, self.memory.clone());
        lock(&next.device).restore(&record).expect("a device's own state");
        assert_eq!(lock(&next.device).save(), record);
        lock(&next.device).resume();
        Self { areas: self.areas, size: self.size, packed: self.packed, avail: self.avail, ..next }
    }
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), RAM)]).expect("64 KiB"));
    let kinds = [Kind::Balloon, Kind::Disk, Kind::Entropy, Kind::Network, Kind::Sockets, Kind::Ports];
    let kind = *u.choose(&kinds)?;
    let mut bench = Bench::new(kind, memory);
    bench.set_up(&mut u)?;
    while !u.is_empty() {
        match u.int_in_range(0..=31u8)? {
            0..=11 => bench.chain(&mut u)?,
            12..=19 => bench.serve(&mut u)?,
            20..=22 => {
                let gpa = bench.areas[u.choose_index(3)?] + u64::from(u.arbitrary::<u8>()?);
                bench.put(gpa, &u.arbitrary::<u64>()?.to_le_bytes()[..u.int_in_range(1..=8)?]);
            }
            23 | 24 => {
                let offset = u.int_in_range(0..=0x5fff_u64)? & if u.arbitrary()? { 0x3f } else { 0x7fff };
                let width = u.int_in_range(1..=8)?;
                if u.arbitrary()? {
                    bench.write(offset, &u.arbitrary::<u64>()?.to_le_bytes()[..width]);
                } else {
                    lock(&bench.device).read(0, offset.min(BAR_BYTES - 8), &mut [0; 8][..width]);
                }
            }
            25 | 26 => {
                let register = u64::from(u.arbitrary::<u8>()?);
                let value = u.arbitrary::<u32>()?.to_le_bytes();
                let mut device = lock(&bench.device);
                if u.arbitrary()? {
                    device.write_config(register, &value);
                } else {
                    device.read_config(register, &mut [0; 4]);
                }
            }
            27 => {
                const KINDS: [FrameKind; 4] =
                    [FrameKind::Ram, FrameKind::ReadOnly, FrameKind::Ballooned, FrameKind::Absent];
                let _ = bench.memory.set_kind(Gfn(u.int_in_range(0..=15)?), *u.choose(&KINDS)?);
            }
            28 => bench = bench.moved(),
            29 => lock(&bench.device).reset(),
            30 => {
                lock(&bench.device).pause();
                assert!(!bench.workers[0].step(), "a paused device takes nothing");
                lock(&bench.device).resume();
            }
            _ => bench.set_up(&mut u)?,
        }
    }
    bench.moved();
    Ok(())
}
