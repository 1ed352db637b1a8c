//! Multiboot 1: both ways to load, the information structure, what is refused.

use x86::state::gpr;
use x86::{Mode, control::cr0};

use super::*;
use crate::{Protocol, layout};

/// A raw image by the a.out kludge: loaded at 1 MiB from its file offset 16, with BSS behind it.
pub(crate) fn kludge_image() -> Vec<u8> {
    let base = MIB as u32;
    let header = multiboot_header(0x1_0003, &[base + 16, base, base + 0x100, base + 0x1000, base + 0x40]);
    let mut image = vec![0xee; 16];
    image.extend_from_slice(&[0x90; 16]);
    image.extend_from_slice(&header);
    image.resize(16 + 0x100, 0xcc);
    image.extend_from_slice(b"not loaded");
    image
}

/// An ELF32 kernel with a header in its text.
pub(crate) fn elf_image() -> Vec<u8> {
    let mut text = multiboot_header(3, &[]);
    text.resize(64, 0xf4);
    elf(false, 4 * MIB + 12, &[Part { len: 0x5000, ..part(4 * MIB, &text) }])
}

fn info_of(boot: &Boot) -> u64 {
    assert_eq!((boot.protocol, boot.cpu.mode()), (Protocol::Multiboot, Mode::Protected32));
    assert_eq!((boot.cpu.gpr[gpr::RAX], boot.cpu.cr0 & !cr0::ET), (0x2bad_b002, cr0::PE));
    boot.cpu.gpr[gpr::RBX]
}

#[test]
fn the_kludge_loads_what_its_addresses_say() {
    let machine = Machine::new(16 * MIB);
    machine.memory.fill(Gpa(MIB), 0x2000, 0xaa).unwrap();
    let boot = machine.load(&kludge_image(), &[], "").unwrap();
    info_of(&boot);
    assert_eq!(boot.cpu.rip, MIB + 0x40);
    assert_eq!(machine.read(MIB, 0x100), kludge_image()[16..0x110]);
    assert_eq!(machine.read(MIB + 0x100, 0xf00), vec![0; 0xf00], "BSS");
    assert_eq!(machine.read(MIB + 0x1000, 1), [0xaa]);
}

#[test]
fn the_information_structure_tells_everything() {
    let machine = Machine::new(16 * MIB);
    let data = [b"module".as_slice(), b""];
    let modules = [
        Initrd { data: &data[0], command_line: "mod arg" },
        Initrd { data: &data[1], command_line: "empty" },
    ];
    let boot = machine.load(&elf_image(), &modules, "a b").unwrap();
    let info = info_of(&boot);
    assert_eq!(boot.cpu.rip, 4 * MIB + 12);
    assert_eq!(machine.word(info), 0b10_0100_1101);
    assert_eq!((machine.word(info + 4), machine.word(info + 8)), (639, 15 * 1024));
    assert_eq!(machine.text(machine.word(info + 16).into()), "kernel a b");
    assert_eq!(machine.text(machine.word(info + 64).into()), "Umbra");
    assert_eq!(machine.word(info + 20), 2);
    let list = u64::from(machine.word(info + 24));
    for (i, module) in modules.iter().enumerate() {
        let record = list + 16 * i as u64;
        let (start, end) = (machine.word(record), machine.word(record + 4));
        assert_eq!(machine.read(start.into(), (end - start) as usize), data[i]);
        assert_eq!(start % 4096, 0);
        assert!(u64::from(start) >= 4 * MIB + 0x5000, "behind the kernel");
        assert_eq!(machine.text(machine.word(record + 8).into()), module.command_line);
    }
    let (len, mut at) = (machine.word(info + 44), u64::from(machine.word(info + 48)));
    let end = at + u64::from(len);
    for region in machine.map.regions() {
        let record = (machine.word(at), machine.long(at + 4), machine.long(at + 12), machine.word(at + 20));
        assert_eq!(record, (20, region.start.0, region.end.0 - region.start.0, region.kind as u32));
        at += 24;
    }
    assert_eq!(at, end);
}

#[test]
fn pvh_is_preferred_where_a_kernel_speaks_both() {
    let mut text = multiboot_header(0, &[]);
    text.resize(64, 0xf4);
    let note = pvh_note(4 * MIB as u32);
    let image = elf(false, 4 * MIB, &[part(4 * MIB, &text), Part { kind: 4, ..part(0, &note) }]);
    assert_eq!(Machine::new(16 * MIB).load(&image, &[], "").unwrap().protocol, Protocol::Pvh);
}

#[test]
fn a_header_past_the_first_8_kib_or_misaligned_does_not_count() {
    let header = multiboot_header(3, &[]);
    let machine = Machine::new(16 * MIB);
    for at in [8184, 8192, 2] {
        let mut image = vec![0; 9000];
        patch(&mut image, at, &header);
        assert!(matches!(machine.load(&image, &[], ""), Err(LoadError::NotAKernel { .. })), "{at}");
    }
    let mut image = vec![0; 9000];
    patch(&mut image, 8180, &header);
    assert!(matches!(machine.load(&image, &[], ""), Err(LoadError::Malformed { .. })), "no addresses");
}

#[test]
fn refuses_with_the_reason() {
    let machine = Machine::new(16 * MIB);
    let kludge = |flags: u32, addresses: &[u32]| {
        let mut image = multiboot_header(flags, addresses);
        image.resize(0x200, 0);
        machine.load(&image, &[], "").unwrap_err()
    };
    let base = MIB as u32;
    let good = [base, base, base + 0x200, 0, base + 0x20];
    assert!(matches!(kludge(0x1_0007, &good), LoadError::MultibootFeatures { flags: 4 }));
    let changed = |index: usize, value: u32| {
        let mut addresses = good;
        addresses[index] = value;
        kludge(0x1_0000, &addresses)
    };
    assert!(matches!(changed(0, base - 1), LoadError::Malformed { .. }), "header before the load address");
    assert!(matches!(changed(0, base + 4), LoadError::Malformed { .. }), "load address before the file");
    assert!(matches!(changed(2, base - 1), LoadError::Malformed { .. }), "reversed");
    assert!(matches!(changed(2, base + 0x201), LoadError::Truncated { expected: 0x201, actual: 0x200 }));
    assert!(matches!(changed(3, base + 0x1ff), LoadError::Malformed { .. }), "BSS inside the data");
    assert!(matches!(changed(3, u32::MAX), LoadError::OutsideRam { .. }));
    assert!(matches!(changed(3, 17 * base), LoadError::TooLittleMemory { needs_mib: 17, has_mib: 16 }));
    assert!(matches!(changed(4, base + 0x200), LoadError::Malformed { .. }), "entry");
}

#[test]
fn memory_above_four_gib_is_in_the_map_but_not_in_upper_memory() {
    let machine = Machine::new(5 << 30);
    let info = info_of(&machine.load(&elf_image(), &[], "").unwrap());
    assert_eq!(machine.word(info + 8), ((layout::MMIO_HOLE.0 - MIB) >> 10) as u32);
}
