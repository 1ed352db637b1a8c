//! What a file that is no kernel looks like, for an error that helps.

use crate::LoadError;
use crate::bytes::{has, slice_at};

/// The general advice.
const GIVE_A_KERNEL: &str = "give a Linux bzImage (vmlinuz), an ELF vmlinux, or a PVH or Multiboot kernel";
const DECOMPRESS: &str = "decompress it first";
const AS_INITRD: &str = "give it as the initrd, and a kernel besides";
const NOT_A_DISK: &str = "give the kernel that is on it";
const EXTRACT: &str = "extract the kernel from it first";

/// Magic bytes at an offset, what they are the sign of, and what to do then.
const SIGNS: &[(u64, &[u8], &str, &str)] = &[
    (0, b"\x1f\x8b", "a gzip-compressed file", DECOMPRESS),
    (0, b"\xfd7zXZ\0", "an xz-compressed file", DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file", DECOMPRESS),
    (0, b"BZh", "a bzip2-compressed file", DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "an lz4-compressed file", DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "an lz4-compressed file", DECOMPRESS),
    (0, b"070701", "a cpio archive, as initrds are", AS_INITRD),
    (0, b"070702", "a cpio archive, as initrds are", AS_INITRD),
    (0, b"!<arch>\n", "a package or library archive", EXTRACT),
    (0, b"PK\x03\x04", "a zip archive", EXTRACT),
    (257, b"ustar", "a tar archive", EXTRACT),
    (0, b"QFI\xfb", "a qcow2 disk image", NOT_A_DISK),
    (0x8001, b"CD001", "a CD image (ISO 9660)", NOT_A_DISK),
    (0, b"hsqs", "a squashfs image", NOT_A_DISK),
    (0x438, b"\x53\xef", "an ext2/3/4 filesystem image", NOT_A_DISK),
    (0x38, b"ARM\x64", "a Linux kernel for arm64", "take one built for x86-64"),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V", "take one built for x86-64"),
    (0, b"MZ", "an EFI or Windows program", GIVE_A_KERNEL),
    (0, b"#!", "a script", GIVE_A_KERNEL),
    (0x1fe, b"\x55\xaa", "a disk image or boot sector", NOT_A_DISK),
];

/// The error for a file in which no kernel format was recognised.
pub(crate) fn not_a_kernel(file: &[u8]) -> LoadError {
    let sign = SIGNS.iter().find(|(offset, magic, ..)| has(file, *offset, magic));
    let (looks_like, advice) = match sign {
        _ if file.is_empty() => ("an empty file", GIVE_A_KERNEL),
        Some(&(_, _, looks_like, advice)) => (looks_like, advice),
        None if is_text(file) => ("a text file", GIVE_A_KERNEL),
        None => ("data of an unknown kind", GIVE_A_KERNEL),
    };
    LoadError::NotAKernel { looks_like: looks_like.to_owned(), advice }
}

/// The error for an ELF file that is a program.
pub(crate) fn a_program() -> LoadError {
    LoadError::NotAKernel {
        looks_like: "a program for an operating system".to_owned(),
        advice: GIVE_A_KERNEL,
    }
}

/// The error for a 32-bit ELF file that says nothing of how to boot it.
pub(crate) fn bare_elf32() -> LoadError {
    let looks_like = "a 32-bit ELF file without a Multiboot header or PVH note".to_owned();
    LoadError::NotAKernel { looks_like, advice: GIVE_A_KERNEL }
}

/// The error for an ELF file of another type than executable.
pub(crate) fn not_executable() -> LoadError {
    let looks_like = "an ELF object, module or core file".to_owned();
    LoadError::NotAKernel { looks_like, advice: GIVE_A_KERNEL }
}

/// Whether the beginning is text: UTF-8 (perhaps cut in a character) without control characters but white space.
fn is_text(file: &[u8]) -> bool {
    let head = slice_at(file, 0, 512).unwrap_or(file);
    let text = match str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return false,
    };
    text.chars().all(|c| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0c' | '\x1b'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_sees() {
        let said = |file: &[u8]| not_a_kernel(file).to_string();
        assert!(said(b"").contains("an empty file"));
        assert!(said("Grüße, this is text\n".as_bytes()).contains("a text file"));
        assert!(said(&"ü".repeat(300).as_bytes()[..511]).contains("a text file"), "cut in a character");
        assert!(said(b"\x1f\x8b\x08rest").contains("gzip"));
        assert!(said(b"#!/bin/sh\n").contains("a script"));
        assert!(said(&[0x90; 700]).contains("unknown kind"));
        let mut disk = vec![0; 1024];
        disk[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
        assert!(said(&disk).contains("a disk image"));
    }
}
