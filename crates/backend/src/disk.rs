//! What a disk is to a device.

use std::io;
use std::path::PathBuf;

use host::io::{Sources, Targets};

use crate::qcow2::Problem;

/// A disk. Any thread may call any method at any time. Offsets and lengths are in bytes, and within [`Disk::bytes`]: callers
/// check that, since it is their guest's mistake if they are not.
pub trait Disk: Send + Sync {
    /// Its size, which never changes.
    fn bytes(&self) -> u64;

    /// Whether it refuses to be changed.
    fn is_read_only(&self) -> bool;

    /// Reads.
    ///
    /// # Errors
    /// If the host cannot; part of it may have been read then.
    fn read(&self, offset: u64, to: &Targets<'_>) -> io::Result<()>;

    /// What is known beforehand of `most` bytes from `offset` on: how many of them are zeros that need not be read, or are not
    /// known to be.
    ///
    /// # Errors
    /// If the host cannot tell.
    fn extent(&self, offset: u64, most: u64) -> io::Result<Extent>;

    /// Writes. What was written survives the host's failure only after [`Disk::flush`].
    ///
    /// # Errors
    /// If the host cannot, or the disk is read-only; part of it may have been written then.
    fn write(&self, offset: u64, from: &Sources<'_>) -> io::Result<()>;

    /// Makes durable what was written by all writes that had returned before.
    ///
    /// # Errors
    /// If the host cannot.
    fn flush(&self) -> io::Result<()>;

    /// Says that a range's contents are of no use any more. A hint: what is read there afterwards is undefined.
    ///
    /// # Errors
    /// As [`Disk::write`]; never because the host cannot give the space back.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range zeros, and gives the space back if `unmap`, where the host can.
    ///
    /// # Errors
    /// As [`Disk::write`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// A part of a disk of which one thing is known. It is not empty unless it was asked for as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, in bytes.
    pub len: u64,
    /// Whether it is zeros.
    pub zeros: bool,
}

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open disk image '{}'{}", path.display(), hint(source, *.read_only))]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether it was to be read only.
        read_only: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is something else.
    #[error("'{}' is not a disk image: give a file or a block device", .0.display())]
    NotAnImage(PathBuf),
    /// Its size is no disk's.
    #[error("disk image '{}' has {bytes} bytes, but a disk is a multiple of 512 bytes and not empty: make one with 'umbra disk create FILE 1G'", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is a qcow2 image that cannot be used.
    #[error("disk image '{}' cannot be used: {problem}", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is the matter with it.
        problem: Problem,
    },
    /// It looks like one format and is named like another.
    #[error(
        "disk image '{}' begins as a qcow2 image but is not named as one, and a guest can write that to a raw disk: say which it is, with ',format=qcow2' or ',format=raw'",
        .0.display()
    )]
    FormatUnsaid(PathBuf),
    /// It names a file that the user has not permitted.
    #[error(
        "disk image '{}' is made upon '{}', which is not in its directory: permit that with ',backing={}' if you trust the image",
        image.display(), backing.display(), backing.parent().unwrap_or(backing).display()
    )]
    BackingElsewhere {
        /// The image.
        image: PathBuf,
        /// What it names.
        backing: PathBuf,
    },
    /// It is made upon an image of another format.
    #[error("disk image '{}' is made upon an image in the format '{format}': only raw and qcow2 are known", image.display())]
    BackingFormat {
        /// The image.
        image: PathBuf,
        /// The format.
        format: String,
    },
    /// A chain of images leads back to itself.
    #[error("disk image '{}' is made upon itself, directly or by others: make it anew from its parts", .0.display())]
    ChainLoop(PathBuf),
    /// A chain of images has no end in sight.
    #[error(
        "disk image '{}' is at the end of a chain of more than {most} images: merge some, with 'qemu-img commit' or 'qemu-img convert'",
        path.display()
    )]
    ChainTooLong {
        /// The first image that was too many.
        path: PathBuf,
        /// The most.
        most: usize,
    },
    /// There is no place for changes.
    #[error("cannot make a place for a disk's changes at '{}'", path.display())]
    Overlay {
        /// Where it was to be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Changes to another image.
    #[error(
        "'{}' does not hold changes to '{}': name another file for them, which will be made",
        overlay.display(), image.display()
    )]
    OverlayOfAnother {
        /// What holds changes.
        overlay: PathBuf,
        /// The image.
        image: PathBuf,
    },
    /// Somebody else has it.
    #[error(
        "disk image '{}' is in use by a VM, and only those that leave it as it is share an image: stop that VM, or start it with ',ro' or ',overlay'",
        .0.display()
    )]
    InUse(PathBuf),
}

/// What to do about an image that cannot be opened.
fn hint(error: &io::Error, read_only: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound if !read_only => {
            ": make it first, for example with 'umbra disk create FILE 1G'"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            " for writing: add ',ro' to only read it"
        }
        _ => "",
    }
}
