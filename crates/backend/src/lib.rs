//! The host side of devices: what stands behind a disk, a network adapter, a port or a shared directory.
//!
//! Nothing here knows what a guest is: memory comes as ranges ([`host::io`]), which the kernel reads and writes in place.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod disk;
pub mod net;
mod port;
mod raw;
pub mod share;

pub use disk::{Disk, DiskError};
pub use port::Port;
pub use raw::RawDisk;
