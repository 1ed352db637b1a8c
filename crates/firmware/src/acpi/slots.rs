//! Slots for devices that come and go while the machine runs, in AML: which devices of the root bus they are, and the methods by
//! which an operating system hears of changes and lets go of a device (ACPI 6.5, 5.6.6, 6.1.1, 6.3).
//!
//! The general-purpose event is a level: there while a slot has news. Its method reads which slots have news, says that it has read them, and notifies the slots. All state is in the
//! registers at [`SLOTS_PORT`]; nothing is kept here.

use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method,
    MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};

use super::{Bytes, bytes_of};
use crate::layout::{SLOTS_EVENT, SLOTS_PORT, SLOTS_PORTS, slot_device};

/// The registers, 16 bits each, in their order: something was inserted, is wanted back, is ejected, was heard.
const REGISTERS: [[u8; 4]; 4] = [*b"SLIN", *b"SLWA", *b"SLEJ", *b"SLHD"];
/// What slots are notified of (5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

fn name_of(slot: u8) -> String {
    format!("SL{slot:02}")
}

fn bit(slot: u8) -> u16 {
    1 << slot
}

/// What the root bridge's device has of slots 0 to `count` − 1.
pub(super) fn on_the_bus(count: u8) -> Vec<u8> {
    if count == 0 {
        return Vec::new();
    }
    let region = OpRegion::new("SLRG".into(), OpRegionSpace::SystemIO, &SLOTS_PORT, &SLOTS_PORTS);
    let fields = Field::new(
        "SLRG".into(),
        FieldAccessType::Word,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        REGISTERS.map(|name| FieldEntry::Named(name, 16)).to_vec(),
    );
    let mut bytes = [bytes_of(&region), bytes_of(&fields)].concat();
    for slot in 0..count {
        bytes.extend(device(slot));
    }
    bytes.extend(news(count));
    bytes
}

/// A slot: its place, its number for people, and how a device in it is let go of.
fn device(slot: u8) -> Vec<u8> {
    let address = Name::new("_ADR".into(), &(u32::from(slot_device(slot)) << 16));
    let number = Name::new("_SUN".into(), &(slot + 1));
    let (bit, eject, heard) = (bit(slot), Path::new("SLEJ"), Path::new("SLHD"));
    let (ejects, hears) = (Store::new(&eject, &bit), Store::new(&heard, &bit));
    let ejects = Method::new("_EJ0".into(), 1, true, vec![&ejects]);
    let hears = Method::new("_OST".into(), 3, true, vec![&hears]);
    let name = name_of(slot);
    bytes_of(&Device::new(name.as_str().into(), vec![&address, &number, &ejects, &hears]))
}

/// Tells the slots what there is to tell.
fn news(count: u8) -> Vec<u8> {
    let (inserted, wanted) = (Path::new("SLIN"), Path::new("SLWA"));
    let kinds = [(Local(0), &inserted, DEVICE_CHECK), (Local(1), &wanted, EJECT_REQUEST)];
    let mut body = Vec::new();
    for (seen, register, what) in &kinds {
        body.extend(bytes_of(&Store::new(seen, *register)));
        // Written ones are known now; what comes after the reading is another event.
        body.extend(bytes_of(&Store::new(*register, seen)));
        for slot in 0..count {
            let (bit, name) = (bit(slot), name_of(slot));
            let device = Path::new(&name);
            let notify = Notify::new(&device, what);
            let has_news = And::new(&ZERO, seen, &bit);
            body.extend(bytes_of(&If::new(&has_news, vec![&notify])));
        }
    }
    let body = Bytes(body);
    bytes_of(&Method::new("SLNW".into(), 0, true, vec![&body]))
}

/// The event's method, beside the devices.
pub(super) fn event(count: u8) -> Vec<u8> {
    if count == 0 {
        return Vec::new();
    }
    let name = format!("_L{SLOTS_EVENT:02X}");
    let news = MethodCall::new("\\_SB_.PCI0.SLNW".into(), Vec::new());
    let method = Method::new(name.as_str().into(), 0, true, vec![&news]);
    bytes_of(&Scope::new("\\_GPE".into(), vec![&method]))
}
