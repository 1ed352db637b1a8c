//! ELF kernels by PVH and by Linux's own protocol, and ELF files that are no kernels.

use x86::state::gpr;
use x86::{Mode, control::cr0, rflags};

use super::*;
use crate::{Protocol, layout};

const NOTE: u32 = 4;
const INTERP: u32 = 3;

/// A kernel linked high and loaded at 16 MiB, with 1 MiB of zeros behind its data.
fn vmlinux() -> Vec<u8> {
    let high = 0xffff_ffff_8100_0000;
    let text = Part { linked: high, len: MIB, ..part(16 * MIB, b"text") };
    let data = Part { linked: high + MIB, len: 2 * MIB, ..part(17 * MIB, b"data") };
    elf(true, 16 * MIB + 1, &[text, data])
}

fn pvh_kernel(is_64bit: bool) -> Vec<u8> {
    let note = pvh_note(16 * MIB as u32 + 2);
    let text = Part { len: MIB, ..part(16 * MIB, b"text") };
    elf(is_64bit, 0, &[text, Part { kind: NOTE, ..part(0, &note) }])
}

#[test]
fn a_vmlinux_is_entered_in_64_bit_mode_with_a_zero_page_made_for_it() {
    let machine = Machine::new(64 * MIB);
    machine.memory.fill(Gpa(16 * MIB), 4 * MIB, 0xaa).unwrap();
    let boot = machine.load(&vmlinux(), &[initrd(b"disk")], "quiet").unwrap();
    assert_eq!((boot.protocol, boot.cpu.mode(), boot.cpu.rip), (Protocol::Vmlinux, Mode::Long, 16 * MIB + 1));
    assert_eq!(machine.read(16 * MIB, 5), b"text\0");
    assert_eq!(machine.read(17 * MIB, 5), b"data\0");
    assert_eq!(machine.read(19 * MIB - 1, 2), [0, 0xaa], "zeros up to the size in memory");
    let page = boot.cpu.gpr[gpr::RSI];
    assert_eq!(machine.text(machine.word(page + 0x228).into()), "quiet");
    assert_eq!(machine.read(machine.word(page + 0x218).into(), 4), b"disk");
    assert_eq!(machine.read(page + 0x1fe, 8)[4..], *b"HdrS");
}

#[test]
fn a_linked_entry_point_is_translated() {
    let machine = Machine::new(64 * MIB);
    let mut image = vmlinux();
    patch(&mut image, 24, &0xffff_ffff_8110_0002u64.to_le_bytes());
    assert_eq!(machine.load(&image, &[], "").unwrap().cpu.rip, 17 * MIB + 2);
    patch(&mut image, 24, &0xffff_ffff_8130_0000u64.to_le_bytes());
    assert!(matches!(machine.load(&image, &[], ""), Err(LoadError::Malformed { .. })));
}

#[test]
fn pvh_gets_its_start_info_in_flat_protected_mode() {
    for is_64bit in [true, false] {
        let machine = Machine::new(64 * MIB);
        let data = [b"one".as_slice(), b"second"];
        let modules =
            [Initrd { data: &data[0], command_line: "first" }, Initrd { data: &data[1], command_line: "" }];
        let boot = machine.load(&pvh_kernel(is_64bit), &modules, "console=hvc0").unwrap();
        let cpu = &boot.cpu;
        assert_eq!((boot.protocol, cpu.mode(), cpu.rip), (Protocol::Pvh, Mode::Protected32, 16 * MIB + 2));
        assert_eq!((cpu.cr0 & !cr0::ET, cpu.cr4, cpu.msrs.efer), (cr0::PE, 0, 0));
        assert_eq!((cpu.tr.base, cpu.tr.limit, cpu.rflags), (0, 0x67, rflags::FIXED));
        assert!(cpu.seg.iter().all(|s| (s.base, s.limit) == (0, u32::MAX) && s.usable() && s.big()));

        let info = cpu.gpr[gpr::RBX];
        assert_eq!([0, 4, 8, 12].map(|at| machine.word(info + at)), [0x336e_c578, 1, 0, 2]);
        assert_eq!(machine.text(machine.long(info + 24)), "console=hvc0");
        assert_eq!(machine.long(info + 32), layout::RSDP.0);
        let list = machine.long(info + 16);
        for (i, module) in modules.iter().enumerate() {
            let entry = list + 32 * i as u64;
            let (at, len) = (machine.long(entry), machine.long(entry + 8));
            assert_eq!((machine.read(at, len as usize), at % 4096), (data[i].to_vec(), 0));
            assert_eq!(machine.text(machine.long(entry + 16)), module.command_line);
        }
        let (map, count) = (machine.long(info + 40), machine.word(info + 48));
        let regions = machine.map.regions();
        assert_eq!(count as usize, regions.len());
        for (i, region) in regions.iter().enumerate() {
            let at = map + 24 * i as u64;
            let entry = (machine.long(at), machine.long(at + 8), machine.word(at + 16));
            assert_eq!(entry, (region.start.0, region.end.0 - region.start.0, region.kind as u32));
        }
    }
}

#[test]
fn linux_by_pvh_keeps_linuxs_limit_of_the_command_line() {
    let machine = Machine::new(64 * MIB);
    let note = [linux_note(), pvh_note(16 * MIB as u32)].concat();
    let linux = elf(true, 0, &[part(16 * MIB, b"text"), Part { kind: NOTE, ..part(0, &note) }]);
    let line = "x".repeat(2048);
    let error = machine.load(&linux, &[], &line).unwrap_err();
    assert!(matches!(error, LoadError::CommandLineTooLong { len: 2048, limit: 2047 }), "{error}");
    machine.load(&linux, &[], &line[1..]).unwrap();
    machine.load(&pvh_kernel(true), &[], &line).unwrap();
}

#[test]
fn without_modules_the_list_is_absent() {
    let machine = Machine::new(64 * MIB);
    let info = machine.load(&pvh_kernel(true), &[], "").unwrap().cpu.gpr[gpr::RBX];
    assert_eq!((machine.word(info + 12), machine.long(info + 16)), (0, 0));
}

#[test]
fn programs_and_other_elf_files_are_refused() {
    let machine = Machine::new(64 * MIB);
    let said = |image: &[u8]| machine.load(image, &[], "").unwrap_err().to_string();
    let text = || part(4 * MIB, b"text");
    let dynamic = elf(true, 4 * MIB, &[text(), Part { kind: INTERP, ..part(0, b"/lib/ld.so\0") }]);
    assert!(said(&dynamic).contains("a program"));
    let mut gnu = elf(true, 4 * MIB, &[text()]);
    gnu[7] = 3;
    assert!(said(&gnu).contains("a program"));
    let mut object = elf(true, 0, &[]);
    object[16] = 1;
    assert!(said(&object).contains("object"));
    assert!(said(&elf(false, 4 * MIB, &[text()])).contains("32-bit ELF"));
    let mut arm = elf(true, 4 * MIB, &[text()]);
    arm[18] = 183;
    assert!(said(&arm).contains("arm64"));
    let mut big = elf(true, 4 * MIB, &[text()]);
    big[5] = 2;
    patch(&mut big, 18, &22u16.to_be_bytes());
    assert!(said(&big).contains("S/390"));
    assert!(said(&elf(true, 4 * MIB, &[])).contains("nothing to load"));
}

#[test]
fn where_no_ram_is_nothing_is_loaded() {
    let machine = Machine::new(64 * MIB);
    let refused = |parts: &[Part<'_>]| {
        let error = machine.load(&elf(true, parts[0].physical, parts), &[], "").unwrap_err();
        assert!(!matches!(error, LoadError::Memory(_)), "{error}");
        error
    };
    assert!(matches!(refused(&[part(layout::LOCAL_APIC.0, b"x")]), LoadError::OutsideRam { .. }));
    assert!(matches!(refused(&[part(layout::RSDP.0, b"x")]), LoadError::OutsideRam { .. }));
    assert!(matches!(refused(&[part(0, b"x")]), LoadError::OutsideRam { .. }));
    assert!(matches!(refused(&[part(1 << 32, b"x")]), LoadError::OutsideRam { .. }));
    assert!(matches!(refused(&[part(u64::MAX, b"xy")]), LoadError::OutsideRam { .. }));
    let past = Part { len: 60 * MIB, ..part(16 * MIB, b"x") };
    assert!(matches!(refused(&[past]), LoadError::TooLittleMemory { needs_mib: 76, has_mib: 64 }));
    assert!(matches!(refused(&[part(2 * MIB, b"ab"), part(2 * MIB + 1, b"c")]), LoadError::Malformed { .. }));
}

#[test]
fn a_cut_file_says_how_long_it_should_be() {
    let machine = Machine::new(64 * MIB);
    let whole = vmlinux();
    for keep in [20, 70, 0x1000, whole.len() - 1] {
        let error = machine.load(&whole[..keep], &[], "").unwrap_err();
        assert!(matches!(error, LoadError::Truncated { actual, .. } if actual == keep as u64), "{error}");
    }
}

#[test]
fn headers_that_name_the_same_bytes_again_and_again_are_refused() {
    let machine = Machine::new(64 * MIB);
    let notes = vec![0; 4096];
    let part = || Part { kind: NOTE, ..part(0, &notes) };
    let mut image = elf(true, 0, &[part(), part(), part(), part(), part()]);
    for header in 1..5 {
        patch(&mut image, 64 + 56 * header + 8, &0x1000u64.to_le_bytes());
    }
    image.truncate(0x2000);
    let error = machine.load(&image, &[], "").unwrap_err().to_string();
    assert!(error.contains("overlap in the file"), "{error}");
}
