//! Open files.

use std::os::fd::{AsFd, OwnedFd};

use host::io::{Sources, Targets};
use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Share;
use super::attributes::drop_set_ids;
use super::handle::Handle;
use super::node::Node;

/// What of open(2)'s flags means something for a file that is opened from its node.
pub(super) const KEPT: OFlags = OFlags::RWMODE.union(OFlags::APPEND).union(OFlags::SYNC).union(OFlags::DSYNC);

/// open(2)'s flags as a guest gives them, x86-64's numbers on either side. What is not of use here is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    pub(super) fn kept(self) -> OFlags {
        OFlags::from_bits_retain(self.0) & KEPT
    }

    /// Whether a file that is there is an error.
    pub(super) fn exclusive(self) -> bool {
        OFlags::from_bits_retain(self.0).contains(OFlags::EXCL)
    }

    /// Whether a file that is there loses its contents.
    pub(super) fn truncates(self) -> bool {
        OFlags::from_bits_retain(self.0).contains(OFlags::TRUNC)
    }
}

impl Share {
    /// Opens a file.
    ///
    /// # Errors
    /// As open(2); `ENXIO` for what is neither file nor directory.
    pub fn open_file(&self, node: u64, flags: OpenFlags) -> Result<u64, Errno> {
        let node = self.nodes.get(node)?;
        if node.kind() == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        self.check_open(&node, flags.kept())?;
        let file = self.reopen(&node, flags.kept())?;
        if flags.truncates() && writes(flags.kept()) {
            rustix::fs::ftruncate(&file, 0)?;
        }
        self.add_file(&node, flags, file)
    }

    /// Refuses to open for writing what may not be changed.
    pub(super) fn check_open(&self, node: &Node, flags: OFlags) -> Result<(), Errno> {
        if writes(flags) { self.check_changeable(node) } else { Ok(()) }
    }

    /// Gives an open file a number.
    pub(super) fn add_file(&self, node: &Node, flags: OpenFlags, file: OwnedFd) -> Result<u64, Errno> {
        if writes(flags.kept()) {
            drop_set_ids(&file)?;
        }
        self.handles.add(Handle::new(node.id(), flags.kept(), file))
    }

    /// Closes a file or directory.
    pub fn close(&self, handle: u64) {
        self.handles.remove(handle);
    }

    /// Reads from `offset` on until the end of the file or of the room; returns how many bytes were read.
    ///
    /// # Errors
    /// As preadv(2).
    pub fn read(&self, handle: u64, offset: u64, to: &Targets<'_>) -> Result<u64, Errno> {
        let file = self.handles.file(handle)?;
        to.read_up_to(file.descriptor().as_fd(), offset).map_err(|error| errno(&error))
    }

    /// Writes all of it, from `offset` on, or at the end of a file that was opened for that.
    ///
    /// # Errors
    /// As pwritev(2); some of it may have been written then.
    pub fn write(&self, handle: u64, offset: u64, from: &Sources<'_>) -> Result<(), Errno> {
        let file = self.handles.file(handle)?;
        from.write_to(file.descriptor().as_fd(), offset).map_err(|error| errno(&error))
    }

    /// Makes durable what was written to a file or changed in a directory: its data, and unless `data_only`
    /// everything else of it.
    ///
    /// # Errors
    /// As fsync(2).
    pub fn sync(&self, handle: u64, data_only: bool) -> Result<(), Errno> {
        let file = self.handles.file(handle)?;
        if data_only {
            rustix::fs::fdatasync(file.descriptor())
        } else {
            rustix::fs::fsync(file.descriptor())
        }
    }

    /// Gives a range of a file space, or takes it back.
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn allocate(&self, handle: u64, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        let possible = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let flags = FallocateFlags::from_bits_retain(mode);
        if !possible.contains(flags) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(self.handles.file(handle)?.descriptor(), flags, offset, len)
    }

    /// Where the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) begins.
    ///
    /// # Errors
    /// As lseek(2); `EINVAL` for another way to seek.
    pub fn seek(&self, handle: u64, offset: u64, whence: u32) -> Result<u64, Errno> {
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(self.handles.file(handle)?.descriptor(), to)
    }

    /// Copies up to `len` bytes from a place in one file to one in another; returns how many.
    ///
    /// # Errors
    /// As `copy_file_range(2)`.
    pub fn copy(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, Errno> {
        /// So that no request takes for ever.
        const MOST: usize = 16 << 20;
        let (source, target) = (self.handles.file(from.0)?, self.handles.file(to.0)?);
        let (mut read_at, mut write_at) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(MOST).min(MOST);
        let copied = rustix::fs::copy_file_range(
            source.descriptor(),
            Some(&mut read_at),
            target.descriptor(),
            Some(&mut write_at),
            len,
        )?;
        Ok(copied as u64)
    }
}

/// Whether what is opened so may be written.
fn writes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
