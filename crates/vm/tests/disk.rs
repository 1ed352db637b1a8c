//! A guest of some hundred bytes that drives a disk by itself, is saved while it does, and goes on elsewhere.

mod common;

use std::os::unix::fs::FileExt;

use common::*;
use iced_x86::code_asm::*;
use spec::{DiskChanges, DiskSpec};
use vm::{BootImages, Builder, Stopped, VmError};

/// Where the disk's registers are: device 2, behind the entropy source.
const REGISTERS: u32 = 0xc000_0000 + 2 * 0x8000;
const DESCRIPTORS: u32 = 0x2_0000;
const AVAILABLE: u32 = 0x2_1000;
const USED: u32 = 0x2_2000;
const HEADER: u32 = 0x2_3000;
const STATUS: u32 = 0x2_3100;
const DATA: u32 = 0x2_4000;

const READ: u32 = 0;
const WRITE: u32 = 1;

/// Enables the function, agrees on VERSION_1 and FLUSH, sets queue 0 up (VIRTIO 1.2, 3.1.1 and 4.1.5).
fn set_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, 0xcf8)?;
    a.mov(eax, 0x8000_1004_u32)?;
    a.out(dx, eax)?;
    a.mov(dx, 0xcfc)?;
    a.mov(ax, 6)?;
    a.out(dx, ax)?;
    let r = |offset: u32| REGISTERS + offset;
    for status in [0, 1, 3] {
        a.mov(byte_ptr(r(0x14)), status)?;
    }
    for (select, features) in [(0, 1 << 9), (1, 1)] {
        a.mov(dword_ptr(r(0x08)), select)?;
        a.mov(dword_ptr(r(0x0c)), features)?;
    }
    a.mov(byte_ptr(r(0x14)), 11)?;
    a.mov(word_ptr(r(0x16)), 0)?;
    a.mov(word_ptr(r(0x18)), 4)?;
    for (register, area) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
        a.mov(dword_ptr(r(register)), area)?;
        a.mov(dword_ptr(r(register + 4)), 0)?;
    }
    a.mov(word_ptr(r(0x1c)), 1)?;
    a.mov(byte_ptr(r(0x14)), 15)
}

/// Makes request number `number` (from 1) for one sector and waits until it has been served.
fn request(a: &mut CodeAssembler, number: u32, kind: u32, sector: u32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    let data_flags = if kind == READ { 0x2_0003 } else { 0x2_0001 };
    // Address, length, flags with the next descriptor.
    let descriptors = [(HEADER, 16, 0x1_0001), (DATA, 512, data_flags), (STATUS, 1, 2)]
        .into_iter()
        .zip((DESCRIPTORS..).step_by(16));
    for ((address, len, flags), at) in descriptors {
        for (word, at) in [address, 0, len, flags].into_iter().zip((at..).step_by(4)) {
            a.mov(dword_ptr(at), word)?;
        }
    }
    for (word, at) in [kind, 0, sector, 0].into_iter().zip((HEADER..).step_by(4)) {
        a.mov(dword_ptr(at), word)?;
    }
    a.mov(byte_ptr(STATUS), 0xff)?;
    a.mov(word_ptr(AVAILABLE + 4 + 2 * ((number - 1) % 4)), 0)?;
    a.mov(word_ptr(AVAILABLE + 2), number)?;
    a.mov(word_ptr(REGISTERS + 0x3000), 0)?;
    a.set_label(&mut wait)?;
    a.cmp(word_ptr(USED + 2), number)?;
    a.jne(wait)
}

/// Prints the first five bytes of the data and the status as a digit.
fn show(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for at in DATA..DATA + 5 {
        a.mov(al, byte_ptr(at))?;
        put_al(a)?;
    }
    a.mov(al, byte_ptr(STATUS))?;
    a.add(al, i32::from(b'0'))?;
    put_al(a)
}

fn copies_a_sector() -> Vec<u8> {
    kernel(|a| {
        set_up(a)?;
        request(a, 1, READ, 1)?;
        show(a)?;
        get_al(a)?;
        a.mov(byte_ptr(DATA), al)?;
        request(a, 2, WRITE, 2)?;
        show(a)?;
        power_off(a)
    })
}

fn with_disk(image: &std::path::Path, read_only: bool) -> (Builder, Screen) {
    let mut spec = spec();
    let changes = if read_only { DiskChanges::Refused } else { DiskChanges::Made };
    spec.disks = vec![DiskSpec { changes, ..DiskSpec::new(image.to_owned()) }];
    let screen = Screen::default();
    let images = BootImages { kernel: copies_a_sector().into(), initrds: Vec::new() };
    (Builder::new(&spec, images).serial(0, Box::new(screen.clone())), screen)
}

fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    image.as_file().write_all_at(b"hello", 512).unwrap();
    image
}

fn sector(image: &tempfile::NamedTempFile, number: u64) -> [u8; 5] {
    let mut bytes = [0; 5];
    image.as_file().read_exact_at(&mut bytes, number * 512).unwrap();
    bytes
}

#[test]
fn a_machine_with_a_disk_in_use_goes_on_elsewhere() {
    let image = image();
    let (builder, screen) = with_disk(image.path(), false);
    let vm = builder.build().unwrap().start().unwrap();
    screen.wait_until(|bytes| bytes.ends_with(b"hello0"));
    let (second, _) = with_disk(image.path(), true);
    assert!(matches!(second.build(), Err(VmError::Disk(_))), "two VMs on one image");
    vm.pause().unwrap();
    let records = vm.save().unwrap();
    vm.stop();
    drop(vm);

    let (builder, screen) = with_disk(image.path(), false);
    let vm = builder.restore(&records).unwrap().start().unwrap();
    assert!(vm.serial_input(0).unwrap().send(b"J"));
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(screen.bytes(), b"Jello0");
    assert_eq!((sector(&image, 2), sector(&image, 1)), (*b"Jello", *b"hello"));
}

#[test]
fn a_read_only_disk_refuses_and_the_guest_hears_of_it() {
    let image = image();
    let (builder, screen) = with_disk(image.path(), true);
    let vm = builder.build().unwrap().start().unwrap();
    assert!(vm.serial_input(0).unwrap().send(b"J"));
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(screen.bytes(), b"hello0Jello1");
    assert_eq!(sector(&image, 2), [0; 5]);
}
