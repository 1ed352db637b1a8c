//! ELF executables: where the parts of a kernel go and how it wants to be entered (System V ABI, chapters 4 and 5;
//! AMD64 supplement).
//!
//! Only program headers count; sections are for linkers. Both classes are read into one form. Whatever the headers
//! say is checked against the file here and against memory by the arena later. A real file's segments share no
//! bytes, except that notes lie in a loaded segment too; one whose headers name the same bytes again and again is
//! refused, so that the work is bounded by the file's length.

use crate::bytes::{has, slice_at, u8_at, u16_at, u32_at, u64_at};
use crate::load::Loader;
use crate::{LoadError, detect};

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const BIG_ENDIAN: u8 = 2;
/// EI_OSABI of GNU/Linux, which static programs carry and kernels do not.
const OSABI_GNU: u8 = 3;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the PVH entry point (Xen: `public/elfnote.h`).
const PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";
/// Who owns the notes that every `vmlinux` has.
const LINUX: &[u8] = b"Linux\0";

/// A loadable part.
struct Segment<'a> {
    /// Where it goes in memory.
    physical: u64,
    /// Where it is linked to run.
    linked: u64,
    /// Its size in memory.
    len: u64,
    /// Its bytes in the file, at most `len`; zeros follow.
    data: &'a [u8],
}

/// An executable for this machine.
pub(crate) struct Elf<'a> {
    segments: Vec<Segment<'a>>,
    /// Whether it is of the 64-bit class.
    pub(crate) is_64bit: bool,
    /// Whether it bears marks of an operating system's program. Those do not hinder a kernel that also says how it
    /// is booted.
    pub(crate) is_program: bool,
    notes: Notes,
    entry: u64,
}

/// Whether `file` is of the ELF format.
pub(crate) fn is_elf(file: &[u8]) -> bool {
    has(file, 0, MAGIC)
}

/// The fields of the file header.
struct FileHeader {
    is_64bit: bool,
    kind: u16,
    entry: u64,
    table: u64,
    entry_len: u64,
    count: u64,
}

/// A program header.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    linked: u64,
    physical: u64,
    file_len: u64,
    len: u64,
    align: u64,
}

impl<'a> Elf<'a> {
    /// Parses `file`, which [`is_elf`].
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let header = FileHeader::parse(file)?;
        if !matches!(header.kind, ET_EXEC | ET_DYN) {
            return Err(detect::not_executable());
        }
        let have = file.len() as u64;
        let table_end = header.table.saturating_add(header.count * header.entry_len);
        let mut expected = table_end;
        let mut elf = Self {
            segments: Vec::new(),
            is_64bit: header.is_64bit,
            notes: Notes::default(),
            is_program: header.kind == ET_DYN || u8_at(file, 7) == Some(OSABI_GNU),
            entry: header.entry,
        };
        let mut named_bytes = 0u64;
        for i in 0..header.count {
            let at = header.table.saturating_add(i * header.entry_len);
            let Some(part) = ProgramHeader::parse(file, at, header.is_64bit) else { break };
            let data = slice_at(file, part.offset, part.file_len);
            if matches!(part.kind, PT_LOAD | PT_NOTE) && data.is_some() {
                named_bytes += part.file_len;
                if named_bytes > 2 * have {
                    return Err(LoadError::Malformed { what: "its segments overlap in the file" });
                }
            }
            match (part.kind, data) {
                (PT_LOAD | PT_NOTE, None) => {
                    expected = expected.max(part.offset.saturating_add(part.file_len));
                }
                (PT_LOAD, Some(data)) if part.len > 0 => elf.add_segment(&part, data)?,
                (PT_NOTE, Some(data)) => {
                    // Where the records end, whole or cut, is no matter.
                    let _ = elf.notes.read(data, part.align);
                }
                (PT_INTERP, _) => elf.is_program = true,
                _ => {}
            }
        }
        if expected > have {
            return Err(LoadError::Truncated { expected, actual: have });
        }
        Ok(elf)
    }

    fn add_segment(&mut self, part: &ProgramHeader, data: &'a [u8]) -> Result<(), LoadError> {
        if part.file_len > part.len {
            return Err(LoadError::Malformed { what: "a segment is larger in the file than in memory" });
        }
        self.segments.push(Segment { physical: part.physical, linked: part.linked, len: part.len, data });
        Ok(())
    }

    /// The entry point of the PVH note, if there is one.
    pub(crate) fn pvh_entry(&self) -> Option<u32> {
        self.notes.pvh_entry
    }

    /// Whether this is certainly a Linux kernel.
    pub(crate) fn is_linux(&self) -> bool {
        self.notes.is_linux
    }

    /// Puts all segments into memory.
    pub(crate) fn place(&self, loader: &mut Loader<'_>) -> Result<(), LoadError> {
        if self.segments.is_empty() {
            return Err(LoadError::Malformed { what: "it is an ELF file with nothing to load" });
        }
        self.segments.iter().try_for_each(|s| loader.place_segment(s.physical, s.data, s.len))
    }

    /// The first address behind all segments.
    pub(crate) fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.physical.saturating_add(s.len)).max().unwrap_or(0)
    }

    /// The physical address of the entry point, inside a segment.
    ///
    /// Kernels that are linked high give it as a physical address, as Linux does, or as a linked one.
    pub(crate) fn physical_entry(&self) -> Result<u64, LoadError> {
        let within = |start: u64, len| self.entry.checked_sub(start).filter(|offset| *offset < len);
        let physical = self.segments.iter().find_map(|s| within(s.physical, s.len).map(|_| self.entry));
        let linked =
            || self.segments.iter().find_map(|s| Some(s.physical.wrapping_add(within(s.linked, s.len)?)));
        physical
            .or_else(linked)
            .ok_or(LoadError::Malformed { what: "its entry point is in none of its segments" })
    }

    /// Whether the byte at physical address `address` belongs to a segment.
    pub(crate) fn contains(&self, address: u64) -> bool {
        self.segments.iter().any(|s| address.checked_sub(s.physical).is_some_and(|offset| offset < s.len))
    }
}

impl FileHeader {
    fn parse(file: &[u8]) -> Result<Self, LoadError> {
        let class = u8_at(file, 4);
        let (expected, is_64bit) = match class {
            Some(CLASS_64) => (64, true),
            Some(CLASS_32) | None => (52, false),
            Some(_) => return Err(LoadError::Malformed { what: "its ELF class is unknown" }),
        };
        let cut = LoadError::Truncated { expected, actual: file.len() as u64 };
        if file.len() < x86::bits::index(expected) {
            return Err(cut);
        }
        let machine = u16_at(file, 18).unwrap_or(0);
        match u8_at(file, 5) {
            Some(LITTLE_ENDIAN) => check_machine(machine, is_64bit)?,
            Some(BIG_ENDIAN) => return Err(wrong_machine(machine.swap_bytes())),
            _ => return Err(LoadError::Malformed { what: "its ELF byte order is unknown" }),
        }
        let fields = || {
            let kind = u16_at(file, 16)?;
            Some(if is_64bit {
                let (entry_len, count) = (u16_at(file, 54)?.into(), u16_at(file, 56)?.into());
                Self { is_64bit, kind, entry: u64_at(file, 24)?, table: u64_at(file, 32)?, entry_len, count }
            } else {
                let (entry_len, count) = (u16_at(file, 42)?.into(), u16_at(file, 44)?.into());
                let (entry, table) = (u32_at(file, 24)?.into(), u32_at(file, 28)?.into());
                Self { is_64bit, kind, entry, table, entry_len, count }
            })
        };
        let header = fields().ok_or(cut)?;
        if header.count > 0 && header.entry_len < if is_64bit { 56 } else { 32 } {
            return Err(LoadError::Malformed { what: "its ELF program headers are too short" });
        }
        Ok(header)
    }
}

impl ProgramHeader {
    fn parse(file: &[u8], at: u64, is_64bit: bool) -> Option<Self> {
        let raw = slice_at(file, at, if is_64bit { 56 } else { 32 })?;
        let kind = u32_at(raw, 0)?;
        Some(if is_64bit {
            Self {
                kind,
                offset: u64_at(raw, 8)?,
                linked: u64_at(raw, 16)?,
                physical: u64_at(raw, 24)?,
                file_len: u64_at(raw, 32)?,
                len: u64_at(raw, 40)?,
                align: u64_at(raw, 48)?,
            }
        } else {
            let word = |offset| u32_at(raw, offset).map(u64::from);
            Self {
                kind,
                offset: word(4)?,
                linked: word(8)?,
                physical: word(12)?,
                file_len: word(16)?,
                len: word(20)?,
                align: word(28)?,
            }
        })
    }
}

fn check_machine(machine: u16, is_64bit: bool) -> Result<(), LoadError> {
    // A 64-bit kernel in 32-bit clothes may keep its machine number.
    match machine {
        EM_X86_64 => Ok(()),
        EM_386 if !is_64bit => Ok(()),
        other => Err(wrong_machine(other)),
    }
}

fn wrong_machine(machine: u16) -> LoadError {
    let name = match machine {
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "32-bit Arm",
        43 => "SPARC",
        50 => "Itanium",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return LoadError::WrongMachine { machine: format!("ELF machine number {machine}") },
    };
    LoadError::WrongMachine { machine: name.to_owned() }
}

/// What the notes of a kernel say.
#[derive(Default)]
struct Notes {
    pvh_entry: Option<u32>,
    is_linux: bool,
}

impl Notes {
    /// Reads records of a name and a description, each padded to `align` (gABI, "Note Section"), up to the first
    /// that is cut.
    fn read(&mut self, notes: &[u8], align: u64) -> Option<()> {
        let align = if align == 8 { 8 } else { 4 };
        let mut at = 0u64;
        loop {
            let name_len = u64::from(u32_at(notes, at)?);
            let desc_len = u64::from(u32_at(notes, at + 4)?);
            let kind = u32_at(notes, at + 8)?;
            let name = slice_at(notes, at + 12, name_len)?;
            let desc = (at + 12 + name_len).next_multiple_of(align);
            self.is_linux |= name == LINUX;
            if self.pvh_entry.is_none() && kind == PHYS32_ENTRY && name == XEN && desc_len >= 4 {
                self.pvh_entry = u32_at(notes, desc);
            }
            at = (desc + desc_len).next_multiple_of(align);
        }
    }
}
