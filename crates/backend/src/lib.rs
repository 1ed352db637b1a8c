//! The host side of devices: what stands behind a disk, a network adapter, a port or a shared directory.
//!
//! Nothing here knows what a guest is: memory comes as ranges ([`host::io`]), which the kernel reads and writes in place.

#![cfg_attr(
    not(test),
    warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)
)]

mod copy;
mod disk;
mod image;
mod layers;
mod limit;
pub mod net;
mod new_image;
mod port;
pub mod qcow2;
mod raw;
pub mod share;
mod volume;
pub mod vsock;
mod zeros;

pub use copy::copy;
pub use disk::{Disk, DiskError, Extent};
pub use image::{Changes, Facts, Format, Image, begins_as_qcow2, check, create, facts, repair};
pub use layers::{Layer, Layers};
pub use new_image::NewImage;
pub use port::Port;
pub use raw::RawDisk;
pub use volume::{Counted, SECTOR, Volume};
