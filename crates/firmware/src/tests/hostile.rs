//! Whatever the file: no panic, nothing outside what the map gives to the operating system, tables intact.

use proptest::prelude::*;
use x86::state::gpr;

use super::*;
use crate::layout::{EBDA, RSDP, RegionKind, TABLES_END, VIDEO_HOLE};
use crate::{Protocol, acpi};

/// Numbers at which arithmetic goes wrong.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        Just(u32::MAX.into()),
        Just(i64::MAX.cast_unsigned()),
        Just(0xc000_0000),
        Just(1 << 32),
        (0u32..64).prop_map(|shift| 1 << shift),
        (0u32..64).prop_map(|shift| (1 << shift) - 1),
        0u64..32 * MIB,
        any::<u64>(),
    ]
}

/// Changes: place, value, and how many bytes of it.
fn changes() -> impl Strategy<Value = Vec<(usize, u64, usize)>> {
    let change = (0usize..0x300, edge(), prop_oneof![Just(1usize), Just(2), Just(4), Just(8)]);
    proptest::collection::vec(change, 0..8)
}

/// How files begin that get further than others.
const MAGICS: [&[u8]; 4] = [b"", b"\x7fELF", b"\x7fELF\x02\x01", b"\x02\xb0\xad\x1b"];

/// A kernel of each form.
fn images() -> Vec<Vec<u8>> {
    let note = pvh_note(2 * MIB as u32);
    let pvh = [part(2 * MIB, b"text"), Part { kind: 4, ..part(0, &note) }];
    vec![
        bzimage::bzimage(),
        multiboot::kludge_image(),
        multiboot::elf_image(),
        elf(true, 2 * MIB, &pvh),
        elf(false, 2 * MIB, &pvh),
        elf(true, 2 * MIB, &[part(2 * MIB, b"text"), part(3 * MIB, b"data")]),
    ]
}

/// Loads `image` and checks what must hold whether or not it could be loaded.
fn check(image: &[u8], initrds: &[Initrd<'_>]) -> Result<(), TestCaseError> {
    let machine = Machine::new(32 * MIB);
    let reserved = |machine: &Machine| {
        let tables = machine.read(RSDP.0, (TABLES_END.0 - RSDP.0) as usize);
        (tables, machine.read(EBDA.0, (VIDEO_HOLE.0 - EBDA.0) as usize), machine.read(0, 4096))
    };
    crate::bios::write_data_area(&machine.memory).unwrap();
    acpi::build(&machine.memory, 2, 1).unwrap();
    let before = reserved(&machine);
    let result = machine.load(image, initrds, "some words");
    prop_assert_eq!(reserved(&machine), before);
    match result {
        // The arena hands out RAM only, so memory has nothing to refuse.
        Err(LoadError::Memory(error)) => prop_assert!(false, "{}", error),
        Err(error) => {
            let text = error.to_string();
            prop_assert!(text.len() < 250 && !text.contains('\n'), "{}", text);
        }
        Ok(boot) => {
            let regions = machine.map.regions();
            let usable = |at: u64| {
                regions.iter().any(|r| r.kind == RegionKind::Usable && r.start.0 <= at && at < r.end.0)
            };
            prop_assert!(usable(boot.cpu.rip));
            let info = if matches!(boot.protocol, Protocol::BzImage | Protocol::Vmlinux) {
                boot.cpu.gpr[gpr::RSI]
            } else {
                boot.cpu.gpr[gpr::RBX]
            };
            prop_assert!(usable(info) && usable(boot.cpu.gdtr.base));
        }
    }
    Ok(())
}

#[test]
fn the_unchanged_images_load() {
    for image in images() {
        Machine::new(32 * MIB).load(&image, &[], "").unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn changed_headers_do_no_harm(
        which in 0usize..6,
        changes in changes(),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
        module in 0usize..5000,
    ) {
        let mut image = images().swap_remove(which);
        for (at, value, len) in changes {
            let end = (at + len).min(image.len());
            let at = at.min(end);
            image[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len() + 1));
        }
        let data = vec![1; module];
        check(&image, &[initrd(&data), initrd(b"x")])?;
    }

    #[test]
    fn random_program_headers_do_no_harm(
        is_64bit in any::<bool>(),
        entry in edge(),
        parts in proptest::collection::vec((0u32..5, edge(), edge(), edge(), 0usize..300), 0..6),
    ) {
        let data = pvh_note(2 * MIB as u32).repeat(8);
        let parts: Vec<Part<'_>> = parts
            .iter()
            .map(|&(kind, linked, physical, len, file_len)| {
                Part { kind, linked, physical, data: &data[..file_len.min(data.len())], len }
            })
            .collect();
        check(&elf(is_64bit, entry, &parts), &[])?;
    }

    #[test]
    fn random_addresses_in_a_multiboot_header_do_no_harm(
        flags in any::<u32>(),
        at in 0usize..16,
        skew in prop_oneof![4 => Just(0u32), 1 => any::<u32>()],
        addresses in proptest::collection::vec(edge(), 5),
    ) {
        let near = |value: u64| (MIB as u32).wrapping_add(value as u32);
        let mut words: Vec<u32> = addresses.into_iter().map(near).collect();
        // Where the header lies must agree with where loading starts, or little else is looked at.
        words[0] = words[1].wrapping_add(at as u32 * 4).wrapping_add(skew);
        let mut image = vec![0x90; at * 4];
        image.extend(multiboot_header(flags & 3 | 0x1_0000, &words));
        image.resize(0x800, 0x90);
        check(&image, &[initrd(b"module")])?;
    }

    #[test]
    fn random_bytes_do_no_harm(
        magic in prop::sample::select(&MAGICS[..]),
        bytes in proptest::collection::vec(any::<u8>(), 0..1200),
    ) {
        check(&[magic, &bytes].concat(), &[])?;
    }
}
