//! Kernels made on the spot, loaded into small machines, and what must be in memory then.

// The numbers that are narrowed here are the tests' own.
#![allow(clippy::cast_possible_truncation)]

mod bzimage;
mod elf;
mod hostile;
mod multiboot;

use memory::GuestMemory;
use x86::Gpa;

use crate::{Boot, BootRequest, Content, Initrd, LoadError, MemoryMap, load};

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
        let request = BootRequest {
            kernel,
            kernel_name: "kernel",
            initrds,
            command_line,
            map: self.map,
            cpus: 2,
            slots: 1,
        };
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

/// A part of an ELF file.
pub(super) struct Part<'a> {
    pub(super) kind: u32,
    pub(super) linked: u64,
    pub(super) physical: u64,
    pub(super) data: &'a [u8],
    /// The size in memory.
    pub(super) len: u64,
}

/// A loadable part that runs where it lies.
pub(super) fn part(address: u64, data: &[u8]) -> Part<'_> {
    Part { kind: 1, linked: address, physical: address, data, len: data.len() as u64 }
}

/// An executable of the given class; the parts' bytes begin at file offset 0x1000, 256 bytes apart at least.
pub(super) fn elf(is_64bit: bool, entry: u64, parts: &[Part<'_>]) -> Vec<u8> {
    let word = |to: &mut Vec<u8>, value: u64| {
        to.extend_from_slice(&value.to_le_bytes()[..if is_64bit { 8 } else { 4 }]);
    };
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image[4] = 1 + u8::from(is_64bit);
    image.resize(16, 0);
    let machine = if is_64bit { 62u16 } else { 3 };
    image.extend_from_slice(&2u16.to_le_bytes());
    image.extend_from_slice(&machine.to_le_bytes());
    image.extend_from_slice(&1u32.to_le_bytes());
    word(&mut image, entry);
    word(&mut image, if is_64bit { 64 } else { 52 });
    word(&mut image, 0);
    let (header, entry_len) = if is_64bit { (64u16, 56u16) } else { (52, 32) };
    image.extend_from_slice(&[0; 4]);
    for half in [header, entry_len, parts.len() as u16, 0, 0, 0] {
        image.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = 0x1000;
    for part in parts {
        image.extend_from_slice(&part.kind.to_le_bytes());
        if is_64bit {
            image.extend_from_slice(&7u32.to_le_bytes());
        }
        for value in [offset, part.linked, part.physical, part.data.len() as u64, part.len] {
            word(&mut image, value);
        }
        if !is_64bit {
            image.extend_from_slice(&7u32.to_le_bytes());
        }
        word(&mut image, 4);
        offset += (part.data.len() as u64).next_multiple_of(256);
    }
    for part in parts {
        image.resize(image.len().next_multiple_of(256).max(0x1000), 0);
        image.extend_from_slice(part.data);
    }
    image
}

/// The note that says where PVH entry is.
pub(super) fn pvh_note(entry: u32) -> Vec<u8> {
    // Another note stands before it, with lengths that need padding.
    let mut note = b"\x03\0\0\0\x05\0\0\0\x01\0\0\0AB\0\0desc5\0\0\0".to_vec();
    note.extend_from_slice(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
    note.extend_from_slice(&entry.to_le_bytes());
    note
}

/// A note as every vmlinux has one.
pub(super) fn linux_note() -> Vec<u8> {
    b"\x06\0\0\0\x04\0\0\0\0\x01\0\0Linux\0\0\0\0\0\0\0".to_vec()
}

/// A Multiboot header with these flags and, after it, these words.
pub(super) fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let words = [&[0x1bad_b002, flags, checksum], addresses].concat();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A module without a string.
pub(super) fn initrd(data: &dyn Content) -> Initrd<'_> {
    Initrd { data, command_line: "" }
}

/// Overwrites bytes of an image.
pub(super) fn patch(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
