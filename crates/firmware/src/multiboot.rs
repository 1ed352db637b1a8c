//! Multiboot 1 (GNU Multiboot Specification 0.6.96): the header in the first 8 KiB, two ways to load, the
//! information structure.
//!
//! The header either lets the ELF headers speak or, with flag 16 (the "a.out kludge"), gives the addresses itself;
//! then the file may be of any format. Modules go right behind the kernel rather than high: small kernels map only
//! the first few MiB before they look at them.

use x86::bits::low32;
use x86::state::gpr;
use x86::{CpuState, Gpa, PAGE_SIZE};

use crate::LoadError;
use crate::bytes::{put, slice_at, u32_at};
use crate::elf::Elf;
use crate::entry;
use crate::layout;
use crate::load::{FIRST_MIB, Loader, MAX_COMMAND_LINE};

/// The header lies within this many bytes (3.1).
const SEARCHED: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;

/// Header flags: modules on page boundaries, memory information; both are always done. The other bits of the lower
/// half are demands that must be refused if they are not known (3.1.2).
const KNOWN_DEMANDS: u32 = 1 << 0 | 1 << 1;
const DEMANDS: u32 = 0xffff;
/// Header flag: the addresses in the header are valid.
const KLUDGE: u32 = 1 << 16;

/// The information structure (3.3), without the parts after the loader's name.
mod info {
    pub(super) const FLAGS: usize = 0;
    pub(super) const MEM_LOWER: usize = 4;
    pub(super) const MEM_UPPER: usize = 8;
    pub(super) const CMDLINE: usize = 16;
    pub(super) const MODS_COUNT: usize = 20;
    pub(super) const MODS_ADDR: usize = 24;
    pub(super) const MMAP_LENGTH: usize = 44;
    pub(super) const MMAP_ADDR: usize = 48;
    pub(super) const BOOT_LOADER_NAME: usize = 64;
    pub(super) const BYTES: usize = 116;
    /// MEM_LOWER and MEM_UPPER, CMDLINE, MODS, MMAP and BOOT_LOADER_NAME are valid.
    pub(super) const VALID: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
}

/// The bytes of a module record and of a memory-map record without its size word.
const MODULE_BYTES: usize = 16;
const MMAP_BYTES: u32 = 20;
/// What kernels may print as their loader.
const LOADER_NAME: &str = "Umbra";

/// A header that was found.
pub(crate) struct Header {
    flags: u32,
    /// Its offset in the file.
    offset: u64,
    kludge: Option<Kludge>,
}

/// The addresses of the a.out kludge (3.1.3).
struct Kludge {
    header: u64,
    load: u64,
    load_end: u64,
    bss_end: u64,
    entry: u32,
}

impl Header {
    /// Finds the header of `file`: magic, flags and checksum add up to zero.
    pub(crate) fn find(file: &[u8]) -> Option<Self> {
        (0..SEARCHED - 8).step_by(4).find_map(|offset| Self::at(file, offset))
    }

    fn at(file: &[u8], offset: u64) -> Option<Self> {
        let word = |index: u64| u32_at(file, offset + index * 4);
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let kludge = || {
            Some(Kludge {
                header: word(3)?.into(),
                load: word(4)?.into(),
                load_end: word(5)?.into(),
                bss_end: word(6)?.into(),
                entry: word(7)?,
            })
        };
        let kludge = if flags & KLUDGE != 0 { Some(kludge()?) } else { None };
        Some(Self { flags, offset, kludge })
    }
}

/// Loads the request's kernel by `header`; `elf` is there if the file is an ELF executable.
pub(crate) fn load(
    loader: &mut Loader<'_>,
    header: &Header,
    elf: Option<&Elf<'_>>,
) -> Result<CpuState, LoadError> {
    let refused = header.flags & DEMANDS & !KNOWN_DEMANDS;
    if refused != 0 {
        return Err(LoadError::MultibootFeatures { flags: refused });
    }
    let (entry, end) = match (&header.kludge, elf) {
        (Some(kludge), _) => place_kludge(loader, header.offset, kludge)?,
        (None, Some(elf)) => {
            elf.place(loader)?;
            // Inside a segment that was placed, hence below 4 GiB.
            (low32(elf.physical_entry()?), elf.end())
        }
        (None, None) => {
            return Err(LoadError::Malformed { what: "its Multiboot header gives no load addresses" });
        }
    };
    let place = store_info(loader, end)?;
    let mut cpu = entry::protected_mode(loader, entry, place)?;
    cpu.gpr[gpr::RAX] = LOADER_MAGIC;
    Ok(cpu)
}

/// Places the kernel by the header's own addresses; gives the entry point and the end of the kernel.
fn place_kludge(loader: &mut Loader<'_>, offset: u64, kludge: &Kludge) -> Result<(u32, u64), LoadError> {
    let malformed = |what| LoadError::Malformed { what };
    let file = loader.request.kernel;
    let have = file.len() as u64;
    let before = kludge.header.checked_sub(kludge.load);
    let start = before.and_then(|before| offset.checked_sub(before));
    let start = start.ok_or(malformed("its Multiboot header lies outside what it says is loaded"))?;
    let len = match kludge.load_end {
        0 => have.saturating_sub(start),
        end => end.checked_sub(kludge.load).ok_or(malformed("its Multiboot load addresses are reversed"))?,
    };
    let data = slice_at(file, start, len)
        .ok_or(LoadError::Truncated { expected: start.saturating_add(len), actual: have })?;
    let load_end = kludge.load + len;
    let end = match kludge.bss_end {
        0 => load_end,
        end if end >= load_end => end,
        _ => return Err(malformed("its Multiboot BSS ends before its data")),
    };
    if !(kludge.load..end).contains(&kludge.entry.into()) {
        return Err(malformed("its Multiboot entry point is outside what it loads"));
    }
    loader.place_segment(kludge.load, data, end - kludge.load)?;
    Ok((kludge.entry, end))
}

/// Stores the information structure and everything it points to; modules go behind `kernel_end`.
fn store_info(loader: &mut Loader<'_>, kernel_end: u64) -> Result<Gpa, LoadError> {
    let request = loader.request;
    // By custom the kernel's own name is the first word.
    let command_line = format!("{} {}", request.kernel_name, request.command_line);
    let command_line = loader.store_command_line(&command_line, MAX_COMMAND_LINE)?;
    let name = loader.store_text(LOADER_NAME)?;
    let map = memory_map(loader);
    let map_place = loader.store(&map, 4)?;
    let modules = load_modules(loader, kernel_end)?;
    let modules_place = loader.store(&modules, 4)?;

    let upper = layout::TABLES_END.0..request.map.low_end().0;
    let mut bytes = [0; info::BYTES];
    let mut put_word = |field, value: u64| put(&mut bytes, field, &low32(value).to_le_bytes());
    put_word(info::FLAGS, info::VALID.into());
    put_word(info::MEM_LOWER, layout::EBDA.0 >> 10);
    put_word(info::MEM_UPPER, (upper.end - upper.start) >> 10);
    put_word(info::CMDLINE, command_line.0);
    put_word(info::MODS_COUNT, request.initrds.len() as u64);
    put_word(info::MODS_ADDR, modules_place.0);
    put_word(info::MMAP_LENGTH, map.len() as u64);
    put_word(info::MMAP_ADDR, map_place.0);
    put_word(info::BOOT_LOADER_NAME, name.0);
    loader.store(&bytes, 4)
}

/// The memory map; each record is preceded by its size.
fn memory_map(loader: &Loader<'_>) -> Vec<u8> {
    let mut table = Vec::new();
    for region in loader.request.map.regions() {
        table.extend_from_slice(&MMAP_BYTES.to_le_bytes());
        table.extend_from_slice(&region.start.0.to_le_bytes());
        table.extend_from_slice(&(region.end.0 - region.start.0).to_le_bytes());
        table.extend_from_slice(&(region.kind as u32).to_le_bytes());
    }
    table
}

/// Places the modules and gives the list of them.
fn load_modules(loader: &mut Loader<'_>, kernel_end: u64) -> Result<Vec<u8>, LoadError> {
    let mut list = Vec::new();
    let mut from = kernel_end.max(FIRST_MIB);
    for initrd in loader.request.initrds {
        let (len, limit) = (initrd.data.len(), layout::MMIO_HOLE.0);
        let place = loader.arena.lowest(len, PAGE_SIZE, from, limit);
        let place = place.ok_or_else(|| loader.initrd_too_large(len, limit))?;
        initrd.data.put(loader.memory, place)?;
        let command_line = loader.store_text(initrd.command_line)?;
        from = place.0 + len;
        let mut record = [0; MODULE_BYTES];
        put(&mut record, 0, &low32(place.0).to_le_bytes());
        put(&mut record, 4, &low32(from).to_le_bytes());
        put(&mut record, 8, &low32(command_line.0).to_le_bytes());
        list.extend_from_slice(&record);
    }
    Ok(list)
}
