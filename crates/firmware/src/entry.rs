//! The boot processor at its first instruction: flat segments, and for 64-bit entry an identity mapping. The others
//! wait for a start-up IPI.
//!
//! Two states cover all protocols. [`long_mode`] is what Linux's 64-bit boot protocol demands (boot.rst, "64-bit
//! Boot Protocol"); [`protected_mode`] satisfies both the PVH ABI (Xen's `docs/misc/pvh.pandoc`) and Multiboot 1
//! (3.2 "Machine state"). Descriptors come from a real table in guest memory, since a kernel may reload a selector
//! before it has a table of its own.
//!
//! The identity mapping uses 2 MiB pages, because the processor model may lack 1 GiB ones, and covers the first
//! 4 GiB: everything the loader hands to a 64-bit kernel lies there, except an initrd that only fits above, which
//! Linux reads through its own tables. Accessed and dirty are set already, so that the first walks write nothing.

use x86::control::{cr0, cr4, efer};
use x86::descriptor::{attr, system};
use x86::paging::pte;
use x86::state::{Activity, gpr};
use x86::{CpuState, DescriptorTable, Gpa, PAGE_SIZE, Segment, SegmentIndex, Selector, rflags};

use crate::LoadError;
use crate::load::Loader;

/// Linux's `__BOOT_CS`.
const CODE: Selector = Selector(0x10);
/// Linux's `__BOOT_DS`.
const DATA: Selector = Selector(0x18);
/// A flat, readable 64-bit code segment, accessed.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// A flat, readable 32-bit code segment, accessed.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// A flat, writable data segment, accessed.
const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;

/// MTRRs enabled, everything write-back (SDM vol. 3, 12.11.2.1), as firmware leaves them. Device memory is made
/// uncacheable by whoever maps it.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Paging-structure entries in a page.
const ENTRIES: u64 = 512;
/// GiB that the identity mapping covers, one page directory each.
const MAPPED_GIB: u64 = 4;
/// log2 of the large page size.
const LARGE_PAGE_SHIFT: u32 = 21;

/// 64-bit mode at `entry` with `boot_params` in RSI.
pub(crate) fn long_mode(
    loader: &mut Loader<'_>,
    entry: u64,
    boot_params: Gpa,
) -> Result<CpuState, LoadError> {
    let mut cpu = flat(loader, CODE64)?;
    cpu.cr3 = identity_map(loader)?.0;
    cpu.cr0 = cr0::PE | cr0::ET | cr0::PG;
    cpu.cr4 = cr4::PAE;
    cpu.msrs.efer = efer::LME | efer::LMA;
    cpu.rip = entry;
    cpu.gpr[gpr::RSI] = boot_params.0;
    Ok(cpu)
}

/// 32-bit protected mode without paging at `entry`, with `info` in EBX.
pub(crate) fn protected_mode(loader: &mut Loader<'_>, entry: u32, info: Gpa) -> Result<CpuState, LoadError> {
    let mut cpu = flat(loader, CODE32)?;
    cpu.cr0 = cr0::PE | cr0::ET;
    cpu.rip = u64::from(entry);
    cpu.gpr[gpr::RBX] = info.0;
    Ok(cpu)
}

/// A processor other than the boot processor, as firmware leaves it: it waits for a start-up IPI, and its memory types
/// are the boot processor's (SDM vol. 3, 12.11.8).
pub fn waiting() -> CpuState {
    let mut cpu = CpuState::reset();
    cpu.activity = Activity::WaitForSipi;
    cpu.msrs.mtrr_def_type = MTRR_WRITE_BACK;
    cpu
}

/// The reset state with flat segments, interrupts off, and no way to take an exception: one before the kernel has
/// its own IDT is a triple fault.
fn flat(loader: &mut Loader<'_>, code: u64) -> Result<CpuState, LoadError> {
    let table = [0, 0, code, FLAT_DATA];
    let base = loader.store(&words(&table), 16)?;
    let data = Segment::from_descriptor(DATA, FLAT_DATA);
    let mut cpu = CpuState::reset();
    cpu.seg = [data; 6];
    cpu.seg[SegmentIndex::Cs as usize] = Segment::from_descriptor(CODE, code);
    cpu.gdtr = DescriptorTable { base: base.0, limit: 4 * 8 - 1 };
    cpu.idtr = DescriptorTable { base: 0, limit: 0 };
    cpu.ldtr = Segment::null(Selector(0));
    cpu.tr = Segment { selector: Selector(0), base: 0, limit: 0x67, attr: attr::P | system::TSS_BUSY };
    cpu.rflags = rflags::FIXED;
    cpu.msrs.mtrr_def_type = MTRR_WRITE_BACK;
    Ok(cpu)
}

/// Stores the identity mapping and returns its root.
fn identity_map(loader: &mut Loader<'_>) -> Result<Gpa, LoadError> {
    const TABLE: u64 = pte::P | pte::RW | pte::A;
    const LEAF: u64 = TABLE | pte::D | pte::PS;
    let large_pages: Vec<u64> =
        (0..MAPPED_GIB * ENTRIES).map(|page| page << LARGE_PAGE_SHIFT | LEAF).collect();
    let directories = loader.store(&words(&large_pages), PAGE_SIZE)?;
    let pointers: Vec<u64> = (0..ENTRIES)
        .map(|gib| if gib < MAPPED_GIB { (directories.0 + gib * PAGE_SIZE) | TABLE } else { 0 })
        .collect();
    let pointers = loader.store(&words(&pointers), PAGE_SIZE)?;
    let mut root = [0; 512];
    root[0] = pointers.0 | TABLE;
    loader.store(&words(&root), PAGE_SIZE)
}

/// The little-endian bytes of `words`.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
