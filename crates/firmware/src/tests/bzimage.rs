//! bzImage and what it shares with vmlinux: the zero page, initrds, limits, the state at 64-bit entry.

use x86::Mode;
use x86::control::{cr0, cr4, efer};
use x86::paging::{PagingMode, pte};
use x86::state::gpr;

use super::*;
use crate::Protocol;
use crate::layout;

/// The bytes of the protected-mode part.
const CODE_LEN: usize = 0x1000;

/// A relocatable 64-bit bzImage with one setup sector, preferring 16 MiB and needing 8 MiB there.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400 + CODE_LEN];
    image[0x400..].fill(0xc3);
    image[0x1f1] = 1;
    patch(&mut image, 0x1f4, &(CODE_LEN as u32 / 16).to_le_bytes());
    patch(&mut image, 0x1fe, b"\x55\xaa\xeb\x6aHdrS");
    patch(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    patch(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    patch(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    patch(&mut image, 0x236, &3u16.to_le_bytes());
    patch(&mut image, 0x238, &2047u32.to_le_bytes());
    patch(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    patch(&mut image, 0x260, &(8 * MIB as u32).to_le_bytes());
    image
}

/// An image with its field at `at` changed.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = bzimage();
    patch(&mut image, at, bytes);
    image
}

#[test]
fn loads_at_the_preferred_address_and_fills_the_zero_page() {
    let machine = Machine::new(64 * MIB);
    let boot = machine.load(&bzimage(), &[initrd(b"first"), initrd(b"second")], "console=ttyS0").unwrap();
    assert_eq!(boot.protocol, Protocol::BzImage);
    assert_eq!(boot.cpu.rip, 16 * MIB + 0x200);
    assert_eq!(machine.read(16 * MIB, CODE_LEN), vec![0xc3; CODE_LEN]);

    let page = boot.cpu.gpr[gpr::RSI];
    assert_eq!(machine.text(machine.word(page + 0x228).into()), "console=ttyS0");
    assert_eq!(machine.word(page + 0x202), u32::from_le_bytes(*b"HdrS"), "the header is copied");
    assert_eq!(machine.read(page + 0x210, 2), [0xff, 0x81], "loader type; heap, loaded high");
    assert_eq!(machine.word(page + 0x214), 16 * MIB as u32, "code32_start");
    assert_eq!(machine.long(page + 0x70), layout::RSDP.0);
    let (start, len) = (machine.word(page + 0x218), machine.word(page + 0x21c));
    assert_eq!(u64::from(start), 64 * MIB - 4096, "as high as possible");
    assert_eq!(machine.read(start.into(), len as usize), b"first\0\0\0second\0\0");
    let regions = machine.map.regions();
    assert_eq!(machine.read(page + 0x1e8, 1), [regions.len() as u8]);
    for (i, region) in regions.iter().enumerate() {
        let at = page + 0x2d0 + 20 * i as u64;
        let entry = (machine.long(at), machine.long(at + 8), machine.word(at + 16));
        assert_eq!(entry, (region.start.0, region.end.0 - region.start.0, region.kind as u32));
    }
}

#[test]
fn enters_in_64_bit_mode_with_four_gib_mapped_to_themselves() {
    let machine = Machine::new(64 * MIB);
    let cpu = machine.load(&bzimage(), &[], "").unwrap().cpu;
    assert_eq!((cpu.mode(), cpu.cpl()), (Mode::Long, 0));
    assert_eq!(PagingMode::of(cpu.cr0, cpu.cr4, cpu.msrs.efer), PagingMode::FourLevel);
    assert_eq!((cpu.cr0 & (cr0::CD | cr0::NW), cpu.cr4 & cr4::PAE), (0, cr4::PAE));
    assert_eq!(cpu.msrs.efer, efer::LME | efer::LMA);
    assert_eq!((cpu.cs().selector.0, cpu.ss().selector.0), (0x10, 0x18));
    for selector in [0x10, 0x18] {
        let raw = machine.long(cpu.gdtr.base + selector);
        assert_ne!(raw, 0, "selector {selector:#x} can be loaded again");
    }
    for address in [0, 0x1234_5678, 16 * MIB, 0xfee0_0000, 0xffff_ffff] {
        let mut table = cpu.cr3;
        for shift in [39, 30] {
            let entry = machine.long((table & pte::ADDRESS) + (address >> shift & 511) * 8);
            assert_eq!(entry & (pte::P | pte::RW | pte::PS), pte::P | pte::RW);
            table = entry;
        }
        let leaf = machine.long((table & pte::ADDRESS) + (address >> 21 & 511) * 8);
        assert_eq!(leaf & pte::ADDRESS, address & !0x1f_ffff);
        assert_eq!(leaf & (pte::P | pte::RW | pte::PS), pte::P | pte::RW | pte::PS);
    }
}

#[test]
fn a_relocatable_kernel_goes_elsewhere_if_its_place_is_not_ram() {
    let machine = Machine::new(12 * MIB);
    let boot = machine.load(&bzimage(), &[], "").unwrap();
    assert_eq!(boot.cpu.rip, 2 * MIB + 0x200, "the lowest aligned address above 1 MiB");
    let fixed = changed(0x234, &[0]);
    let error = machine.load(&fixed, &[], "").unwrap_err();
    assert!(matches!(error, LoadError::TooLittleMemory { needs_mib: 24, has_mib: 12 }), "{error}");
}

#[test]
fn an_initrd_goes_above_four_gib_only_if_the_kernel_allows_it_and_nothing_else_is_left() {
    let machine = Machine::new((3 << 30) + 16 * MIB);
    let data = vec![7; 4 * MIB as usize];
    // No initrd below 4 GiB fits under this limit.
    let image = changed(0x22c, &(2 * MIB as u32).to_le_bytes());
    let boot = machine.load(&image, &[initrd(&data)], "").unwrap();
    let page = boot.cpu.gpr[gpr::RSI];
    let start = u64::from(machine.word(page + 0xc0)) << 32 | u64::from(machine.word(page + 0x218));
    assert_eq!(start, layout::HIGH_RAM.0 + 12 * MIB);
    let mut image = image;
    image[0x236] = 1;
    let error = machine.load(&image, &[initrd(&data)], "").unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { needs_mib: 4, free_mib: 1 }), "{error}");
}

#[test]
fn refuses_with_the_reason() {
    let machine = Machine::new(64 * MIB);
    let refused = |image: &[u8]| machine.load(image, &[], "").unwrap_err();
    let whole = bzimage();
    assert!(
        machine.load(&whole[..whole.len() - 15], &[], "").is_ok(),
        "the last paragraph may be incomplete"
    );
    assert!(matches!(
        refused(&whole[..whole.len() - 16]),
        LoadError::Truncated { expected, actual } if expected == actual + 16
    ));
    assert!(matches!(refused(&whole[..0x230]), LoadError::Truncated { actual: 0x230, .. }));
    assert!(matches!(refused(&changed(0x236, &[2])), LoadError::Only32Bit));
    assert!(matches!(refused(&changed(0x206, &[4, 2])), LoadError::OldProtocol { major: 2, minor: 4 }));
    assert!(matches!(refused(&changed(0x211, &[0])), LoadError::Malformed { .. }));
    assert!(matches!(refused(&changed(0x230, &[3])), LoadError::Malformed { .. }));
    assert!(matches!(refused(&changed(0x1f4, &[0, 0])), LoadError::Malformed { .. }));
    let huge = changed(0x260, &u32::MAX.to_le_bytes());
    assert!(matches!(refused(&huge), LoadError::TooLittleMemory { has_mib: 64, .. }));
    assert!(matches!(
        Machine::new(MIB).load(&whole, &[], ""),
        Err(LoadError::TooLittleMemory { needs_mib: 10, has_mib: 1 })
    ));
}

#[test]
fn the_command_line_may_have_exactly_the_kernels_limit() {
    let machine = Machine::new(64 * MIB);
    let longest = "x".repeat(2047);
    let boot = machine.load(&bzimage(), &[], &longest).unwrap();
    let page = boot.cpu.gpr[gpr::RSI];
    assert_eq!(machine.text(machine.word(page + 0x228).into()), longest);
    let error = machine.load(&bzimage(), &[], &(longest + "x")).unwrap_err();
    assert!(matches!(error, LoadError::CommandLineTooLong { len: 2048, limit: 2047 }), "{error}");
}

#[test]
fn an_initrd_that_does_not_fit_says_how_much_is_free() {
    let machine = Machine::new(32 * MIB);
    let data = vec![0; 20 * MIB as usize];
    let error = machine.load(&bzimage(), &[initrd(&data)], "").unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { needs_mib: 20, free_mib: 15 }), "{error}");
}
