//! Fixed ACPI Description Table: the power-management registers and what kind of PC this is (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use x86::Gpa;
use x86::bits::low32;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::layout::{
    GPE0_BYTES, GPE0_PORT, PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, RESET_PORT, RESET_VALUE,
    RTC_CENTURY, SCI_IRQ,
};

/// IAPC_BOOT_ARCH (5.2.9.3): there are ISA devices; there is no 8042 keyboard controller to probe for keyboards
/// (only its reset line exists), no VGA, and ASPM is not to be touched.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;

/// Latencies that mean "no C2" and "no C3".
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The table, given where the DSDT and the FACS are.
pub(super) fn build(dsdt: Gpa, facs: Gpa) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .firmware_ctrl_32(low32(facs.0))
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    table.dsdt = low32(dsdt.0).into();
    table.x_dsdt = dsdt.0.into();
    table.sci_int = u16::from(SCI_IRQ).into();
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();
    table.century = RTC_CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_ASPM).into();
    table.reset_reg = port(RESET_PORT, 1);
    table.reset_value = RESET_VALUE;
    registers(&mut table);
    bytes_of(&table.finalize())
}

/// Each register block, in its 32-bit and its extended field.
fn registers(table: &mut FADTBuilder) {
    table.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    table.pm1_evt_len = 4;
    table.x_pm1a_evt_blk = port(PM1A_EVENT_PORT, 4);
    table.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    table.pm1_cnt_len = 2;
    table.x_pm1a_cnt_blk = port(PM1A_CONTROL_PORT, 2);
    table.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    table.pm_tmr_len = 4;
    table.x_pm_tmr_blk = port(PM_TIMER_PORT, 4);
    table.gpe0_blk = u32::from(GPE0_PORT).into();
    table.gpe0_blk_len = GPE0_BYTES;
    table.x_gpe0_blk = port(GPE0_PORT, GPE0_BYTES);
}

/// A register block of `bytes` bytes of I/O ports. Blocks of several registers are accessed by the half.
fn port(base: u16, bytes: u8) -> GAS {
    let access = match (bytes, base) {
        (1, _) => AccessSize::ByteAccess,
        (4, PM_TIMER_PORT) => AccessSize::DwordAccess,
        (4, GPE0_PORT) => AccessSize::ByteAccess,
        _ => AccessSize::WordAccess,
    };
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, base.into())
}
