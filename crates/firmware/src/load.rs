//! From a kernel file to a processor that can run it.
//!
//! The stages: fixed areas (BIOS words, ACPI tables) are written; the file is recognised; its protocol's module
//! claims the kernel's own memory, then asks for places for boot data and initrds; the entry state comes last. The
//! order of claims is what makes this simple: a kernel has its demands on addresses, everything else can go anywhere.
//!
//! Which protocol when a file speaks several: PVH before Multiboot before Linux's own for ELF, because a note or a
//! header is put there on purpose, while any 64-bit ELF file could be taken for a `vmlinux`.

use core::fmt;

use memory::GuestMemory;
use x86::{CpuState, Gpa};

use crate::arena::{Arena, Refusal};
use crate::elf::Elf;
use crate::layout::{self, MemoryMap};
use crate::{LoadError, acpi, bios, bzimage, detect, elf, linux, multiboot, pvh};

/// The longest command line for protocols that do not state a limit.
pub(crate) const MAX_COMMAND_LINE: u64 = 0xffff;
/// Where initrds and modules may begin at the earliest: above the low memory that kernels use while they start.
pub(crate) const FIRST_MIB: u64 = 1 << 20;

/// Bytes that go into guest memory as they are, wherever they come from.
pub trait Content: fmt::Debug {
    /// How many.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts them there.
    ///
    /// # Errors
    /// If they cannot be read any more, or memory refuses them. Guest memory is then partly written.
    fn put(&self, memory: &GuestMemory, at: Gpa) -> Result<(), LoadError>;
}

impl<T: AsRef<[u8]> + fmt::Debug> Content for T {
    fn len(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn put(&self, memory: &GuestMemory, at: Gpa) -> Result<(), LoadError> {
        Ok(memory.write(at, self.as_ref())?)
    }
}

/// An initial RAM disk; for Multiboot and PVH: a module.
#[derive(Clone, Copy, Debug)]
pub struct Initrd<'a> {
    /// The bytes.
    pub data: &'a dyn Content,
    /// The module's string, where the protocol has one; customarily the file's name and arguments.
    pub command_line: &'a str,
}

/// What is to be loaded, into which machine.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The kernel file's name: the first word of a Multiboot kernel's command line, by custom.
    pub kernel_name: &'a str,
    /// Initial RAM disks in order. Linux gets them as one, joined.
    pub initrds: &'a [Initrd<'a>],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The memory map; guest memory must have been made from its ranges.
    pub map: MemoryMap,
    /// The number of processors, whose APIC identifiers are 0 and up.
    pub cpus: u32,
    /// How many slots there are, for devices that come while the machine runs.
    pub slots: u8,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol, from a bzImage.
    BzImage,
    /// Linux's 64-bit boot protocol, from an ELF `vmlinux`.
    Vmlinux,
    /// Xen's PVH, which Linux and several unikernels speak.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "Linux bzImage, 64-bit entry",
            Self::Vmlinux => "Linux vmlinux, 64-bit entry",
            Self::Pvh => "PVH",
            Self::Multiboot => "Multiboot",
        })
    }
}

/// A machine ready to run.
#[derive(Clone, Debug)]
pub struct Boot {
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// The boot processor's state.
    pub cpu: CpuState,
}

/// Writes everything that must be in guest memory before the first instruction.
///
/// # Errors
/// If the file is not a kernel that this machine can run, or does not fit. Guest memory is then partly written.
pub fn load(memory: &GuestMemory, request: &BootRequest<'_>) -> Result<Boot, LoadError> {
    bios::write_data_area(memory)?;
    acpi::build(memory, request.cpus, request.slots)?;
    let mut loader = Loader { memory, request, arena: Arena::new(&request.map) };
    let file = request.kernel;
    if elf::is_elf(file) {
        return load_elf(&mut loader, &Elf::parse(file)?);
    }
    if bzimage::is_bzimage(file) {
        let cpu = bzimage::load(&mut loader)?;
        return Ok(Boot { protocol: Protocol::BzImage, cpu });
    }
    if let Some(header) = multiboot::Header::find(file) {
        let cpu = multiboot::load(&mut loader, &header, None)?;
        return Ok(Boot { protocol: Protocol::Multiboot, cpu });
    }
    Err(detect::not_a_kernel(file))
}

fn load_elf(loader: &mut Loader<'_>, elf: &Elf<'_>) -> Result<Boot, LoadError> {
    let (protocol, cpu) = if let Some(entry) = elf.pvh_entry() {
        (Protocol::Pvh, pvh::load(loader, elf, entry)?)
    } else if let Some(header) = multiboot::Header::find(loader.request.kernel) {
        (Protocol::Multiboot, multiboot::load(loader, &header, Some(elf))?)
    } else if elf.is_program {
        return Err(detect::a_program());
    } else if elf.is_64bit {
        (Protocol::Vmlinux, linux::load_vmlinux(loader, elf)?)
    } else {
        return Err(detect::bare_elf32());
    };
    Ok(Boot { protocol, cpu })
}

/// What the protocols' modules share: the machine being loaded.
pub(crate) struct Loader<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) request: &'a BootRequest<'a>,
    pub(crate) arena: Arena,
}

impl Loader<'_> {
    /// Takes `len` bytes at `start` for the kernel, below 4 GiB, where every protocol's entry state can reach them.
    pub(crate) fn claim(&mut self, start: u64, len: u64) -> Result<(), LoadError> {
        let end = start.saturating_add(len);
        if end > layout::MMIO_HOLE.0 && len > 0 {
            return Err(LoadError::OutsideRam { start, end });
        }
        self.arena.claim(start, len).map_err(|refusal| match refusal {
            Refusal::Taken => LoadError::Malformed { what: "parts of it overlap in memory" },
            Refusal::NotRam if start >= FIRST_MIB => self.too_little(end),
            Refusal::NotRam => LoadError::OutsideRam { start, end },
        })
    }

    /// The error for a kernel that needs RAM up to `end`.
    pub(crate) fn too_little(&self, end: u64) -> LoadError {
        LoadError::TooLittleMemory { needs_mib: mib(end), has_mib: self.request.map.ram_bytes() >> 20 }
    }

    /// Puts a part of the kernel at `start`: `data`, then zeros up to `len` bytes in all.
    pub(crate) fn place_segment(&mut self, start: u64, data: &[u8], len: u64) -> Result<(), LoadError> {
        let data_len = data.len() as u64;
        self.claim(start, len.max(data_len))?;
        self.memory.write(Gpa(start), data)?;
        if let Some(zeros) = len.checked_sub(data_len).filter(|&zeros| zeros > 0) {
            self.memory.fill(Gpa(start + data_len), zeros, 0)?;
        }
        Ok(())
    }

    /// Puts boot data somewhere as low as possible below 4 GiB.
    pub(crate) fn store(&mut self, bytes: &[u8], align: u64) -> Result<Gpa, LoadError> {
        let len = bytes.len() as u64;
        let place = self.arena.lowest(len, align, 0, layout::MMIO_HOLE.0);
        let place = place.ok_or_else(|| self.too_little(self.request.map.ram_bytes().saturating_add(len)))?;
        self.memory.write(place, bytes)?;
        Ok(place)
    }

    /// Puts `text` with its terminating zero somewhere low.
    pub(crate) fn store_text(&mut self, text: &str) -> Result<Gpa, LoadError> {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.store(&bytes, 1)
    }

    /// Puts the kernel's command line, of at most `limit` bytes, somewhere low.
    pub(crate) fn store_command_line(&mut self, text: &str, limit: u64) -> Result<Gpa, LoadError> {
        let (len, limit) = (text.len() as u64, limit.min(MAX_COMMAND_LINE));
        if len > limit {
            return Err(LoadError::CommandLineTooLong { len, limit });
        }
        self.store_text(text)
    }

    /// The error for an initrd of `len` bytes that finds no place below `limit`.
    pub(crate) fn initrd_too_large(&self, len: u64, limit: u64) -> LoadError {
        let free = self.arena.largest_gap(FIRST_MIB, limit);
        LoadError::InitrdTooLarge { needs_mib: mib(len), free_mib: free >> 20 }
    }
}

/// Bytes in MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
