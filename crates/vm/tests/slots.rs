//! A guest of some bytes that sees a device come, and lets go of it when it is asked.

mod common;

use std::time::{Duration, Instant};

use common::*;
use iced_x86::code_asm::*;
use spec::{DiskSpec, SlotCount, VmSpec};
use vm::{Attachment, BootImages, Builder, SlotState, Stopped, VmError, VmHandle, disk_image};

/// The registers: what the host wants back, and what there is.
const WANTED: u32 = 0x632;
const EJECT: u32 = 0x634;

/// Waits until a register has the bit of the first slot, and prints a letter.
fn wait_and_say(a: &mut CodeAssembler, register: u32, letter: u8) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.mov(dx, register)?;
    a.in_(ax, dx)?;
    a.test(ax, 1)?;
    a.jz(wait)?;
    a.mov(al, u32::from(letter))?;
    put_al(a)
}

/// Says that there is a device, that it is wanted, ejects it, and waits for the next.
fn lets_go() -> Vec<u8> {
    kernel(|a| {
        for _ in 0..2 {
            wait_and_say(a, EJECT, b'i')?;
            wait_and_say(a, WANTED, b'w')?;
            a.mov(dx, EJECT)?;
            a.mov(ax, 1)?;
            a.out(dx, ax)?;
        }
        power_off(a)
    })
}

/// Says that there is a device, and resets the machine when it has read a byte.
fn boots_again() -> Vec<u8> {
    kernel(|a| {
        wait_and_say(a, EJECT, b'i')?;
        get_al(a)?;
        a.mov(dx, 0xcf9)?;
        a.mov(al, 6)?;
        a.out(dx, al)?;
        let mut rest = a.create_label();
        a.set_label(&mut rest)?;
        a.jmp(rest)
    })
}

fn builder() -> (Builder, Screen) {
    builder_of(lets_go())
}

fn builder_of(kernel: Vec<u8>) -> (Builder, Screen) {
    let spec = VmSpec { slots: SlotCount::new(1).unwrap(), ..spec() };
    let screen = Screen::default();
    let images = BootImages { kernel: kernel.into(), initrds: Vec::new() };
    (Builder::new(&spec, images).serial(0, Box::new(screen.clone())), screen)
}

fn attachment(disk: &DiskSpec) -> Attachment {
    Attachment::Disk { spec: disk.clone(), layers: disk_image(disk).layers().unwrap() }
}

#[track_caller]
fn until(vm: &VmHandle, state: SlotState) {
    let since = Instant::now();
    while vm.slots().unwrap()[0].state != state {
        assert!(since.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_comes_is_saved_with_its_slot_and_goes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = DiskSpec::new(image.path().to_owned());
    let (builder, screen) = builder();
    let vm = builder.build().unwrap().start().unwrap();
    assert_eq!(vm.slots().unwrap()[0].state, SlotState::Free);
    let slot = vm.plug(attachment(&disk)).unwrap();
    assert_eq!(slot.to_string(), "slot1");
    screen.wait_until(|bytes| bytes == b"i");
    assert!(disk_image(&disk).open().is_err(), "the VM has its lock");
    vm.pause().unwrap();
    let records = vm.save().unwrap();
    vm.resume().unwrap();
    let Err(error) = self::builder().0.restore(&records) else { panic!("without the device") };
    assert!(error.to_string().contains("slot 1 had a device in it, and has no device now"), "{error}");

    vm.unplug(slot, false).unwrap();
    screen.wait_until(|bytes| bytes == b"iw");
    until(&vm, SlotState::Free);
    assert!(matches!(vm.unplug(slot, false), Err(VmError::SlotEmpty { .. })));
    // A paused machine gets a quiet device.
    vm.pause().unwrap();
    assert_eq!(vm.plug(attachment(&disk)).unwrap(), slot);
    assert_eq!(vm.slots().unwrap()[0].state, SlotState::New);
    vm.resume().unwrap();
    vm.unplug(slot, false).unwrap();
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(screen.bytes(), b"iwiw");
    drop(vm);
    disk_image(&disk).open().unwrap();
}

#[test]
fn a_device_that_cannot_be_made_leaves_its_slot_free() {
    let vm = builder().0.build().unwrap().start().unwrap();
    let good = tempfile::NamedTempFile::new().unwrap();
    let disk = DiskSpec::new(good.path().to_owned());
    // Opened as a raw image; of no bytes, which no disk has.
    assert!(matches!(vm.plug(attachment(&disk)), Err(VmError::Disk(_))));
    assert_eq!(vm.slots().unwrap()[0].state, SlotState::Free);
    good.as_file().set_len(512).unwrap();
    vm.plug(attachment(&disk)).unwrap();
    vm.stop();
    assert!(matches!(vm.plug(attachment(&disk)), Err(VmError::Stopped)));
}

#[test]
fn a_device_is_there_after_a_reset_unless_it_was_asked_for() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = DiskSpec::new(image.path().to_owned());
    let (builder, screen) = builder_of(boots_again());
    let vm = builder.build().unwrap().start().unwrap();
    let slot = vm.plug(attachment(&disk)).unwrap();
    screen.wait_until(|bytes| bytes == b"i");
    assert_eq!(vm.slots().unwrap()[0].state, SlotState::New);
    assert!(vm.serial_input(0).unwrap().send(b"r"));
    screen.wait_until(|bytes| bytes == b"ii");
    assert_eq!(vm.slots().unwrap()[0].state, SlotState::Known, "it has booted with it");
    vm.unplug(slot, false).unwrap();
    assert!(disk_image(&disk).open().is_err(), "it does not listen");
    assert!(vm.serial_input(0).unwrap().send(b"r"));
    until(&vm, SlotState::Free);
    disk_image(&disk).open().unwrap();
    vm.plug(attachment(&disk)).unwrap();
    screen.wait_until(|bytes| bytes == b"iii");
}
