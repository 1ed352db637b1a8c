//! Xen's PVH entry: 32-bit, flat, EBX at `hvm_start_info` (Xen: `docs/misc/pvh.pandoc` and
//! `public/arch-x86/hvm/start_info.h`, version 1).

use x86::bits::low32;
use x86::{CpuState, Gpa, PAGE_SIZE};

use crate::LoadError;
use crate::bytes::put;
use crate::elf::Elf;
use crate::entry;
use crate::layout;
use crate::linux::VMLINUX_COMMAND_LINE;
use crate::load::{FIRST_MIB, Loader, MAX_COMMAND_LINE};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Sizes of the three structures.
const START_INFO_BYTES: usize = 56;
const MODULE_BYTES: usize = 32;
const MEMMAP_BYTES: usize = 24;

/// Loads the request's kernel, whose PVH entry is `entry`.
pub(crate) fn load(loader: &mut Loader<'_>, elf: &Elf<'_>, entry: u32) -> Result<CpuState, LoadError> {
    elf.place(loader)?;
    if !elf.contains(entry.into()) {
        return Err(LoadError::Malformed { what: "its PVH entry point is in none of its segments" });
    }
    let limit = if elf.is_linux() { VMLINUX_COMMAND_LINE } else { MAX_COMMAND_LINE };
    let command_line = loader.store_command_line(loader.request.command_line, limit)?;
    let regions = memory_map(loader);
    let region_count = regions.len() / MEMMAP_BYTES;
    let memmap = loader.store(&regions, 8)?;
    // The start info is in its place before the modules take theirs, filled in afterwards.
    let info_place = loader.store(&[0; START_INFO_BYTES], 8)?;
    let cpu = entry::protected_mode(loader, entry, info_place)?;
    let modules = load_modules(loader)?;

    let mut info = [0; START_INFO_BYTES];
    put(&mut info, 0, &MAGIC.to_le_bytes());
    put(&mut info, 4, &VERSION.to_le_bytes());
    if let Some(list) = modules {
        put(&mut info, 12, &low32(loader.request.initrds.len() as u64).to_le_bytes());
        put(&mut info, 16, &list.0.to_le_bytes());
    }
    put(&mut info, 24, &command_line.0.to_le_bytes());
    put(&mut info, 32, &layout::RSDP.0.to_le_bytes());
    put(&mut info, 40, &memmap.0.to_le_bytes());
    put(&mut info, 48, &low32(region_count as u64).to_le_bytes());
    loader.memory.write(info_place, &info)?;
    Ok(cpu)
}

/// The memory map as `hvm_memmap_table_entry` records.
fn memory_map(loader: &Loader<'_>) -> Vec<u8> {
    let mut table = Vec::new();
    for region in loader.request.map.regions() {
        let mut entry = [0; MEMMAP_BYTES];
        put(&mut entry, 0, &region.start.0.to_le_bytes());
        put(&mut entry, 8, &(region.end.0 - region.start.0).to_le_bytes());
        put(&mut entry, 16, &(region.kind as u32).to_le_bytes());
        table.extend_from_slice(&entry);
    }
    table
}

/// Places the modules as high as possible below 4 GiB and stores their list; Linux takes the first as its initrd.
fn load_modules(loader: &mut Loader<'_>) -> Result<Option<Gpa>, LoadError> {
    let mut list = Vec::new();
    for initrd in loader.request.initrds {
        let (len, limit) = (initrd.data.len(), layout::MMIO_HOLE.0);
        let place = loader.arena.highest(len, PAGE_SIZE, FIRST_MIB, limit);
        let place = place.ok_or_else(|| loader.initrd_too_large(len, limit))?;
        initrd.data.put(loader.memory, place)?;
        let command_line = loader.store_text(initrd.command_line)?;
        let mut entry = [0; MODULE_BYTES];
        put(&mut entry, 0, &place.0.to_le_bytes());
        put(&mut entry, 8, &len.to_le_bytes());
        put(&mut entry, 16, &command_line.0.to_le_bytes());
        list.extend_from_slice(&entry);
    }
    if list.is_empty() { Ok(None) } else { loader.store(&list, 8).map(Some) }
}
