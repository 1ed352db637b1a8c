//! Kernel files that load, of every form, as patches over zeros; and edge numbers to spoil them with.

/// A file: its length, and what stands where.
pub(super) struct Skeleton {
    len: usize,
    patches: &'static [(usize, &'static [u8])],
}

impl Skeleton {
    /// The file.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; self.len];
        for (at, bytes) in self.patches {
            file[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }
}

/// ELF64: one loaded part of 0x100 bytes at 2 MiB, and a note.
const ELF64: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0\
    \0\0\x20\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x02\0\0\0\0\0\0\0";
const ELF64_LOAD: &[u8] = b"\x01\0\0\0\x07\0\0\0\0\x01\0\0\0\0\0\0\0\0\x20\0\0\0\0\0\
    \0\0\x20\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
const ELF64_NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
/// ELF32: one loaded part of 0x100 bytes at 4 MiB.
const ELF32: &[u8] = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0\
    \x0c\0\x40\0\x34\0\0\0\0\0\0\0\0\0\0\0\x34\0\x20\0\x01\0\0\0\0\0\0\0";
const ELF32_LOAD: &[u8] = b"\x01\0\0\0\0\x01\0\0\0\0\x40\0\0\0\x40\0\0\x01\0\0\0\x50\0\0\x07\0\0\0\x04\0\0\0";
const XEN_NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x20\0";
const LINUX_NOTE: &[u8] = b"\x06\0\0\0\0\0\0\0\0\x01\0\0Linux\0\0\0";
/// Magic, flags 3 and 0x10003, checksum.
const MULTIBOOT: &[u8] = b"\x02\xb0\xad\x1b\x03\0\0\0\xfb\x4f\x52\xe4";
const MULTIBOOT_KLUDGE: &[u8] = b"\x02\xb0\xad\x1b\x03\0\x01\0\xfb\x4f\x51\xe4\
    \x10\0\x10\0\0\0\x10\0\0\x01\x10\0\0\x10\x10\0\x40\0\x10\0";

/// Nothing, bzImage, vmlinux, PVH, Multiboot as ELF and as a raw image.
pub(super) const SKELETONS: [Skeleton; 6] = [
    Skeleton { len: 0, patches: &[] },
    Skeleton {
        len: 0x800,
        patches: &[
            (0x1f1, &[1]),
            (0x1f4, &[0x40]),
            (0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02"),
            (0x211, &[1]),
            (0x22c, b"\xff\xff\xff\x7f\0\0\x20\0\x01\0\x03\0\xff\x07"),
            (0x25b, &[1]),
            (0x262, &[0x80]),
        ],
    },
    Skeleton {
        len: 0x214,
        patches: &[(0, ELF64), (0x40, ELF64_LOAD), (0x78, ELF64_NOTE), (0x200, LINUX_NOTE)],
    },
    Skeleton {
        len: 0x214,
        patches: &[(0, ELF64), (0x40, ELF64_LOAD), (0x78, ELF64_NOTE), (0x200, XEN_NOTE)],
    },
    Skeleton { len: 0x200, patches: &[(0, ELF32), (0x34, ELF32_LOAD), (0x100, MULTIBOOT)] },
    Skeleton { len: 0x200, patches: &[(0x10, MULTIBOOT_KLUDGE)] },
];

/// Which of them is the bzImage.
pub(super) const BZIMAGE: usize = 1;

/// Numbers at which arithmetic goes wrong.
pub(super) const EDGES: [u64; 16] = [
    0,
    1,
    0xfff,
    0x1000,
    0xffff,
    0x9_fc00,
    0xf_ffff,
    0x10_0000,
    0x200_0000,
    0x7fff_ffff,
    0xbfff_ffff,
    0xffff_f000,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

#[cfg(test)]
mod tests {
    use firmware::{BootRequest, MemoryMap, Protocol, load};
    use memory::GuestMemory;

    use super::*;

    #[test]
    fn the_files_load_as_they_are() {
        use Protocol::{BzImage, Multiboot, Pvh, Vmlinux};
        let map = MemoryMap::new(64 << 20);
        for (skeleton, protocol) in SKELETONS[1..].iter().zip([BzImage, Vmlinux, Pvh, Multiboot, Multiboot]) {
            let memory = GuestMemory::new(&map.ram_ranges()).unwrap();
            let kernel = skeleton.build();
            let request = BootRequest {
                kernel: &kernel,
                kernel_name: "k",
                initrds: &[],
                command_line: "",
                map,
                cpus: 1,
                slots: 0,
            };
            assert_eq!(load(&memory, &request).unwrap().protocol, protocol);
        }
    }
}
