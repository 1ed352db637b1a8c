//! What is known of a file: attributes, and their changes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, Uid,
};
use rustix::fs::{UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::node::Node;
use super::{Share, number};

/// A file's attributes, as stat(2) has them. Times are seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The file's number, the same for two names of one file, and different for different files.
    pub inode: u64,
    /// Type and permissions.
    pub mode: u32,
    /// How many names it has.
    pub links: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Which device it stands for: major and minor number.
    pub device: (u32, u32),
    /// Its size in bytes.
    pub size: u64,
    /// What it takes up, in units of 512 bytes.
    pub blocks: u64,
    /// The unit in which it likes to be read.
    pub block_size: u32,
    /// When it was read.
    pub accessed: (i64, u32),
    /// When its contents changed.
    pub modified: (i64, u32),
    /// When anything of it changed.
    pub changed: (i64, u32),
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The host's present.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// Attributes to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permissions.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The size in bytes.
    pub size: Option<u64>,
    /// When it was read.
    pub accessed: Option<SetTime>,
    /// When its contents changed.
    pub modified: Option<SetTime>,
}

/// How much room a file system has, as statvfs(3) has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// The unit of block counts, in bytes.
    pub fragment: u64,
    /// The unit in which it likes to be used, in bytes.
    pub block: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for users without privileges.
    pub available: u64,
    /// Files that there can be.
    pub files: u64,
    /// Of which there are not.
    pub free_files: u64,
    /// The longest name, in bytes.
    pub name_max: u64,
}

/// Everything that [`Attributes`] and a node's identity are made of.
pub(super) fn status(file: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// The type of a file.
pub(super) fn kind(status: &Statx) -> FileType {
    FileType::from_raw_mode(status.stx_mode.into())
}

/// The file system that a file is on.
pub(super) fn device(status: &Statx) -> (u32, u32) {
    (status.stx_dev_major, status.stx_dev_minor)
}

impl Attributes {
    /// From what the host says, with another file number.
    pub(super) fn new(status: &Statx, inode: u64) -> Self {
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Self {
            inode,
            mode: status.stx_mode.into(),
            links: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            device: (status.stx_rdev_major, status.stx_rdev_minor),
            size: status.stx_size,
            blocks: status.stx_blocks,
            block_size: status.stx_blksize,
            accessed: time(status.stx_atime),
            modified: time(status.stx_mtime),
            changed: time(status.stx_ctime),
        }
    }
}

/// The permissions that a file may be given: set-ID bits are for directories only.
pub(super) fn permissions(kind: FileType, mode: u32) -> Mode {
    let kept = if kind == FileType::Directory { 0o7777 } else { 0o1777 };
    Mode::from_raw_mode(mode & kept)
}

/// A user, for chown(2), to which this number means that nothing changes.
pub(super) fn user(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

/// A group, likewise.
pub(super) fn group(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

/// Takes the set-ID bits from a file that is going to be written.
pub(super) fn drop_set_ids(file: &OwnedFd) -> Result<(), Errno> {
    let status = status(file)?;
    let mode = u32::from(status.stx_mode);
    if mode & 0o6000 != 0 && kind(&status) == FileType::RegularFile {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o1777))?;
    }
    Ok(())
}

impl Share {
    /// A node's attributes; of a file that is open, those of that.
    ///
    /// # Errors
    /// As statx(2).
    pub fn attributes(&self, node: u64, handle: Option<u64>) -> Result<Attributes, Errno> {
        let status = match handle {
            Some(handle) => status(self.handles.file(handle)?.descriptor())?,
            None => status(&*self.nodes.descriptor(&*self.nodes.get(node)?)?)?,
        };
        Ok(self.nodes.shown(&status))
    }

    /// Changes attributes, all or (if it fails) some, and returns what they are then.
    ///
    /// # Errors
    /// As fchmod(2), fchown(2), ftruncate(2) and utimensat(2); `EROFS` if nothing may be changed.
    pub fn set_attributes(
        &self,
        node: u64,
        handle: Option<u64>,
        set: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        let node = self.nodes.get(node)?;
        self.check_changeable(&node)?;
        let path = self.nodes.descriptor(&node)?;
        if let Some(mode) = set.mode {
            if node.kind() == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = permissions(node.kind(), mode);
            rustix::fs::chmodat(&self.own_descriptors, number(&path), mode, AtFlags::empty())?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.and_then(user), set.gid.and_then(group));
            rustix::fs::chownat(&*path, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = set.size {
            self.set_size(&node, handle, size)?;
        }
        if set.accessed.is_some() || set.modified.is_some() {
            let times =
                Timestamps { last_access: timespec(set.accessed), last_modification: timespec(set.modified) };
            rustix::fs::utimensat(&*path, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(self.nodes.shown(&status(&*path)?))
    }

    fn set_size(&self, node: &Node, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        if node.kind() != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        match handle {
            Some(handle) => rustix::fs::ftruncate(self.handles.file(handle)?.descriptor(), size),
            None => {
                let file = self.reopen(node, OFlags::WRONLY)?;
                drop_set_ids(&file)?;
                rustix::fs::ftruncate(&file, size)
            }
        }
    }

    /// How much room there is where a node is.
    ///
    /// # Errors
    /// As fstatvfs(3).
    pub fn capacity(&self, node: u64) -> Result<Capacity, Errno> {
        let node = self.nodes.get(node)?;
        let found = rustix::fs::fstatvfs(&*self.nodes.descriptor(&node)?)?;
        Ok(Capacity {
            fragment: found.f_frsize,
            block: found.f_bsize,
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            free_files: found.f_ffree,
            name_max: found.f_namemax,
        })
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        // What is no time becomes one, so that it is not one of the two above.
        Some(SetTime::At(seconds, nanoseconds)) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.min(999_999_999).into() }
        }
    }
}
