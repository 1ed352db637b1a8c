//! The description of a VM: what it is made of, before anything of it exists.
//!
//! A [`VmSpec`] is pure data. Every field has a type that can only hold what makes sense (parse, don't validate), so
//! whoever receives a description has nothing left to check but what depends on files and on the host. The check
//! stands beside its type, and its error is one sentence: what is wrong, where, and what to do instead.
//!
//! No I/O happens here: paths are names until a front door opens them.

mod choice;
mod cpus;
mod debian;
mod disk;
mod engine;
mod mmu;
mod name;
mod net;
mod share;
mod size;
mod slots;
mod translator;
mod vsock;

use std::path::PathBuf;

use x86::cpuid::CpuRequest;

pub use cpus::CpuCount;
pub use debian::{DebianSpec, PackageName};
pub use disk::{DiskBus, DiskChanges, DiskFormat, DiskSpec};
pub use engine::EngineChoice;
pub use mmu::MmuChoice;
pub use name::Name;
pub use net::{NetQueues, NetSpec, PortKind, PortSpec, TapNetSpec, UserNetSpec};
pub use share::{ShareSpec, VolumeSpec};
pub use size::{ByteSize, MemorySize};
pub use slots::{SlotCount, SlotName};
pub use translator::{CodeCacheSize, TranslatorSpec};
pub use vsock::VsockSpec;

/// A VM, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// What people call it; also the guest's host name where Umbra makes the guest's root file system.
    pub name: Name,
    /// How much RAM it has.
    pub memory: MemorySize,
    /// How many virtual CPUs.
    pub cpus: CpuCount,
    /// Which processor it sees.
    pub cpu: CpuRequest,
    /// What executes its instructions.
    pub engine: EngineChoice,
    /// How it does that, if it translates.
    pub translator: TranslatorSpec,
    /// How its addresses become machine frames.
    pub mmu: MmuChoice,
    /// What it boots.
    pub boot: BootSpec,
    /// Its disks, at most [`DiskSpec::MOST`], in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Directories that it shares with the host, at most [`ShareSpec::MOST`].
    pub shares: Vec<ShareSpec>,
    /// Its network.
    pub net: NetSpec,
    /// Ports of the host that lead into it, by its user-mode network.
    pub ports: Vec<PortSpec>,
    /// Its socket device, if it has one.
    pub vsock: Option<VsockSpec>,
    /// Whether it has a memory balloon, and so gives back what it does not use.
    pub balloon: bool,
    /// How many devices can be plugged in while it runs.
    pub slots: SlotCount,
    /// Whether port 0xf4 ends the VM with a status that the guest chooses.
    pub debug_exit: bool,
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSpec {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Initial RAM disks, or Multiboot modules, in order.
    pub initrds: Vec<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A description that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not a number with a unit.
    #[error("'{text}' is not a size: write a number and a unit (K, M, G or T), for example 512M")]
    SizeSyntax {
        /// What was given.
        text: String,
    },
    /// A number alone could mean bytes or megabytes.
    #[error("size '{text}' has no unit: write {text}M for mebibytes or {text}G for gibibytes")]
    SizeWithoutUnit {
        /// What was given.
        text: String,
    },
    /// More bytes than can be counted, or a fraction of a byte.
    #[error(
        "size '{text}' is not a whole number of bytes below 16 EiB: use a smaller number or another unit"
    )]
    SizeRange {
        /// What was given.
        text: String,
    },
    /// Less RAM than any guest can use.
    #[error("{size} of memory is too little: a VM has at least {min}, and Linux wants 128M or more")]
    MemoryTooSmall {
        /// What was asked for.
        size: ByteSize,
        /// The least.
        min: ByteSize,
    },
    /// More RAM than guest-physical addresses reach.
    #[error("{size} of memory is too much: a VM has at most {max}")]
    MemoryTooLarge {
        /// What was asked for.
        size: ByteSize,
        /// The most.
        max: ByteSize,
    },
    /// RAM comes in pages.
    #[error("{size} of memory is not a multiple of 4 KiB: use a whole number of K divisible by 4, or M or G")]
    MemoryNotPages {
        /// What was asked for.
        size: ByteSize,
    },
    /// Not a count.
    #[error("'{text}' is not a number of CPUs: write a whole number, for example 1")]
    CpusSyntax {
        /// What was given.
        text: String,
    },
    /// No CPU, or too many.
    #[error("{count} CPUs are not possible: a VM has from 1 to {max} CPUs", max = CpuCount::MAX)]
    CpusRange {
        /// What was asked for.
        count: u32,
    },
    /// Not a count of slots.
    #[error("'{text}' is not a number of slots: a VM has 0 to {max}", max = SlotCount::MAX)]
    Slots {
        /// What was given.
        text: String,
    },
    /// Not a slot's name.
    #[error("'{text}' names no slot: 'umbra inspect VM' lists them as slot1, slot2 and so on")]
    SlotName {
        /// What was given.
        text: String,
    },
    /// An engine nobody knows.
    #[error("engine '{text}' does not exist: use auto, bt, interp or lockstep")]
    UnknownEngine {
        /// What was given.
        text: String,
    },
    /// A technique nobody knows.
    #[error(
        "MMU technique '{text}' does not exist: use walk, vtlb, lazy, eager, nested, nested-2m or nested-4k"
    )]
    UnknownMmu {
        /// What was given.
        text: String,
    },
    /// A code cache that nothing fits into, or in which jumps do not reach everywhere.
    #[error("a code cache of {size} is not possible: it has {min} to {max}")]
    CodeCache {
        /// What was asked for.
        size: ByteSize,
        /// The least.
        min: ByteSize,
        /// The most.
        max: ByteSize,
    },
    /// A disk without a file.
    #[error("disk '{text}' names no file: write --disk FILE or --disk FILE,ro")]
    DiskWithoutFile {
        /// What was given.
        text: String,
    },
    /// A disk with an option nobody knows.
    #[error(
        "disk '{text}' cannot have the option '{option}': there are ro or overlay or overlay=FILE, format=raw or format=qcow2, backing=DIR, ops=N and rate=SIZE; write a comma in a file's name twice"
    )]
    Disk {
        /// What was given.
        text: String,
        /// The option.
        option: String,
    },
    /// A shared directory that is not two paths.
    #[error(
        "'{text}' does not share a directory: write HOST:GUEST or HOST:GUEST:ro, with GUEST from the root, for example .:/work"
    )]
    Volume {
        /// What was given.
        text: String,
    },
    /// A shared directory in the place of the root.
    #[error(
        "'{text}' shares a directory as the guest's root, which SOURCE is: write a GUEST below the root, for example .:/work"
    )]
    VolumeOverRoot {
        /// What was given.
        text: String,
    },
    /// Not a Debian suite.
    #[error(
        "'{text}' names no suite of Debian: write debian, or debian: and a codename, for example debian:bookworm"
    )]
    Suite {
        /// What was given.
        text: String,
    },
    /// Not a package.
    #[error("'{text}' cannot be a package: write names as apt-get install takes them, for example gcc,make")]
    Package {
        /// What was given.
        text: String,
    },
    /// A network nobody knows.
    #[error(
        "network '{text}' does not exist: use none, user with any of ',dns=IP[:PORT]', ',loopback=off', ',rate=SIZE' and ',queues=N' (1 to 8), or tap=DEVICE with any of ',mac=ADDRESS', ',rate=SIZE' and ',queues=N'"
    )]
    Net {
        /// What was given.
        text: String,
    },
    /// Not a port to forward.
    #[error("'{text}' forwards no port: write [IP:]HOST:GUEST, for example 8080:80 or 0.0.0.0:5353:53/udp")]
    Port {
        /// What was given.
        text: String,
    },
    /// A name that would not do as a host name.
    #[error(
        "'{text}' cannot be a VM's name: use 1 to 63 letters, digits and hyphens, with no hyphen first or last"
    )]
    Name {
        /// What was given.
        text: String,
    },
}
