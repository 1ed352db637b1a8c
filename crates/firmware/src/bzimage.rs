//! Linux's bzImage: a setup header, real-mode code that is not used here, and the protected-mode part that is
//! loaded and entered in 64-bit mode at its offset 0x200 (Linux: `Documentation/arch/x86/boot.rst`).

use x86::CpuState;

use crate::LoadError;
use crate::bytes::{has, slice_at, u8_at, u16_at, u32_at, u64_at};
use crate::layout;
use crate::linux::{self, Limits, ZeroPage, hdr};
use crate::load::{FIRST_MIB, Loader};

/// The first protocol version with XLOADFLAGS, which tell of the 64-bit entry.
const PROTOCOL_64: u16 = 0x020c;
/// The 64-bit entry point relative to the loaded code.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// The unit of SYSSIZE.
const PARAGRAPH: u64 = 16;
/// What SETUP_SECTS means when it is zero.
const DEFAULT_SETUP_SECTS: u64 = 4;

/// Whether `file` has the boot flag and the header magic.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    has(file, hdr::BOOT_FLAG as u64, hdr::BOOT_FLAG_MAGIC) && has(file, hdr::HEADER as u64, hdr::HEADER_MAGIC)
}

/// What the loader needs of the setup header.
struct Header<'a> {
    /// The header's bytes from [`hdr::START`].
    raw: &'a [u8],
    loadflags: u8,
    /// The protected-mode part.
    code: &'a [u8],
    /// The memory that the kernel needs from its start, the code included.
    init_size: u64,
    pref_address: u64,
    relocatable: bool,
    alignment: u64,
    limits: Limits,
}

/// Loads the request's kernel, which [`is_bzimage`].
pub(crate) fn load(loader: &mut Loader<'_>) -> Result<CpuState, LoadError> {
    let header = Header::parse(loader.request.kernel)?;
    let start = header.place(loader)?;
    loader.memory.write(x86::Gpa(start), header.code)?;
    let mut page = ZeroPage::new(header.raw);
    page.put(hdr::LOADFLAGS, &[header.loadflags | hdr::CAN_USE_HEAP]);
    page.put(hdr::CODE32_START, &x86::bits::low32(start).to_le_bytes());
    linux::finish(loader, page, &header.limits, start + ENTRY_64)
}

impl<'a> Header<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let have = file.len() as u64;
        let cut = LoadError::Truncated { expected: hdr::END as u64, actual: have };
        let fields = || {
            Some((
                u8_at(file, hdr::SETUP_SECTS as u64)?,
                u32_at(file, hdr::SYSSIZE as u64)?,
                u16_at(file, hdr::VERSION as u64)?,
                u8_at(file, hdr::LOADFLAGS as u64)?,
                u8_at(file, hdr::JUMP_OFFSET as u64)?,
            ))
        };
        let Some((setup_sects, syssize, version, loadflags, jump)) = fields() else { return Err(cut) };
        let [minor, major] = version.to_le_bytes();
        if version < PROTOCOL_64 {
            return Err(LoadError::OldProtocol { major, minor });
        }
        let fields = || {
            Some((
                u16_at(file, hdr::XLOADFLAGS as u64)?,
                u32_at(file, hdr::INITRD_ADDR_MAX as u64)?,
                u32_at(file, hdr::KERNEL_ALIGNMENT as u64)?,
                u8_at(file, hdr::RELOCATABLE_KERNEL as u64)?,
                u32_at(file, hdr::CMDLINE_SIZE as u64)?,
                u64_at(file, hdr::PREF_ADDRESS as u64)?,
                u32_at(file, hdr::INIT_SIZE as u64)?,
            ))
        };
        let Some((xloadflags, initrd_max, alignment, relocatable, cmdline, pref_address, init_size)) =
            fields()
        else {
            return Err(cut);
        };
        if xloadflags & hdr::XLF_KERNEL_64 == 0 {
            return Err(LoadError::Only32Bit);
        }
        if loadflags & hdr::LOADED_HIGH == 0 {
            return Err(LoadError::Malformed { what: "it is a zImage with a 64-bit entry" });
        }
        let code = code_of(file, setup_sects, syssize)?;
        let header_end = (hdr::HEADER as u64 + u64::from(jump)).min(hdr::END as u64);
        let raw = slice_at(file, hdr::START as u64, header_end - hdr::START as u64).ok_or(cut)?;
        Ok(Self {
            raw,
            loadflags,
            code,
            init_size: u64::from(init_size).max(code.len() as u64),
            pref_address,
            relocatable: relocatable != 0,
            alignment: u64::from(alignment),
            limits: Limits {
                initrd_end: u64::from(initrd_max) + 1,
                initrd_above_4g: xloadflags & hdr::XLF_CAN_BE_LOADED_ABOVE_4G != 0,
                command_line: u64::from(cmdline),
            },
        })
    }

    /// Takes memory for the kernel: at its preferred address, else, if it can be relocated, at the lowest free one.
    fn place(&self, loader: &mut Loader<'_>) -> Result<u64, LoadError> {
        if self.relocatable && !self.alignment.is_power_of_two() {
            return Err(LoadError::Malformed { what: "its alignment is not a power of two" });
        }
        let (size, align) = (self.init_size, if self.relocatable { self.alignment } else { 1 });
        // A relocated kernel aligns itself upwards, so a misaligned preference would run past its claim.
        let preferred = self.pref_address.checked_next_multiple_of(align).unwrap_or(u64::MAX);
        match loader.claim(preferred, size) {
            Ok(()) => Ok(preferred),
            Err(error) if !self.relocatable => Err(error),
            Err(_) => {
                let place = loader.arena.lowest(size, align, FIRST_MIB, layout::MMIO_HOLE.0);
                let lowest = FIRST_MIB.next_multiple_of(align);
                Ok(place.ok_or_else(|| loader.too_little(lowest + size))?.0)
            }
        }
    }
}

/// The protected-mode part of `file`, as long as the header says. That counts paragraphs of 16 bytes, the last of which
/// some linkers leave incomplete.
fn code_of(file: &[u8], setup_sects: u8, syssize: u32) -> Result<&[u8], LoadError> {
    let sectors = if setup_sects == 0 { DEFAULT_SETUP_SECTS } else { u64::from(setup_sects) };
    let start = (sectors + 1) * SECTOR;
    let len = u64::from(syssize) * PARAGRAPH;
    if len <= ENTRY_64 {
        return Err(LoadError::Malformed { what: "its code ends before its entry point" });
    }
    let have = (file.len() as u64).saturating_sub(start);
    let len = if have < len && have.next_multiple_of(PARAGRAPH) == len { have } else { len };
    slice_at(file, start, len)
        .ok_or(LoadError::Truncated { expected: start + len, actual: file.len() as u64 })
}
