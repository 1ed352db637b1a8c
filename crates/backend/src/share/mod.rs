//! A directory of the host, shared with a guest: what stands behind a file-sharing device.
//!
//! # Scheme
//! A guest names files by *nodes*, numbers that it got from [`Share::lookup`] of a name in another node, beginning with
//! the directory itself ([`ROOT`]). A node is a descriptor opened with `O_PATH` ([`node`]): it stays the same file
//! whatever becomes of its name. What is read or written is opened from the node ([`handle`]).
//!
//! # Why a guest cannot leave the directory
//! Paths never reach the host's kernel. Every operation that takes a name takes *one* ([`Name`]: no slash, neither `.` nor
//! `..`), relative to the descriptor of a directory, and with `O_NOFOLLOW` or its equivalent. Such a name leads to an
//! entry of that directory, whatever somebody else renames or replaces meanwhile: there is no second component to race
//! with. Symbolic links are read and handed to the guest, which follows them itself, name by name. A node becomes an open
//! file through `/proc/self/fd`, whose entry is the node itself and no name at all.
//!
//! - Only regular files and directories are ever opened; devices, pipes and sockets are the guest's kernel's own business,
//!   and device nodes are not made.
//! - Other file systems that are mounted below the directory are part of it, but those that the kernel makes up (proc,
//!   sysfs, devpts and their kin, [`mounts`]): through them a guest could read this very process. Their mount points are
//!   shown as empty directories.
//! - Set-user-ID and set-group-ID bits are never set on files, and are taken from a file that is opened for writing:
//!   a guest must not make programs that give rights on the host.
//! - A directory that somebody moves out of the shared one stays known to a guest that has looked it up.
//!
//! # Bounds
//! A guest decides how many nodes it knows and files it has open; [`node::MOST`] and a share of the process's descriptors
//! bound them. Nodes beyond the latter lose their descriptors and are found again by name and identity when they are used.
//!
//! # Rights
//! Whatever the process may do. Attributes are shown as the host has them, and a guest's kernel decides by them what its
//! programs may do; who makes a file owns it if the process may give files away, else the process's user does.

mod attributes;
mod change;
mod directory;
mod file;
mod handle;
mod mounts;
mod name;
mod node;
mod saved;
#[cfg(test)]
mod tests;
mod xattr;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

pub use attributes::{Attributes, Capacity, SetAttributes, SetTime};
pub use change::{Owner, Rename};
pub use directory::Entry;
pub use file::OpenFlags;
pub use name::Name;
pub use rustix::io::Errno;
pub use saved::SavedShare;

use handle::Handles;
use node::{Node, Nodes};

/// The shared directory's node.
pub const ROOT: u64 = 1;

/// What guests may do with a shared directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look at it.
    ReadOnly,
    /// Change it.
    ReadWrite,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be opened.
    #[error("cannot share '{}'", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is something else.
    #[error("cannot share '{}', which is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// It belongs to the kernel.
    #[error("cannot share '{}', which is a view of the host's kernel: share a directory of files", .0.display())]
    Kernel(PathBuf),
    /// There are too many files open.
    #[error("no descriptor is left for a shared directory: raise the limit of open files (ulimit -n)")]
    Descriptors {
        /// What the kernel said.
        source: io::Error,
    },
    /// Nodes cannot be opened.
    #[error("cannot open /proc/self/fd, which sharing directories needs: mount proc on /proc")]
    NoProc {
        /// What the kernel said.
        source: io::Error,
    },
}

/// A node that a guest has looked up, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The node. The guest owes a [`Share::forget`] for it.
    pub node: u64,
    /// What it is.
    pub attributes: Attributes,
}

/// A shared directory. Any thread may call any method at any time.
#[derive(Debug)]
pub struct Share {
    access: Access,
    /// Whether files may be given away.
    privileged: bool,
    /// `/proc/self/fd`.
    own_descriptors: OwnedFd,
    nodes: Nodes,
    handles: Handles,
}

impl Share {
    /// Shares a directory. Raises the process's limit of open files as far as it may be raised; a half of that is divided
    /// among the process's `shares`, of which this is one.
    ///
    /// # Errors
    /// If it cannot be opened, is no directory, or none that may be shared.
    pub fn open(path: &Path, access: Access, shares: usize) -> Result<Self, ShareError> {
        let opening = |source: Errno| ShareError::Open { path: path.to_owned(), source: source.into() };
        let root =
            rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(opening)?;
        let status = attributes::status(&root).map_err(opening)?;
        if attributes::kind(&status) != FileType::Directory {
            return Err(ShareError::NotADirectory(path.to_owned()));
        }
        if mounts::belongs_to_kernel(&root).map_err(opening)? {
            return Err(ShareError::Kernel(path.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own_descriptors = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty())
            .map_err(|source| ShareError::NoProc { source: source.into() })?;
        // For nodes, and as many for open files.
        let descriptors = raise_limit() / 4 / shares.max(1);
        Ok(Self {
            access,
            privileged: rustix::process::geteuid().is_root(),
            own_descriptors,
            nodes: Nodes::new(root, &status, descriptors),
            handles: Handles::new(descriptors),
        })
    }

    /// Whether guests may only look at it.
    pub fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// The directory, once more.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn root(&self) -> Result<OwnedFd, ShareError> {
        self.nodes.root().map_err(|source| ShareError::Descriptors { source })
    }

    /// Forgets every node and closes every file: the guest begins anew.
    pub fn clear(&self) {
        self.handles.clear();
        self.nodes.clear();
    }

    /// The node that a name in a directory leads to.
    ///
    /// # Errors
    /// As openat(2).
    pub fn lookup(&self, directory: u64, name: &Name) -> Result<Found, Errno> {
        let parent = self.nodes.get(directory)?;
        if parent.is_covered() {
            return Err(Errno::NOENT);
        }
        let path = node::open_child(&*self.nodes.descriptor(&parent)?, name)?;
        self.enter(&parent, name, path)
    }

    /// Takes `count` look-ups of a node back.
    pub fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
    }

    /// A symbolic link's text.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn read_link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.get(node)?;
        let text = rustix::fs::readlinkat(&*self.nodes.descriptor(&node)?, c"", Vec::new())?;
        Ok(text.into_bytes())
    }

    /// Whether the process may do `mask` (`R_OK`, `W_OK`, `X_OK`) with a node.
    ///
    /// # Errors
    /// As faccessat(2).
    pub fn check_access(&self, node: u64, mask: u32) -> Result<(), Errno> {
        let wanted = rustix::fs::Access::from_bits(mask).ok_or(Errno::INVAL)?;
        let node = self.nodes.get(node)?;
        if wanted.contains(rustix::fs::Access::WRITE_OK) {
            self.check_changeable(&node)?;
        }
        let path = self.nodes.descriptor(&node)?;
        rustix::fs::accessat(&self.own_descriptors, number(&path), wanted, AtFlags::EACCESS)
    }

    /// A node for what `path` is, found as `name` in `parent`.
    fn enter(&self, parent: &Node, name: &Name, path: OwnedFd) -> Result<Found, Errno> {
        let status = attributes::status(&path)?;
        let covered = parent.is_covered()
            || attributes::device(&status) != parent.device() && mounts::belongs_to_kernel(&path)?;
        let node = self.nodes.enter(parent, name, path, &status, covered)?;
        Ok(Found { node, attributes: self.nodes.shown(&status) })
    }

    /// Refuses to change what is only shown.
    fn check_changeable(&self, node: &Node) -> Result<(), Errno> {
        if self.access == Access::ReadOnly || node.is_covered() { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Opens a node for what it is, if it is something that may be opened.
    ///
    /// # Errors
    /// `ENXIO` if it is not.
    fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        // Of what belongs to the kernel, only directories are shown, as empty.
        let may_be_opened = match node.kind() {
            FileType::Directory => true,
            FileType::RegularFile => !node.is_covered(),
            _ => false,
        };
        if !may_be_opened {
            return Err(Errno::NXIO);
        }
        let path = self.nodes.descriptor(node)?;
        // Never waits, whatever holds a lease on the file.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(&self.own_descriptors, number(&path), flags, Mode::empty())
    }
}

/// A descriptor's name in `/proc/self/fd`.
fn number(descriptor: &OwnedFd) -> String {
    descriptor.as_raw_fd().to_string()
}

/// Raises the limit of open files to what the process may have; returns what it is then.
fn raise_limit() -> usize {
    /// What more than a million would be used for is a guest's mischief.
    const ENOUGH: u64 = 1 << 20;
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if limit.current.is_some_and(|current| current < most) {
        let before = limit.current;
        limit.current = Some(most);
        if setrlimit(Resource::Nofile, limit).is_err() {
            limit.current = before;
        }
    }
    usize::try_from(limit.current.unwrap_or(most).min(most)).unwrap_or(usize::MAX)
}
