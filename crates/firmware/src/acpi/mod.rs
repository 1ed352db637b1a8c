//! The ACPI tables: what there is on this machine that cannot be probed (ACPI Specification 6.5).
//!
//! The root pointer lies at [`layout::RSDP`], where operating systems that are not told find it by searching; all
//! tables follow in the same reserved area below 1 MiB, so their addresses fit every field and no RAM is taken.
//! The hardware is full ACPI hardware, always in ACPI mode: there is no SMI command port to switch it on. Table
//! bytes come from the `acpi_tables` crate; what it has no form for (MADT for x86, HPET) is laid out here.

mod dsdt;
mod fadt;
mod madt;
mod slots;
#[cfg(test)]
mod tests;

use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use memory::GuestMemory;
use x86::Gpa;

use crate::LoadError;
use crate::layout::{ECAM, HPET, HPET_CAPABILITIES, RSDP, TABLES_END};

/// Who made the tables, in their headers.
const OEM_ID: [u8; 6] = *b"UMBRA ";
const OEM_TABLE_ID: [u8; 8] = *b"UMBRA VM";
const OEM_REVISION: u32 = 1;

/// The most processors that names in the DSDT are made for.
const MAX_CPUS: u32 = 0x1000;
/// The most slots that their registers have bits for.
const MAX_SLOTS: u8 = 16;

/// Writes all tables for `cpus` processors with APIC identifiers 0 and up, and `slots` slots, 16 at most; returns the root pointer's address.
///
/// # Errors
/// If the tables of so many processors do not fit their area, or guest memory does not have that area.
pub fn build(memory: &GuestMemory, cpus: u32, slots: u8) -> Result<Gpa, LoadError> {
    if cpus > MAX_CPUS {
        return Err(LoadError::TooManyCpus { cpus });
    }
    let root_bytes = Rsdp::len() as u64;
    let mut area = Area { memory, free: RSDP + root_bytes, cpus };
    let dsdt = area.place(&dsdt::build(cpus, slots.min(MAX_SLOTS)))?;
    let facs = area.place(&bytes_of(&FACS::new()))?;
    let tables = [fadt::build(dsdt, facs), madt::build(cpus), hpet(), mcfg()];
    let mut directory = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in &tables {
        directory.add_entry(area.place(table)?.0);
    }
    let directory = area.place(&bytes_of(&directory))?;
    memory.write(RSDP, &bytes_of(&Rsdp::new(OEM_ID, directory.0)))?;
    Ok(RSDP)
}

/// The area for tables while it fills.
struct Area<'a> {
    memory: &'a GuestMemory,
    free: Gpa,
    cpus: u32,
}

impl Area<'_> {
    /// Puts a table at the next multiple of 64, which is what the most demanding one (FACS) wants.
    fn place(&mut self, table: &[u8]) -> Result<Gpa, LoadError> {
        let start = Gpa(self.free.0.next_multiple_of(64));
        let end = start + table.len() as u64;
        if end > TABLES_END {
            return Err(LoadError::TooManyCpus { cpus: self.cpus });
        }
        self.memory.write(start, table)?;
        self.free = end;
        Ok(start)
    }
}

/// The bytes of a table or an AML object.
fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

/// AML that is there already.
struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The HPET's description table (IA-PC HPET Specification 1.0a, 3.2.4).
fn hpet() -> Vec<u8> {
    let mut table = Sdt::new(*b"HPET", 56, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.write_u32(36, HPET_CAPABILITIES);
    table.write(40, GenericAddress::mmio_address::<u64>(HPET.0));
    table.as_slice().to_vec()
}

/// Where PCI configuration space is memory-mapped (PCI Firmware Specification 3.2, 4.1.2).
fn mcfg() -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(ECAM.0, 0, 0, 0);
    bytes_of(&table)
}
