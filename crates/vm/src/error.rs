//! Why a VM could not be built, started or asked.

use backend::DiskError;
use backend::net::user::UserNetError;
use backend::share::ShareError;
use backend::vsock::VsockError;
use bus::RouterError;
use engine::EngineError;
use firmware::LoadError;
use memory::MemoryError;
use spec::{ByteSize, SlotName};
use state::StateError;
use x86::cpuid::CpuModelError;

/// What went wrong, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The guest's RAM cannot be had.
    #[error("the guest's memory cannot be made: {0}")]
    Memory(#[from] MemoryError),
    /// The processor asked for cannot be had here.
    #[error(transparent)]
    Cpu(#[from] CpuModelError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Two devices are in each other's way.
    #[error("the machine cannot be assembled: {0}")]
    Devices(#[from] RouterError),
    /// The kernel cannot be loaded.
    #[error("{file}: {error}")]
    Kernel {
        /// The kernel's file.
        file: String,
        /// Why.
        error: LoadError,
    },
    /// A disk's image cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// More disks than there is room for.
    #[error("{count} disks are too many: a VM has at most {most}")]
    TooManyDisks {
        /// How many were asked for.
        count: usize,
        /// The most.
        most: usize,
    },
    /// A directory cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The socket device cannot be had.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The host has no descriptors for a device.
    #[error("the host has no descriptors left for a device: raise the limit of open files (ulimit -n)")]
    Descriptors(#[source] std::io::Error),
    /// More shared directories than there may be.
    #[error("{count} shared directories are too many: a VM has at most {most}")]
    TooManyShares {
        /// How many were asked for.
        count: usize,
        /// The most.
        most: usize,
    },
    /// More devices than there is room for.
    #[error("{count} devices are too many: disks, shared directories and slots together are at most {most}")]
    TooManyDevices {
        /// How many were asked for.
        count: usize,
        /// The most.
        most: usize,
    },
    /// The network cannot be had.
    #[error(transparent)]
    Network(#[from] UserNetError),
    /// A TAP device cannot be had.
    #[error("{}", tap_refusal(.device, .source))]
    Tap {
        /// The device.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// The host has no descriptors for ports.
    #[error("the guest's ports cannot be made: {0}")]
    Ports(std::io::Error),
    /// The memory of a VM without a balloon is what it is.
    #[error("the VM has no balloon, so its memory cannot be changed: start it without --no-balloon")]
    NoBalloon,
    /// Nobody in the guest fills the balloon.
    #[error(
        "the guest has no driver for its balloon (yet): wait until it has booted, or load virtio_balloon there"
    )]
    BalloonAlone,
    /// More memory than there is.
    #[error(
        "the VM has {most} of memory and cannot have {wanted}: start it with a larger --memory, which can be less when it runs"
    )]
    MoreMemory {
        /// What was asked for.
        wanted: ByteSize,
        /// What there is.
        most: ByteSize,
    },
    /// Nothing can be plugged in.
    #[error("the VM has no slots for devices: start it with --slots N")]
    NoSlots,
    /// Every slot has a device.
    #[error(
        "the VM's slots ({count}) are taken: unplug a device, or start the VM with more ('umbra inspect' lists them)"
    )]
    SlotsTaken {
        /// How many there are.
        count: usize,
    },
    /// Nothing is there to be unplugged.
    #[error("there is no device in {slot}: 'umbra inspect' lists what there is")]
    SlotEmpty {
        /// Where nothing is.
        slot: SlotName,
    },
    /// The process of a VM that was to have no network may not make connections.
    #[error(
        "the VM was started with --net none, and its process may make no connections: plug in tap=DEVICE, or start it with another network"
    )]
    NetworkForbidden,
    /// The host has no thread for us.
    #[error("the host gives no thread: {0}")]
    Thread(std::io::Error),
    /// The VM has stopped.
    #[error("the VM has stopped")]
    Stopped,
    /// Only a paused VM can be saved.
    #[error("the VM is running; pause it first")]
    NotPaused,
    /// A component does not take its saved state.
    #[error("the saved state cannot be restored: {0}")]
    State(#[from] StateError),
    /// The saved state is of another machine.
    #[error("the saved state is of another machine: {0}")]
    OtherMachine(String),
}

/// Why a TAP device cannot be had, and what to do about it.
fn tap_refusal(device: &str, why: &std::io::Error) -> String {
    use std::io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, ResourceBusy};
    let make = format!("'ip tuntap add dev {device} mode tap user \"$USER\"', as root, makes one for you");
    match why.kind() {
        NotFound => format!("there is no TAP device '{device}': {make}"),
        PermissionDenied => format!("the TAP device '{device}' is not yours to open: {make}"),
        ResourceBusy => {
            format!("the TAP device '{device}' is in use by another program: give this VM one of its own")
        }
        InvalidInput => format!("'{device}' is no TAP device with one queue: {make}"),
        _ => format!("the TAP device '{device}' cannot be opened: {why}"),
    }
}
