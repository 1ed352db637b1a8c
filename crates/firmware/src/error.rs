//! Why a kernel could not be loaded, each in one sentence that ends with what to do.

use memory::MemoryError;

/// What went wrong while loading.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not of any kernel format.
    #[error("this is not a kernel but {looks_like}; {advice}")]
    NotAKernel {
        /// What they seem to be.
        looks_like: String,
        /// What to do.
        advice: &'static str,
    },
    /// An executable for another processor.
    #[error("this kernel is built for {machine}; this machine needs one for x86-64")]
    WrongMachine {
        /// The processor.
        machine: String,
    },
    /// A bzImage without the 64-bit entry point.
    #[error("this Linux kernel is 32-bit only; take one built for x86-64 (with CONFIG_X86_64)")]
    Only32Bit,
    /// A bzImage of a boot protocol without 64-bit entry.
    #[error(
        "this Linux kernel speaks boot protocol {major}.{minor:02}, and 64-bit entry needs 2.12; \
         take Linux 3.8 or newer"
    )]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The file ends early.
    #[error(
        "the kernel file is truncated: it should have {expected} bytes and has {actual}; \
         copy or download it again"
    )]
    Truncated {
        /// The bytes that its own header speaks of.
        expected: u64,
        /// The bytes there are.
        actual: u64,
    },
    /// A header contradicts itself or the format.
    #[error("the kernel file is damaged: {what}; copy or build it again")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A Multiboot kernel demands what this machine lacks.
    #[error(
        "this Multiboot kernel demands features {flags:#x} that this machine lacks (0x4 is a video mode); \
         build it without"
    )]
    MultibootFeatures {
        /// The flags that cannot be satisfied.
        flags: u32,
    },
    /// The kernel is linked where no PC has RAM.
    #[error(
        "the kernel wants to be loaded at {start:#x} to {end:#x}, where this machine never has RAM; \
         link it between 1 MiB and 3 GiB"
    )]
    OutsideRam {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// There is not enough RAM for the kernel.
    #[error(
        "the kernel needs at least {needs_mib} MiB of memory and the machine has {has_mib} MiB; give it more"
    )]
    TooLittleMemory {
        /// MiB that the kernel needs to start.
        needs_mib: u64,
        /// MiB there are.
        has_mib: u64,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "the initrd needs {needs_mib} MiB and {free_mib} MiB of memory are free for it; \
         give the machine more (--memory) or make the initrd smaller"
    )]
    InitrdTooLarge {
        /// MiB that the initrd needs.
        needs_mib: u64,
        /// MiB that are free where this kernel allows an initrd.
        free_mib: u64,
    },
    /// A file that was there when the machine was built cannot be read any more.
    #[error("its file cannot be read any more: {error}; leave it as it is while the machine runs")]
    Unreadable {
        /// What the host says.
        error: std::io::ErrorKind,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes and this kernel takes {limit} at most; shorten it")]
    CommandLineTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The ACPI tables have a fixed area that limits the number of processors.
    #[error(
        "the ACPI tables of {cpus} processors do not fit into the area for them; configure fewer processors"
    )]
    TooManyCpus {
        /// The processors asked for.
        cpus: u32,
    },
    /// Guest memory refused an access: it does not have the layout of the memory map it was used with.
    #[error("guest memory could not be written while loading: {0}")]
    Memory(#[from] MemoryError),
}
