//! The tables as an operating system finds them: by searching for the root pointer, following addresses, summing.

use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::bytes::{has, u8_at, u16_at, u32_at, u64_at};
use crate::layout::{self, MemoryMap};

fn tables(cpus: u32) -> BTreeMap<String, Vec<u8>> {
    tables_with_slots(cpus, 0)
}

/// Every table by signature, found from the root pointer; each checksum verified on the way.
fn tables_with_slots(cpus: u32, slots: u8) -> BTreeMap<String, Vec<u8>> {
    let memory = GuestMemory::new(&MemoryMap::new(16 << 20).ram_ranges()).unwrap();
    assert_eq!(build(&memory, cpus, slots).unwrap(), RSDP);
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read(Gpa(at), &mut bytes).unwrap();
        bytes
    };
    let table = |at: u64| {
        let len = u32_at(&read(at, 8), 4).unwrap();
        assert!(at >= RSDP.0 && at + u64::from(len) <= TABLES_END.0);
        read(at, len as usize)
    };
    let root = read(RSDP.0, 36);
    assert!(has(&root, 0, b"RSD PTR ") && u8_at(&root, 15) == Some(2));
    assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
    let mut found = BTreeMap::new();
    let mut add = |bytes: Vec<u8>| {
        let name = String::from_utf8(bytes[..4].to_vec()).unwrap();
        assert!(name == "FACS" || sum(&bytes) == 0, "{name}");
        found.insert(name, bytes);
    };
    let directory = table(u64_at(&root, 24).unwrap());
    for entry in directory[36..].chunks(8) {
        add(table(u64_at(entry, 0).unwrap()));
    }
    add(directory);
    let fadt = found.get("FACP").unwrap().clone();
    assert_eq!(u64_at(&fadt, 140), u32_at(&fadt, 40).map(u64::from), "both DSDT fields");
    let mut add = |at: u32| {
        let bytes = table(at.into());
        found.insert(String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes);
    };
    add(u32_at(&fadt, 40).unwrap());
    add(u32_at(&fadt, 36).unwrap());
    assert_eq!(sum(&found["DSDT"]), 0);
    found
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The structures of a MADT as type and bytes.
fn structures(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (this, next) = rest.split_at(rest[1].into());
        all.push((this[0], this));
        rest = next;
    }
    all
}

#[test]
fn all_tables_are_there_and_add_up() {
    let found: Vec<String> = tables(1).into_keys().collect();
    assert_eq!(found, ["APIC", "DSDT", "FACP", "FACS", "HPET", "MCFG", "XSDT"]);
}

#[test]
fn the_fadt_gives_the_ports_of_the_layout() {
    let fadt = &tables(1)["FACP"];
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(u16_at(fadt, 46), Some(layout::SCI_IRQ.into()));
    assert_eq!(u32_at(fadt, 48), Some(0), "always in ACPI mode");
    let io = |field: u64| (u8_at(fadt, field).unwrap(), u64_at(fadt, field + 4).unwrap());
    assert_eq!(u32_at(fadt, 56), Some(layout::PM1A_EVENT_PORT.into()));
    assert_eq!(io(148), (1, layout::PM1A_EVENT_PORT.into()));
    assert_eq!(u32_at(fadt, 64), Some(layout::PM1A_CONTROL_PORT.into()));
    assert_eq!(io(172), (1, layout::PM1A_CONTROL_PORT.into()));
    assert_eq!(u32_at(fadt, 76), Some(layout::PM_TIMER_PORT.into()));
    assert_eq!(io(208), (1, layout::PM_TIMER_PORT.into()));
    assert_eq!(u32_at(fadt, 80), Some(layout::GPE0_PORT.into()));
    assert_eq!(io(220), (1, layout::GPE0_PORT.into()));
    assert_eq!((io(116), u8_at(fadt, 128)), ((1, layout::RESET_PORT.into()), Some(layout::RESET_VALUE)));
    let flags = u32_at(fadt, 112).unwrap();
    assert_eq!(flags >> 4 & 1, 0, "the power button is fixed hardware");
    assert_eq!(flags >> 8 & 1, 1, "the timer has 32 bits");
}

#[test]
fn the_madt_lists_every_processor_once_in_the_form_its_identifier_needs() {
    let found = tables(300);
    let all = structures(&found["APIC"]);
    let local: Vec<u32> = all.iter().filter(|s| s.0 == 0).map(|s| s.1[3].into()).collect();
    let x2: Vec<u32> = all.iter().filter(|s| s.0 == 9).map(|s| u32_at(s.1, 4).unwrap()).collect();
    assert_eq!(local, (0..255).collect::<Vec<u32>>());
    assert_eq!(x2, (255..300).collect::<Vec<u32>>());
    let overrides: Vec<_> = all.iter().filter(|s| s.0 == 2).map(|s| (s.1[3], s.1[4], s.1[8])).collect();
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
    assert_eq!(all.iter().filter(|s| s.0 == 10).count(), 1, "NMIs of x2APICs");
    let one = tables(1);
    assert_eq!(structures(&one["APIC"]).iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 2, 2, 4]);
}

#[test]
fn hpet_and_mcfg_give_the_addresses_of_the_layout() {
    let found = tables(1);
    assert_eq!(u32_at(&found["HPET"], 36), Some(layout::HPET_CAPABILITIES));
    assert_eq!(u64_at(&found["HPET"], 44), Some(layout::HPET.0));
    let mcfg = &found["MCFG"];
    assert_eq!((u64_at(mcfg, 44), mcfg[54], mcfg[55]), (Some(layout::ECAM.0), 0, 0));
}

/// What a guest's AML interpreter makes of the methods, `crates/cli/tests/plug.rs` sees.
#[test]
fn slots_are_devices_of_the_root_bus_from_the_last_down() {
    let none = &tables(1)["DSDT"];
    let some = &tables_with_slots(1, 2)["DSDT"];
    let count = |table: &[u8], what: &[u8]| table.windows(what.len()).filter(|found| *found == what).count();
    for name in [&b"SL00"[..], b"_EJ0", b"_OST", b"_L01"] {
        assert_eq!(count(none, name), 0);
    }
    // A device and two notifications each.
    assert_eq!((count(some, b"SL01"), count(some, b"SL02"), count(some, b"_EJ0")), (3, 0, 2));
    let addresses = [[0x0c, 0, 0, 31, 0], [0x0c, 0, 0, 30, 0]];
    for address in addresses {
        assert_eq!(count(some, &[&b"_ADR"[..], &address].concat()), 1);
    }
    assert_eq!(tables_with_slots(1, u8::MAX), tables_with_slots(1, 16), "registers have 16 bits");
}

#[test]
fn too_many_processors_are_an_error() {
    let memory = GuestMemory::new(&MemoryMap::new(1 << 20).ram_ranges()).unwrap();
    assert!(build(&memory, 1024, 0).is_ok());
    for cpus in [4000, 4096, 4097, u32::MAX] {
        assert!(matches!(build(&memory, cpus, 0), Err(LoadError::TooManyCpus { .. })), "{cpus}");
    }
}

/// The reference compiler takes every table apart and its own output back in, without an error.
#[test]
fn the_reference_compiler_accepts_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl (package acpica-tools) is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let iasl = |args: &[&str]| {
        let out = Command::new("iasl").args(args).current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "iasl {args:?}: {said}");
        said.into_owned()
    };
    for (name, bytes) in tables_with_slots(3, 16) {
        let file = format!("{name}.dat");
        std::fs::write(dir.path().join(&file), bytes).unwrap();
        iasl(&["-d", &file]);
        // What it cannot read it notes in the source text.
        let source = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
        for complaint in ["Invalid", "Incorrect checksum", "**** "] {
            assert!(!source.contains(complaint), "{name}: {source}");
        }
    }
    let said = iasl(&["-p", "again", "DSDT.dsl"]);
    assert!(said.contains(" 0 Errors"), "{said}");
}
