//! The Linux 64-bit boot protocol, as far as bzImage and vmlinux share it: the "zero page" (`struct boot_params`),
//! command line, initrd, entry state (Linux: `Documentation/arch/x86/boot.rst` and `zero-page.rst`).
//!
//! Field offsets are those of the zero page; the setup header has the same offsets in a bzImage file, which is why
//! [`hdr`] serves both.

use x86::bits::{high32, low8, low32};
use x86::{CpuState, Gpa, PAGE_SIZE};

use crate::LoadError;
use crate::bytes::put;
use crate::elf::Elf;
use crate::entry;
use crate::layout::{self, MemoryMap};
use crate::load::{Content, FIRST_MIB, Loader};

/// Fields of the setup header (boot.rst, "The Real-Mode Kernel Header").
pub(crate) mod hdr {
    /// The first byte of the header.
    pub(crate) const START: usize = 0x1f1;
    pub(crate) const SETUP_SECTS: usize = 0x1f1;
    pub(crate) const SYSSIZE: usize = 0x1f4;
    pub(crate) const VID_MODE: usize = 0x1fa;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    /// The second byte of the jump over the header; with 0x202 it gives the header's end.
    pub(crate) const JUMP_OFFSET: usize = 0x201;
    pub(crate) const HEADER: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const TYPE_OF_LOADER: usize = 0x210;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const CODE32_START: usize = 0x214;
    pub(crate) const RAMDISK_IMAGE: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21c;
    pub(crate) const HEAP_END_PTR: usize = 0x224;
    pub(crate) const CMD_LINE_PTR: usize = 0x228;
    pub(crate) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(crate) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(crate) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
    /// The first byte after the room for the header in the zero page.
    pub(crate) const END: usize = 0x290;

    /// The boot flag's bytes.
    pub(crate) const BOOT_FLAG_MAGIC: &[u8] = b"\x55\xaa";
    /// The header field's bytes.
    pub(crate) const HEADER_MAGIC: &[u8] = b"HdrS";
    /// LOADFLAGS: the protected-mode code is loaded above 1 MiB.
    pub(crate) const LOADED_HIGH: u8 = 1 << 0;
    /// LOADFLAGS: HEAP_END_PTR is valid.
    pub(crate) const CAN_USE_HEAP: u8 = 1 << 7;
    /// XLOADFLAGS: there is a 64-bit entry point.
    pub(crate) const XLF_KERNEL_64: u16 = 1 << 0;
    /// XLOADFLAGS: kernel, boot parameters, command line and initrd may be above 4 GiB.
    pub(crate) const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
}

/// Fields of the zero page outside the setup header.
const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;

/// "No boot loader of the list."
const LOADER_UNKNOWN: u8 = 0xff;
/// "Normal" text mode, no question asked.
const VID_MODE_NORMAL: u16 = 0xffff;
/// The end of the real-mode heap in boot.rst's sample configuration, as the field wants it. Unused by 64-bit entry,
/// but obligatory.
const HEAP_END: u16 = 0xe000 - 0x200;

/// What a vmlinux does not say of itself, from the kernel's source: its own limit of the command line
/// (`COMMAND_LINE_SIZE` less the zero), past which it would cut silently, and how high an initrd may end in every
/// version.
pub(crate) const VMLINUX_COMMAND_LINE: u64 = 2047;
const VMLINUX_INITRD_LIMIT: u64 = 0x8000_0000;
/// The header that a bzImage of a 64-bit kernel has at the least, which some early code looks at.
const VMLINUX_PROTOCOL: u16 = 0x020c;
const VMLINUX_ALIGNMENT: u32 = 0x0100_0000;

/// Where this kernel takes an initrd and how long its command line may be.
pub(crate) struct Limits {
    /// The end of the highest initrd below 4 GiB.
    pub(crate) initrd_end: u64,
    /// Whether an initrd may lie above 4 GiB.
    pub(crate) initrd_above_4g: bool,
    /// The longest command line without its terminating zero.
    pub(crate) command_line: u64,
}

/// The size of the zero page.
const ZERO_PAGE_BYTES: usize = 4096;

/// The zero page while it is filled.
pub(crate) struct ZeroPage([u8; ZERO_PAGE_BYTES]);

impl ZeroPage {
    /// A zero page with the setup header `header`, which starts at [`hdr::START`].
    pub(crate) fn new(header: &[u8]) -> Self {
        let mut page = Self([0; ZERO_PAGE_BYTES]);
        let room = hdr::END - hdr::START;
        put(&mut page.0, hdr::START, &header[..header.len().min(room)]);
        page
    }

    pub(crate) fn put(&mut self, field: usize, value: &[u8]) {
        put(&mut self.0, field, value);
    }

    fn put_memory_map(&mut self, map: &MemoryMap) {
        let regions = map.regions();
        for (i, region) in regions.iter().enumerate() {
            let at = E820_TABLE + i * E820_ENTRY_BYTES;
            self.put(at, &region.start.0.to_le_bytes());
            self.put(at + 8, &(region.end.0 - region.start.0).to_le_bytes());
            self.put(at + 16, &(region.kind as u32).to_le_bytes());
        }
        self.put(E820_ENTRIES, &[low8(regions.len() as u64)]);
    }
}

/// Completes the zero page, stores it with all it points to, and returns the processor at `entry`.
pub(crate) fn finish(
    loader: &mut Loader<'_>,
    mut page: ZeroPage,
    limits: &Limits,
    entry: u64,
) -> Result<CpuState, LoadError> {
    let command_line = loader.store_command_line(loader.request.command_line, limits.command_line)?;
    page.put(hdr::TYPE_OF_LOADER, &[LOADER_UNKNOWN]);
    page.put(hdr::VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    page.put(hdr::HEAP_END_PTR, &HEAP_END.to_le_bytes());
    page.put(hdr::CMD_LINE_PTR, &low32(command_line.0).to_le_bytes());
    page.put(ACPI_RSDP_ADDR, &layout::RSDP.0.to_le_bytes());
    page.put_memory_map(&loader.request.map);
    let page_place = loader.store(&[0; ZERO_PAGE_BYTES], PAGE_SIZE)?;
    let cpu = entry::long_mode(loader, entry, page_place)?;
    if let Some((start, len)) = load_initrds(loader, limits)? {
        page.put(hdr::RAMDISK_IMAGE, &low32(start.0).to_le_bytes());
        page.put(EXT_RAMDISK_IMAGE, &high32(start.0).to_le_bytes());
        page.put(hdr::RAMDISK_SIZE, &low32(len).to_le_bytes());
        page.put(EXT_RAMDISK_SIZE, &high32(len).to_le_bytes());
    }
    loader.memory.write(page_place, &page.0)?;
    Ok(cpu)
}

/// Places all initrds as one, each padded to four bytes as the kernel's unpacker expects, as high as allowed.
fn load_initrds(loader: &mut Loader<'_>, limits: &Limits) -> Result<Option<(Gpa, u64)>, LoadError> {
    let initrds = loader.request.initrds;
    let padded = |data: &dyn Content| data.len().next_multiple_of(4);
    let total: u64 = initrds.iter().map(|initrd| padded(initrd.data)).sum();
    if total == 0 {
        return Ok(None);
    }
    let below = limits.initrd_end.min(layout::MMIO_HOLE.0);
    let mut place = loader.arena.highest(total, PAGE_SIZE, FIRST_MIB, below);
    if place.is_none() && limits.initrd_above_4g {
        place = loader.arena.highest(total, PAGE_SIZE, layout::HIGH_RAM.0, u64::MAX);
    }
    let start = place.ok_or_else(|| loader.initrd_too_large(total, below))?;
    let mut at = start;
    for initrd in initrds {
        initrd.data.put(loader.memory, at)?;
        at = at + padded(initrd.data);
    }
    Ok(Some((start, total)))
}

/// Loads a vmlinux without a PVH note: it has no setup header, so the zero page gets the least one.
pub(crate) fn load_vmlinux(loader: &mut Loader<'_>, elf: &Elf<'_>) -> Result<CpuState, LoadError> {
    elf.place(loader)?;
    let mut page = ZeroPage::new(&[]);
    page.put(hdr::BOOT_FLAG, hdr::BOOT_FLAG_MAGIC);
    page.put(hdr::HEADER, hdr::HEADER_MAGIC);
    page.put(hdr::VERSION, &VMLINUX_PROTOCOL.to_le_bytes());
    page.put(hdr::LOADFLAGS, &[hdr::LOADED_HIGH | hdr::CAN_USE_HEAP]);
    page.put(hdr::KERNEL_ALIGNMENT, &VMLINUX_ALIGNMENT.to_le_bytes());
    let limits = Limits {
        initrd_end: VMLINUX_INITRD_LIMIT,
        initrd_above_4g: false,
        command_line: VMLINUX_COMMAND_LINE,
    };
    finish(loader, page, &limits, elf.physical_entry()?)
}
