//! Kernels made on the spot, loaded into small machines, and what must be in memory then.

mod bzimage;

use memory::GuestMemory;
use x86::Gpa;

use crate::{Boot, BootRequest, Initrd, LoadError, MemoryMap, load};

pub(super) const MIB: u64 = 1 << 20;

/// A machine with fresh memory.
pub(super) struct Machine {
    pub(super) memory: GuestMemory,
    pub(super) map: MemoryMap,
}

impl Machine {
    pub(super) fn new(ram_bytes: u64) -> Self {
        let map = MemoryMap::new(ram_bytes);
        Self { memory: GuestMemory::new(&map.ram_ranges()).unwrap(), map }
    }

    pub(super) fn load(
        &self,
        kernel: &[u8],
        initrds: &[Initrd<'_>],
        command_line: &str,
    ) -> Result<Boot, LoadError> {
        let request =
            BootRequest { kernel, kernel_name: "kernel", initrds, command_line, map: self.map, cpus: 2 };
        load(&self.memory, &request)
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    pub(super) fn word(&self, at: u64) -> u32 {
        self.memory.read_word(Gpa(at)).unwrap()
    }

    pub(super) fn long(&self, at: u64) -> u64 {
        self.memory.read_word(Gpa(at)).unwrap()
    }

    /// The zero-terminated text at `at`.
    pub(super) fn text(&self, at: u64) -> String {
        let bytes = (at..).map(|at| self.memory.read_word::<u8>(Gpa(at)).unwrap());
        String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
    }
}

/// A module without a string.
pub(super) fn initrd(data: &[u8]) -> Initrd<'_> {
    Initrd { data, command_line: "" }
}

/// Overwrites bytes of an image.
pub(super) fn patch(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
