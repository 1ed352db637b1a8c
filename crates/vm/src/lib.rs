//! Assembles a machine from its description and drives its life.
//!
//! | module | concept |
//! |---|---|
//! | `build` | from a description to a machine, in named stages |
//! | `engines` | engines by their choice, and what is chosen where nobody does |
//! | `chips` | every chip, made and wired |
//! | `functions` | what is on the PCI bus, and the threads that serve it |
//! | `attachment`, `slots` | devices that are plugged in while the VM runs; slots for them, and their threads |
//! | `machine` | the built machine, and what can be done to all of it |
//! | `platform` | the machine as a vCPU sees it |
//! | `driver` | the one driver of the VM's states |
//! | `handle` | how the world sees a VM |
//! | `host_share` | what the guest is told of its vCPUs' share of the host |
//! | `vcpu_thread`, `gate` | the thread of a vCPU; when vCPUs may run and where idle ones wait |
//! | `clock`, `alarms` | guest time and TSC, which stop with the VM; the thread that calls devices when their time has come |
//! | `events` | what the machine tells its driver |
//! | `serial`, `ports` | the host ends of the serial ports, and of the ports of a virtio console |
//! | `dump` | what a processor looked like when it could not go on |

mod alarms;
mod attachment;
mod build;
mod chips;
mod clock;
mod driver;
mod dump;
mod engines;
mod error;
mod events;
mod functions;
mod gate;
mod handle;
mod host_share;
mod image;
mod machine;
mod meter;
mod platform;
mod ports;
mod saved_ram;
mod serial;
mod slots;
mod vcpu_thread;

pub use attachment::Attachment;
pub use build::{Builder, Opened};
pub use dump::Dump;
pub use engine::Counter;
pub use engines::{Automatic, automatic};
pub use error::VmError;
pub use functions::{disk_image, host_resolvers};
pub use handle::{OnReset, State, Stats, Stopped, VcpuFigures, VmHandle};
pub use image::Image;
pub use machine::{BootImages, Initrd, Machine};
pub use ports::PortInput;
pub use serial::{SerialInput, SerialSink};
pub use slots::{SlotFigures, SlotState};
pub use virtio::balloon::{Figures as BalloonFigures, Statistic};
