//! Multiple APIC Description Table: processors, the I/O APIC, how the ISA interrupts reach it (ACPI 6.5, 5.2.12).

use acpi_tables::sdt::Sdt;
use x86::bits::low8;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{IOAPIC, IOAPIC_ID, LOCAL_APIC, SCI_IRQ};

/// The header with the two fields before the structures.
const FIXED_BYTES: u32 = 44;
const REVISION: u8 = 5;
/// There is also a pair of 8259s.
const PCAT_COMPAT: u32 = 1;

/// Structure types.
const LOCAL: u8 = 0;
const IO: u8 = 1;
const OVERRIDE: u8 = 2;
const LOCAL_NMI: u8 = 4;
const LOCAL_X2: u8 = 9;
const LOCAL_X2_NMI: u8 = 10;

/// Identifiers from here on need the x2APIC form: 255 is the broadcast address.
const FIRST_X2_ID: u32 = 255;
const ENABLED: u32 = 1;
/// The pin of each local APIC at which NMIs arrive.
const NMI_LINT: u8 = 1;
/// Interrupt flags: as the bus has it; active high and level-triggered.
const CONFORMING: u16 = 0;
const HIGH_LEVEL: u16 = 0b1101;

/// The table for processors with identifiers 0 to `cpus` − 1.
pub(super) fn build(cpus: u32) -> Vec<u8> {
    let mut table = Sdt::new(*b"APIC", FIXED_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.write_u32(36, x86::bits::low32(LOCAL_APIC.0));
    table.write_u32(40, PCAT_COMPAT);
    let mut structures = Vec::new();
    for id in 0..cpus {
        processor(&mut structures, id);
    }
    io_apic(&mut structures);
    // The timer's interrupt 0 is wired to pin 2, as on every PC; the SCI is a level.
    source_override(&mut structures, 0, 2, CONFORMING);
    source_override(&mut structures, SCI_IRQ, SCI_IRQ, HIGH_LEVEL);
    nmi(&mut structures, cpus);
    table.append_slice(&structures);
    table.as_slice().to_vec()
}

fn processor(to: &mut Vec<u8>, id: u32) {
    if id < FIRST_X2_ID {
        let id = low8(id.into());
        to.extend_from_slice(&[LOCAL, 8, id, id]);
        to.extend_from_slice(&ENABLED.to_le_bytes());
    } else {
        to.extend_from_slice(&[LOCAL_X2, 16, 0, 0]);
        for word in [id, ENABLED, id] {
            to.extend_from_slice(&word.to_le_bytes());
        }
    }
}

fn io_apic(to: &mut Vec<u8>) {
    to.extend_from_slice(&[IO, 12, IOAPIC_ID, 0]);
    to.extend_from_slice(&x86::bits::low32(IOAPIC.0).to_le_bytes());
    to.extend_from_slice(&0u32.to_le_bytes());
}

fn source_override(to: &mut Vec<u8>, irq: u8, pin: u8, flags: u16) {
    to.extend_from_slice(&[OVERRIDE, 10, 0, irq]);
    to.extend_from_slice(&u32::from(pin).to_le_bytes());
    to.extend_from_slice(&flags.to_le_bytes());
}

/// NMIs reach every processor at the same pin.
fn nmi(to: &mut Vec<u8>, cpus: u32) {
    to.extend_from_slice(&[LOCAL_NMI, 6, 0xff]);
    to.extend_from_slice(&CONFORMING.to_le_bytes());
    to.push(NMI_LINT);
    if cpus > FIRST_X2_ID {
        to.extend_from_slice(&[LOCAL_X2_NMI, 12]);
        to.extend_from_slice(&CONFORMING.to_le_bytes());
        to.extend_from_slice(&u32::MAX.to_le_bytes());
        to.extend_from_slice(&[NMI_LINT, 0, 0, 0]);
    }
}
