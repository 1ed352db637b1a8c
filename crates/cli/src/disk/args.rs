//! What was typed after `umbra disk`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use spec::{ByteSize, DiskSpec};

use crate::help;

/// Make, look at, check and convert disk images
#[derive(Debug, ClapArgs)]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    pub(crate) what: DiskWhat,
}

/// What to do with an image.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskWhat {
    Create(CreateArgs),
    Info(InfoArgs),
    Check(CheckArgs),
    Convert(ConvertArgs),
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Byte for byte; zeros take no room where the file system knows holes
    Raw,
    /// QEMU's: grows as it is written, and can be made upon another image
    Qcow2,
}

/// Make an empty disk image
///
/// It is a disk of zeros, which takes no room until it is written; or, with --backing, one that begins as another image and holds
/// what is changed. That other image must not be written any more.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DISK_CREATE)]
pub(crate) struct CreateArgs {
    /// The new image, which must not exist; in the format qcow2 if its name ends in .qcow2, else raw
    pub(crate) file: PathBuf,

    /// The disk's size, with a unit: K, M, G or T; with --backing the same as that image's unless given
    #[arg(required_unless_present = "backing")]
    pub(crate) size: Option<ByteSize>,

    /// The format, whatever the name says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<ImageFormat>,

    /// The image that it is made upon; the new one is qcow2 then
    ///
    /// What lies in the new image's directory, or below, is named relative to it, so that both can be moved together. Images
    /// elsewhere are used only where that is permitted: --disk FILE,backing=DIR.
    #[arg(long, value_name = "IMAGE[,format=FORMAT]")]
    pub(crate) backing: Option<DiskSpec>,
}

/// Say what is known of a disk image
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DISK_INFO)]
pub(crate) struct InfoArgs {
    /// The image; qcow2 if its name ends in .qcow2 or with ',format=qcow2', else raw
    #[arg(value_name = "IMAGE[,format=FORMAT]")]
    pub(crate) image: DiskSpec,
}

/// Check whether a qcow2 image is in order
///
/// Its tables say which clusters of the file are in use, and its refcounts say so again. A cluster that is counted and not used is
/// lost space (a leak), which an image has that was not closed; one that is used and not counted may lose what is in it
/// as soon as the image is written.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DISK_CHECK)]
pub(crate) struct CheckArgs {
    /// The image
    pub(crate) file: PathBuf,

    /// Make the refcounts right, if nothing else is wrong
    #[arg(long)]
    pub(crate) repair: bool,
}

/// Copy a disk image into a new one, of another format if wanted
///
/// The new image holds all that is on the disk, also what the old one is made upon. Zeros take no room in it.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DISK_CONVERT)]
pub(crate) struct ConvertArgs {
    /// The image to be copied, with ',format=FORMAT' and ',backing=DIR' as with --disk
    #[arg(value_name = "IMAGE[,OPTION…]")]
    pub(crate) from: DiskSpec,

    /// The new image, which must not exist; in the format qcow2 if its name ends in .qcow2, else raw
    pub(crate) to: PathBuf,

    /// The new image's format, whatever its name says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<ImageFormat>,
}
