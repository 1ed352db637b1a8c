//! An NVMe driver that lies: it makes a controller ready as it should, and then does anything to queues, doorbells, registers and
//! configuration space, in any order, with commands that are nearly right.
//!
//! Checked beside the implied: what the disk is asked for lies on it ([`super::board::MemoryDisk`]), a controller that has failed
//! or is paused takes nothing, and a controller in the middle of anything is saved and goes on as another.

use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use backend::Volume;
use bus::pci::{Function, Slot};
use bus::{Device, Lifecycle};
use memory::{FrameKind, GuestMemory, RamRange};
use nvme::{BAR_BYTES, Nvme, Worker};
use x86::{Gfn, Gpa};

use super::board::{MemoryDisk, lock};

/// Guest memory; all addresses that make sense have 16 bits.
const RAM: u64 = 0x1_0000;
/// Queues: the admin queue and two for I/O.
const QUEUES: usize = 3;

// Offsets of registers.
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const DOORBELLS: u64 = 0x1000;

const ENABLED: u32 = 0x0046_0001;
const FAILED: u8 = 2;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

struct Bench {
    memory: Arc<GuestMemory>,
    device: Arc<Mutex<Nvme>>,
    workers: Vec<Worker>,
    /// Where each submission queue is, and how far its driver is.
    tails: [(u64, u32); QUEUES],
}

/// The size of all rings.
const ENTRIES: u32 = 8;

impl Bench {
    fn new(memory: Arc<GuestMemory>) -> Self {
        let volume = Volume::new(Arc::new(MemoryDisk::new()));
        let device = Slot::new().socket(&memory).plug(|socket| Nvme::new(volume, 0, 2, socket));
        let workers = lock(&device).workers();
        Self { memory, device, workers, tails: [(0x1000, 0), (0x3000, 0), (0x5000, 0)] }
    }

    fn write(&self, offset: u64, value: u32) {
        lock(&self.device).write(0, offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        lock(&self.device).read(0, STATUS, &mut status);
        status[0]
    }

    /// Makes the controller ready, and its queues, mostly as a driver would.
    fn set_up(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        lock(&self.device).write_config(4, &[6, 0]);
        self.write(CONFIGURATION, 0);
        self.write(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        for (register, base) in [(0x28, 0x1000), (0x30, 0x2000)] {
            self.write(register, base);
            self.write(register + 4, 0);
        }
        self.write(CONFIGURATION, ENABLED | if u.ratio(1, 20)? { u.arbitrary::<u32>()? } else { 0 });
        self.tails.iter_mut().for_each(|(_, tail)| *tail = 0);
        for queue in 1..=u.int_in_range(0..=2u32)? {
            for (opcode, base) in [(5, 0x2000 + 0x2000 * queue), (1, 0x1000 + 0x2000 * queue)] {
                let words = [(ENTRIES - 1) << 16 | queue, queue << 16 | 3, 0, 0, 0, 0];
                self.put_command(0, opcode, 0, [base.into(), 0], words);
            }
            self.ring(0);
            self.workers[0].step();
            self.write(DOORBELLS + 4, (2 * queue) % ENTRIES);
        }
        Ok(())
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        // A driver writes where it has no memory, too.
        let _ = self.memory.write(Gpa(gpa), bytes);
    }

    fn put_command(&mut self, queue: usize, opcode: u16, namespace: u32, prp: [u64; 2], words: [u32; 6]) {
        let (base, tail) = &mut self.tails[queue];
        let at = *base + 64 * u64::from(*tail);
        *tail = (*tail + 1) % ENTRIES;
        let mut bytes = u32::from(opcode).to_le_bytes().to_vec();
        bytes.extend(namespace.to_le_bytes());
        bytes.extend([0; 16]);
        prp.iter().for_each(|entry| bytes.extend(entry.to_le_bytes()));
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        self.put(at, &bytes);
    }

    fn ring(&self, queue: usize) {
        self.write(DOORBELLS + 8 * queue as u64, self.tails[queue].1);
    }

    /// Submits commands that are nearly right.
    fn submit(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let queue = u.choose_index(QUEUES)?;
        for _ in 0..u.int_in_range(1..=4u8)? {
            const ADMIN: [u16; 11] = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x80];
            const DISK: [u16; 7] = [0, 1, 2, 8, 9, 5, 0x2_u16 | 0x4000];
            let opcode = if queue == 0 { *u.choose(&ADMIN)? } else { *u.choose(&DISK)? };
            let mut prp = [0; 2];
            for entry in &mut prp {
                *entry = u64::from(u.arbitrary::<u16>()?) & if u.arbitrary()? { 0xf000 } else { 0xfffc };
                if u.ratio(1, 20)? {
                    *entry = u.arbitrary()?;
                }
            }
            // Numbers are small, and sometimes anything.
            let mut words = [0; 6];
            for word in &mut words {
                *word = if u.ratio(1, 12)? { u.arbitrary()? } else { u32::from(u.arbitrary::<u8>()? & 0x7f) };
            }
            if queue == 0 && u.arbitrary()? {
                words[0] = (ENTRIES - 1) << 16 | words[0] & 3;
                words[1] = words[1] << 16 | 3;
            }
            if queue != 0 {
                words[1] &= u32::from(u.ratio(1, 20)?);
            }
            let namespace = *u.choose(&[1, 1, 1, 0, 2, u32::MAX])?;
            self.put_command(queue, opcode, namespace, prp, words);
        }
        self.ring(queue);
        Ok(())
    }

    fn serve(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let failed = self.status() & FAILED != 0;
        let number = u.choose_index(self.workers.len())?;
        let served = self.workers[number].step();
        // The end of a shutdown is the admin queue's, too.
        assert!(!(failed && served && number != 0), "a controller that has failed takes nothing");
        Ok(())
    }

    /// The controller's state in another one, on the same memory.
    fn moved(self) -> Self {
        lock(&self.device).pause();
        let record = lock(&self.device).save();
        let next = Self::new(self.memory.clone());
        lock(&next.device).restore(&record).expect("a device's own state");
        assert_eq!(lock(&next.device).save(), record);
        lock(&next.device).resume();
        Self { tails: self.tails, ..next }
    }
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), RAM)]).expect("64 KiB"));
    let mut bench = Bench::new(memory);
    bench.set_up(&mut u)?;
    while !u.is_empty() {
        match u.int_in_range(0..=31u8)? {
            0..=9 => bench.submit(&mut u)?,
            10..=17 => bench.serve(&mut u)?,
            18 | 19 => {
                let queue = u64::from(u.int_in_range(0..=3u8)?);
                bench.write(DOORBELLS + 8 * queue + 4, u.int_in_range(0..=ENTRIES)?);
            }
            20 | 21 => {
                let bytes = (u64::from(u.arbitrary::<u16>()?) & !7).to_le_bytes();
                bench.put(u64::from(u.arbitrary::<u16>()?) & !7, &bytes);
            }
            22..=24 => {
                let offset =
                    u.int_in_range(0..=BAR_BYTES - 8)? & if u.arbitrary()? { 0x103f } else { 0x3fff };
                let width = u.int_in_range(1..=8)?;
                if u.arbitrary()? {
                    let value = u.arbitrary::<u64>()?.to_le_bytes();
                    lock(&bench.device).write(0, offset, &value[..width]);
                } else {
                    lock(&bench.device).read(0, offset, &mut [0; 8][..width]);
                }
            }
            25 => {
                let register = u64::from(u.arbitrary::<u8>()?);
                lock(&bench.device).write_config(register, &u.arbitrary::<u32>()?.to_le_bytes());
            }
            26 => bench.write(CONFIGURATION, ENABLED | u32::from(u.int_in_range(0..=2u8)?) << 14),
            27 => {
                const KINDS: [FrameKind; 4] =
                    [FrameKind::Ram, FrameKind::ReadOnly, FrameKind::Ballooned, FrameKind::Absent];
                let _ = bench.memory.set_kind(Gfn(u.int_in_range(0..=15)?), *u.choose(&KINDS)?);
            }
            28 => bench = bench.moved(),
            29 => lock(&bench.device).reset(),
            30 => {
                lock(&bench.device).pause();
                let served = bench.workers.iter().any(Worker::step);
                assert!(!served, "a paused device takes nothing");
                lock(&bench.device).resume();
            }
            _ => bench.set_up(&mut u)?,
        }
    }
    bench.moved();
    Ok(())
}
