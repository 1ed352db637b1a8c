//! `umbra disk`: images, made, looked at, checked and converted.
//!
//! | module | concept |
//! |---|---|
//! | `args` | what was typed |
//! | `make` | new images, empty or copied, which are there whole or not at all |
//! | `look` | what an image says of itself |
//! | `check` | whether an image is in order, and what to do if not |

pub(crate) mod args;
mod check;
mod look;
mod make;

use anyhow::{Result, ensure};
use backend::Image;
use spec::{DiskBus, DiskChanges, DiskSpec};

use crate::status::Status;
use args::DiskWhat;

/// Does what was asked for.
///
/// # Errors
/// If it cannot be done.
pub(crate) fn run(what: &DiskWhat) -> Result<Status> {
    match what {
        DiskWhat::Create(args) => make::create(args),
        DiskWhat::Info(args) => look::info(args),
        DiskWhat::Check(args) => check::run(args),
        DiskWhat::Convert(args) => make::convert(args),
    }
}

/// An image that is only read, of which just its format and its backing files' directory may have been said.
fn image(disk: &DiskSpec) -> Result<Image> {
    let DiskSpec { changes, bus, ops, rate, .. } = disk;
    let plain =
        *changes == DiskChanges::Made && *bus == DiskBus::default() && ops.is_none() && rate.is_none();
    ensure!(plain, "'{disk}': of an image only ',format=raw|qcow2' and ',backing=DIR' can be said here");
    Ok(vm::disk_image(&DiskSpec { changes: DiskChanges::Refused, ..disk.clone() }))
}
