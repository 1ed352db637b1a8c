//! Differentiated System Description Table: the devices that have no registers to find them by, in AML
//! (ACPI 6.5, chapters 6, 8.4, 19 and 20).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    PackageBuilder, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use x86::bits::low32;

use super::{Bytes, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of, slots};
use crate::layout::{
    COM1_IRQ, COM1_PORT, ECAM, ECAM_BYTES, MMIO_HOLE, RTC_IRQ, RTC_PORT, S5_SLEEP_TYPE, pci_gsi,
};

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;
const HEADER_BYTES: u32 = 36;
/// PCI's configuration ports (PCI 3.0, 3.2.2.3.2).
const PCI_CONFIG_PORT: u16 = 0xcf8;
const PCI_CONFIG_PORTS: u8 = 8;
/// Devices on a PCI bus, and interrupt pins of each.
const PCI_DEVICES: u8 = 32;
const PCI_PINS: u8 = 4;

/// The table for processors 0 to `cpus` − 1, which are fewer than 4,096, and `slots` slots.
pub(super) fn build(cpus: u32, slots: u8) -> Vec<u8> {
    let mut devices = Vec::new();
    for id in 0..cpus {
        devices.extend(processor(id));
    }
    devices.extend(pci_root(slots));
    devices.extend(board());
    devices.extend(serial_port());
    devices.extend(clock());
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&Scope::raw("\\_SB_".into(), devices));
    table.append_slice(&slots::event(slots));
    let s5 = Package::new(vec![&S5_SLEEP_TYPE, &0u8, &0u8, &0u8]);
    table.append_slice(&bytes_of(&Name::new("\\_S5_".into(), &s5)));
    table.as_slice().to_vec()
}

/// A processor device; its `_UID` is what the MADT calls it.
fn processor(id: u32) -> Vec<u8> {
    let name = format!("C{id:03X}");
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    bytes_of(&Device::new(name.as_str().into(), vec![&hid, &uid]))
}

/// The PCI Express root bridge: buses, the windows that devices may use, interrupt routing, slots.
///
/// It has no `_OSC`, by which an operating system would ask for what it drives itself (PCI Firmware 3.2, 4.5): slots are not driven by
/// registers of PCI Express, and there are no error reports, power management events or the like to be driven.
fn pci_root(slots: u8) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0u8);
    let segment = Name::new("_SEG".into(), &0u8);
    let bus = Name::new("_BBN".into(), &0u8);
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let config = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, PCI_CONFIG_PORTS);
    let ports_below = AddressSpace::new_io(0u16, PCI_CONFIG_PORT - 1, None);
    let ports_above = AddressSpace::new_io(PCI_CONFIG_PORT + u16::from(PCI_CONFIG_PORTS), u16::MAX, None);
    let (first, last) = (low32(MMIO_HOLE.0), low32(ECAM.0 - 1));
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let windows = ResourceTemplate::new(vec![&buses, &config, &ports_below, &ports_above, &memory]);
    let crs = Name::new("_CRS".into(), &windows);
    let prt = Name::new("_PRT".into(), &interrupt_routing());
    let slots = Bytes(slots::on_the_bus(slots));
    bytes_of(&Device::new("PCI0".into(), vec![&hid, &cid, &uid, &segment, &bus, &crs, &prt, &slots]))
}

/// `_PRT` (6.2.13): every pin of every device on the root bus to a fixed global interrupt.
fn interrupt_routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for device in 0..PCI_DEVICES {
        for pin in 0..PCI_PINS {
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = pci_gsi(device, pin);
            table.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    table
}

/// What the board itself occupies: without this, Linux does not trust the MCFG table.
fn board() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let ecam = Memory32Fixed::new(true, low32(ECAM.0), low32(ECAM_BYTES));
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam]));
    bytes_of(&Device::new("MBRD".into(), vec![&hid, &crs]))
}

/// The first serial port, a 16550.
fn serial_port() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &1u8);
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, 8);
    let irq = isa_interrupt(COM1_IRQ);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq]));
    bytes_of(&Device::new("COM1".into(), vec![&hid, &uid, &crs]))
}

/// The real-time clock.
fn clock() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let ports = IO::new(RTC_PORT, RTC_PORT, 1, 2);
    let irq = isa_interrupt(RTC_IRQ);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq]));
    bytes_of(&Device::new("RTC_".into(), vec![&hid, &crs]))
}

/// An edge-triggered, active-high, unshared interrupt.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, irq.into())
}
