//! A guest that shares a directory and asks for anything: FUSE requests with operations, nodes, handles and names that are
//! mostly right, and arguments that are anything.
//!
//! Checked beside the implied: what lies beside the directory is never read nor changed, a request that has room for its
//! answer gets one, and a device that goes on as another knows what it knew.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use backend::share::{Access, Share};
use bus::pci::Function;
use bus::{Device, Lifecycle};
use memory::{GuestMemory, RamRange};
use virtio::fs::{Fs, Validity};
use virtio::transport::{VirtioPci, Worker};
use x86::Gpa;

use super::board::lock;
use super::plugged::plug;

const RAM: u64 = 0x2_0000;

// A ring of two descriptors.
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
/// Where a request is, and its answer.
const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0x1_0000;
const HEADER: usize = 40;

/// What nobody may learn or change.
const SECRET: &[u8] = b"nobody outside may know this";
/// The operation that gives a file space, which would take the host's.
const ALLOCATE: u32 = 43;
/// Operations that get no answer.
const ONE_WAY: [u32; 3] = [2, 36, 42];

const NAMES: [&str; 12] =
    ["a", "b", "dir", "link", "out", "..", ".", "", "dir/a", "../secret", "secret", "/etc/passwd"];

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

/// `shared` in a directory of its own, with a secret beside it. Removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> std::io::Result<Self> {
        static NUMBER: Mutex<u64> = Mutex::new(0);
        let number = {
            let mut number = lock(&NUMBER);
            *number += 1;
            *number
        };
        let place = Self(std::env::temp_dir().join(format!("umbra-fuzz-{}-{number}", std::process::id())));
        fs::create_dir_all(place.shared().join("dir"))?;
        fs::write(place.secret(), SECRET)?;
        fs::write(place.shared().join("a"), "contents")?;
        fs::write(place.shared().join("dir/a"), "more")?;
        std::os::unix::fs::symlink("../secret", place.shared().join("link"))?;
        std::os::unix::fs::symlink("..", place.shared().join("out"))?;
        Ok(place)
    }

    fn shared(&self) -> PathBuf {
        self.0.join("shared")
    }

    fn secret(&self) -> PathBuf {
        self.0.join("secret")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Bench {
    memory: Arc<GuestMemory>,
    device: Arc<Mutex<VirtioPci>>,
    workers: Vec<Worker>,
    avail: u16,
}

fn device(
    directory: &Path,
    access: Access,
    memory: &Arc<GuestMemory>,
) -> (Arc<Mutex<VirtioPci>>, Vec<Worker>) {
    let share = Share::open(directory, access, 1).expect("a directory of our own");
    plug(Box::new(Fs::new(share, "fuzz", Validity::Changing, 1)), memory)
}

impl Bench {
    fn new(directory: &Path, access: Access) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), RAM)]).expect("128 KiB"));
        let (device, workers) = device(directory, access, &memory);
        let bench = Self { memory, device, workers, avail: 0 };
        lock(&bench.device).write_config(4, &[6, 0]);
        for status in [0u8, 1, 3] {
            bench.set(0x14, &[status]);
        }
        bench.set(0x08, &[1, 0, 0, 0]);
        bench.set(0x0c, &[1, 0, 0, 0]);
        bench.set(0x14, &[11]);
        bench.set(0x18, &2u16.to_le_bytes());
        for (register, area) in [(0x20, DESCRIPTORS), (0x28, DRIVER), (0x30, DEVICE)] {
            bench.set(register, &area.to_le_bytes());
        }
        bench.set(0x1c, &[1, 0]);
        bench.set(0x14, &[15]);
        bench
    }

    fn set(&self, register: u64, value: &[u8]) {
        lock(&self.device).write(0, register, value);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa(at), bytes).expect("memory");
    }

    /// Asks; the answer with its header, empty for what gets none.
    fn ask(&mut self, operation: u32, node: u64, arguments: &[u8], room: u32) -> Vec<u8> {
        let mut request = vec![0; HEADER];
        request[4..8].copy_from_slice(&operation.to_le_bytes());
        request[16..24].copy_from_slice(&node.to_le_bytes());
        request.extend_from_slice(arguments);
        self.put(REQUEST, &request);
        let descriptors = [(REQUEST, request.len() as u32, 1u16, 1u16), (ANSWER, room, 2, 0)];
        for (number, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            let mut bytes = gpa.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            self.put(DESCRIPTORS + 16 * number, &bytes);
        }
        self.put(DRIVER + 4 + 2 * u64::from(self.avail % 2), &[0, 0]);
        self.avail = self.avail.wrapping_add(1);
        self.put(DRIVER + 2, &self.avail.to_le_bytes());
        self.set(0x3000, &[0, 0]);
        while self.workers[0].step() {}
        let used: u16 = self.memory.read_word(Gpa(DEVICE + 2)).expect("memory");
        assert_eq!(used, self.avail, "operation {operation} was not answered");
        let entry = DEVICE + 4 + 8 * u64::from(used.wrapping_sub(1) % 2);
        let written: u32 = self.memory.read_word(Gpa(entry + 4)).expect("memory");
        assert!(written <= room && (written >= 16) != ONE_WAY.contains(&operation));
        let mut answer = vec![0; written as usize];
        self.memory.read(Gpa(ANSWER), &mut answer).expect("memory");
        answer
    }

    /// The device's state in another device, on the same directory and memory.
    fn moved(self, directory: &Path, access: Access) -> Self {
        lock(&self.device).pause();
        let record = lock(&self.device).save();
        let (device, workers) = device(directory, access, &self.memory);
        lock(&device).restore(&record).expect("a device's own state");
        lock(&device).resume();
        Self { device, workers, memory: self.memory, avail: self.avail }
    }
}

/// The arguments of a request: a handle or node first, then anything, then names.
fn arguments(u: &mut Unstructured<'_>, operation: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // How much stands before the names (Linux include/uapi/linux/fuse.h).
    let before = match operation {
        1 | 6 | 10 | 11 | 24 => 0,
        9 | 12 | 13 | 14 | 21 | 22 | 27 => 8,
        8 | 35 | 45 => 16,
        18 | 29 => 24,
        43 => 32,
        15 | 16 | 28 | 44 => 40,
        47 => 56,
        4 => 88,
        _ => u.int_in_range(0..=100)?,
    };
    for number in 0..before {
        // The first eight bytes are mostly a small number.
        let small = (1..8).contains(&number) && !u.ratio(1, 16)?;
        bytes.push(if small { 0 } else { u.arbitrary::<u8>()? & if u.arbitrary()? { 7 } else { 0xff } });
    }
    if operation == ALLOCATE && bytes.len() >= 24 {
        bytes[10..16].fill(0);
        bytes[18..24].fill(0);
    }
    if operation == 16 {
        bytes[10..16].fill(0);
        bytes[16..20].copy_from_slice(&[4, 0, 0, 0]);
    }
    for _ in 0..u.int_in_range(0..=2u8)? {
        bytes.extend_from_slice(u.choose(&NAMES)?.as_bytes());
        bytes.push(0);
    }
    let rest = u.int_in_range(0..=8)?.min(u.len());
    bytes.extend_from_slice(u.bytes(rest)?);
    Ok(bytes)
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let place = Place::new().expect("room for temporary files");
    let access = if u.ratio(1, 4)? { Access::ReadOnly } else { Access::ReadWrite };
    let mut bench = Bench::new(&place.shared(), access);
    let init = [7u32, 36, 0, u32::MAX].map(u32::to_le_bytes).concat();
    bench.ask(26, 0, &init, 4096);
    for name in ["a\0", "dir\0", "link\0", "out\0"] {
        bench.ask(1, 1, name.as_bytes(), 4096);
    }
    while !u.is_empty() {
        let operation = if u.ratio(1, 20)? { u.arbitrary()? } else { u.int_in_range(0..=52)? };
        let node = u.int_in_range(0..=8)?;
        let arguments = arguments(&mut u, operation)?;
        let room = *u.choose(&[16, 40, 4096, 0x8000])?;
        let answer = bench.ask(operation, node, &arguments, room);
        assert!(!answer.windows(SECRET.len()).any(|window| window == SECRET), "operation {operation} told");
        if u.ratio(1, 16)? {
            bench = bench.moved(&place.shared(), access);
        }
    }
    assert_eq!(fs::read(place.secret()).expect("the secret"), SECRET);
    assert_eq!(fs::read_dir(&place.0).expect("the place").count(), 2);
    Ok(())
}
