//! The words of the BIOS data area that operating systems still read, above all to find where conventional memory
//! ends and the extended BIOS data area begins.

use memory::GuestMemory;
use x86::Gpa;
use x86::bits::low16;

use crate::LoadError;
use crate::layout::{COM1_PORT, EBDA};

/// The I/O port of the first serial port.
const COM1: Gpa = Gpa(0x400);
/// The real-mode segment of the extended BIOS data area.
const EBDA_SEGMENT: Gpa = Gpa(0x40e);
/// The KiB of conventional memory.
const CONVENTIONAL_KIB: Gpa = Gpa(0x413);

/// Writes them.
pub(crate) fn write_data_area(memory: &GuestMemory) -> Result<(), LoadError> {
    memory.write(COM1, &COM1_PORT.to_le_bytes())?;
    memory.write(EBDA_SEGMENT, &low16(EBDA.0 >> 4).to_le_bytes())?;
    memory.write(CONVENTIONAL_KIB, &low16(EBDA.0 >> 10).to_le_bytes())?;
    // The first byte of the extended area is its size in KiB.
    memory.write(EBDA, &[1])?;
    Ok(())
}
