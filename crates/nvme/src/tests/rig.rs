//! A controller with all that surrounds it, and a driver that does what drivers do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backend::{Disk, RawDisk, Volume};
use bus::pci::{Function, Slot};
use memory::{GuestMemory, RamRange};
use x86::Gpa;

use crate::{Nvme, Worker};

/// Where the queues of each identifier are: submission, completion.
const RINGS: [(u64, u64); 3] = [(0x1000, 0x2000), (0x3000, 0x4000), (0x5000, 0x6000)];
/// Entries of each.
pub(super) const SIZE: u16 = 8;
/// Where a list of PRPs is put.
pub(super) const LIST: u64 = 0x8000;
/// Room for data.
pub(super) const DATA: u64 = 0x10_0000;

pub(super) const BYTES: u64 = 4 << 20;

// Registers.
pub(super) const CONFIGURATION: u64 = 0x14;
pub(super) const STATUS: u64 = 0x1c;
pub(super) const ENABLED: u32 = 0x0046_0001;

/// The device and its surroundings.
pub(super) struct Rig {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) device: Arc<Mutex<Nvme>>,
    pub(super) slot: Slot,
    pub(super) workers: Vec<Worker>,
}

/// A command: opcode, namespace, PRPs, dwords from 10 on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Command {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) namespace: u32,
    pub(super) prp: [u64; 2],
    pub(super) words: [u32; 6],
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) result: u32,
    pub(super) head: u16,
    pub(super) queue: u16,
    pub(super) command: u16,
    /// Type and code.
    pub(super) status: u16,
}

/// A driver's end of a pair of queues.
pub(super) struct Pair {
    id: u16,
    tail: u16,
    head: u16,
    phase: bool,
    next: u16,
}

/// An image of whose sectors each is full of the low byte of its number.
pub(super) fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk");
    std::fs::write(&path, (0..BYTES).map(|n| (n / 512).to_le_bytes()[0]).collect::<Vec<u8>>()).unwrap();
    path
}

impl Rig {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 4 << 20)]).unwrap());
        Self::with(Volume::new(disk), memory)
    }

    pub(super) fn on(path: &Path, read_only: bool) -> Self {
        Self::new(Arc::new(RawDisk::open(path, read_only).unwrap()))
    }

    pub(super) fn with(volume: Volume, memory: Arc<GuestMemory>) -> Self {
        let slot = Slot::new();
        let device = slot.socket(&memory).plug(|socket| Nvme::new(volume, 0, 2, socket));
        let workers = device.lock().unwrap().workers();
        Self { memory, device, slot, workers }
    }

    pub(super) fn messages(&self) -> Vec<(u64, u32)> {
        self.slot.messages()
    }

    pub(super) fn config_word(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.device.lock().unwrap().read_config(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn config_write(&self, register: u64, data: &[u8]) {
        self.device.lock().unwrap().write_config(register, data);
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.slot.read(Slot::HOME + offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&self, offset: u64, value: u32) {
        self.slot.write(Slot::HOME + offset, &value.to_le_bytes());
    }

    /// Enables the function; with `messages`, also MSI-X, vector by vector.
    pub(super) fn plug_in(&self, messages: bool) {
        self.config_write(4, &[6, 0]);
        if messages {
            self.config_write(u64::from(self.config_word(0x34) & 0xff) + 3, &[0x80]);
            for vector in 0..3 {
                let at = 0x2000 + 16 * u64::from(vector);
                self.write(at, 0xfee0_0000);
                self.write(at + 8, 0x40 + vector);
                self.write(at + 12, 0);
            }
        }
    }

    /// Resets the controller and makes it ready; the admin queues.
    pub(super) fn enable(&self) -> Pair {
        self.write(CONFIGURATION, 0);
        assert_eq!(self.read(STATUS), 0);
        let entries = u32::from(SIZE) - 1;
        self.write(0x24, entries << 16 | entries);
        for (register, at) in [(0x28, RINGS[0].0), (0x30, RINGS[0].1)] {
            self.write(register, u32::try_from(at).unwrap());
            self.write(register + 4, 0);
        }
        self.write(CONFIGURATION, ENABLED);
        assert_eq!(self.read(STATUS), 1, "ready");
        self.pair(0)
    }

    pub(super) fn pair(&self, id: u16) -> Pair {
        self.memory.fill(Gpa(RINGS[usize::from(id)].1), 0x1000, 0).unwrap();
        Pair { id, tail: 0, head: 0, phase: true, next: 0x100 * (id + 1) }
    }

    /// Makes a pair of I/O queues.
    pub(super) fn create(&self, admin: &mut Pair, id: u16) -> Pair {
        let (size, (submission, completion)) = (u32::from(SIZE - 1) << 16, RINGS[usize::from(id)]);
        let create = |opcode, base, word11| Command {
            opcode,
            prp: [base, 0],
            words: [size | u32::from(id), word11, 0, 0, 0, 0],
            ..Command::default()
        };
        assert_eq!(admin.run(self, create(5, completion, u32::from(id) << 16 | 3)).status, 0);
        assert_eq!(admin.run(self, create(1, submission, u32::from(id) << 16 | 1)).status, 0);
        self.pair(id)
    }

    /// Everything set up as drivers do it: the admin queues, and a pair for I/O.
    pub(super) fn start(&self, messages: bool) -> (Pair, Pair) {
        self.plug_in(messages);
        let mut admin = self.enable();
        let io = self.create(&mut admin, 1);
        (admin, io)
    }

    pub(super) fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }
}

impl Pair {
    /// Puts a command into the queue; its identifier.
    pub(super) fn put(&mut self, rig: &Rig, command: Command) -> u16 {
        let Command { opcode, flags, namespace, prp, words } = command;
        let id = self.next;
        self.next += 1;
        let mut bytes = vec![opcode, flags];
        bytes.extend(id.to_le_bytes());
        bytes.extend(namespace.to_le_bytes());
        bytes.extend([0; 16]);
        prp.iter().for_each(|entry| bytes.extend(entry.to_le_bytes()));
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        rig.memory.write(Gpa(RINGS[usize::from(self.id)].0 + 64 * u64::from(self.tail)), &bytes).unwrap();
        self.tail = (self.tail + 1) % SIZE;
        id
    }

    /// Rings the submission queue's doorbell.
    pub(super) fn ring(&self, rig: &Rig) {
        rig.write(0x1000 + 8 * u64::from(self.id), self.tail.into());
    }

    /// The next completion, if there is one, without telling the device that it has been consumed.
    pub(super) fn peek(&mut self, rig: &Rig) -> Option<Done> {
        let at = RINGS[usize::from(self.id)].1 + 16 * u64::from(self.head);
        let [result, _, queue, status] =
            [0, 4, 8, 12].map(|word| rig.memory.read_word::<u32>(Gpa(at + word)).unwrap());
        if (status >> 16 & 1 != 0) != self.phase {
            return None;
        }
        self.head = (self.head + 1) % SIZE;
        self.phase ^= self.head == 0;
        let half = |word: u32, shift: u32| u16::try_from(word >> shift & 0xffff).unwrap();
        Some(Done {
            result,
            head: half(queue, 0),
            queue: half(queue, 16),
            command: half(status, 0),
            status: half(status, 17) & 0x7ff,
        })
    }

    /// Rings the completion queue's doorbell.
    pub(super) fn consume(&self, rig: &Rig) {
        rig.write(0x1004 + 8 * u64::from(self.id), self.head.into());
    }

    /// One command from beginning to end.
    pub(super) fn run(&mut self, rig: &Rig, command: Command) -> Done {
        let id = self.put(rig, command);
        self.ring(rig);
        rig.workers[usize::from(self.id)].step();
        let done = self.peek(rig).expect("a completion");
        assert_eq!((done.command, done.queue, done.head), (id, self.id, self.tail));
        self.consume(rig);
        done
    }
}

/// A command for the disk: `count` sectors at `sector`.
pub(super) fn io(opcode: u8, sector: u64, count: u32, prp: [u64; 2]) -> Command {
    let [low, high] = [sector & 0xffff_ffff, sector >> 32].map(|half| u32::try_from(half).unwrap());
    Command { opcode, namespace: 1, prp, words: [low, high, count - 1, 0, 0, 0], ..Command::default() }
}

/// An admin command with dwords 10 and 11, and a page for its data.
pub(super) fn admin(opcode: u8, namespace: u32, word10: u32, word11: u32) -> Command {
    Command { opcode, namespace, prp: [DATA, 0], words: [word10, word11, 0, 0, 0, 0], ..Command::default() }
}
