//! Changes of the tree: what is made, removed, renamed and linked.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::attributes::{group, kind, permissions, status, user};
use super::node::{Node, open_child};
use super::{Found, Name, OpenFlags, Share, number};

/// Who makes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// How to rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename(pub u32);

/// A directory that may be changed.
struct Parent {
    node: Arc<Node>,
    path: Arc<OwnedFd>,
}

impl Share {
    fn parent(&self, directory: u64) -> Result<Parent, Errno> {
        let node = self.nodes.get(directory)?;
        self.check_changeable(&node)?;
        let path = self.nodes.descriptor(&node)?;
        Ok(Parent { node, path })
    }

    /// Takes over what has just been made: its owner, its permissions (the host's file mode mask has taken some of them), its node.
    fn finish(&self, parent: &Parent, name: &Name, mode: u32, owner: Owner) -> Result<Found, Errno> {
        let path = open_child(&*parent.path, name)?;
        let made = status(&path)?;
        let kind = kind(&made);
        if self.privileged {
            // In a directory with the set-group-ID bit, the group is the directory's (inode(7)).
            let inherits = status(&*parent.path)?.stx_mode & 0o2000 != 0;
            let gid = if inherits { None } else { group(owner.gid) };
            // A user namespace may have no such user: the file stays the process's own.
            let _ = rustix::fs::chownat(&path, c"", user(owner.uid), gid, AtFlags::EMPTY_PATH);
        }
        if kind != FileType::Symlink {
            let inherited = u32::from(made.stx_mode) & 0o2000;
            let wanted = permissions(kind, mode | inherited);
            if u32::from(status(&path)?.stx_mode) & 0o7777 != wanted.as_raw_mode() {
                rustix::fs::chmodat(&self.own_descriptors, number(&path), wanted, AtFlags::empty())?;
            }
        }
        self.enter(&parent.node, name, path)
    }

    /// Makes a file and opens it; or, unless that was to be an error, opens the one that is there.
    ///
    /// # Errors
    /// As open(2).
    pub fn create(
        &self,
        directory: u64,
        name: &Name,
        mode: u32,
        flags: OpenFlags,
        owner: Owner,
    ) -> Result<(Found, u64), Errno> {
        let parent = self.parent(directory)?;
        let own = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        let permitted = permissions(FileType::RegularFile, mode);
        match rustix::fs::openat(&*parent.path, name.as_c_str(), flags.kept() | own, permitted) {
            Ok(file) => {
                let found = self.finish(&parent, name, mode, owner)?;
                let opened = self.nodes.get(found.node).and_then(|node| self.add_file(&node, flags, file));
                self.answer_create(found, opened)
            }
            Err(Errno::EXIST) if !flags.exclusive() => {
                let found = self.lookup(directory, name)?;
                self.answer_create(found, self.open_file(found.node, flags))
            }
            Err(error) => Err(error),
        }
    }

    /// A guest that hears only of an error knows nothing of the look-up.
    fn answer_create(&self, found: Found, opened: Result<u64, Errno>) -> Result<(Found, u64), Errno> {
        match opened {
            Ok(handle) => Ok((found, handle)),
            Err(error) => {
                self.forget(found.node, 1);
                Err(error)
            }
        }
    }

    /// Makes a file, a pipe or a socket, by the type in `mode`.
    ///
    /// # Errors
    /// As mknod(2); `EPERM` for anything else.
    pub fn make_node(&self, directory: u64, name: &Name, mode: u32, owner: Owner) -> Result<Found, Errno> {
        let parent = self.parent(directory)?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        rustix::fs::mknodat(&*parent.path, name.as_c_str(), kind, permissions(kind, mode), 0)?;
        self.finish(&parent, name, mode, owner)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn make_directory(
        &self,
        directory: u64,
        name: &Name,
        mode: u32,
        owner: Owner,
    ) -> Result<Found, Errno> {
        let parent = self.parent(directory)?;
        rustix::fs::mkdirat(&*parent.path, name.as_c_str(), Mode::from_raw_mode(mode & 0o1777))?;
        self.finish(&parent, name, mode & 0o1777, owner)
    }

    /// Makes a symbolic link with this text, which means nothing here.
    ///
    /// # Errors
    /// As symlink(2).
    pub fn make_link(&self, directory: u64, name: &Name, text: &[u8], owner: Owner) -> Result<Found, Errno> {
        let parent = self.parent(directory)?;
        rustix::fs::symlinkat(text, &*parent.path, name.as_c_str())?;
        self.finish(&parent, name, 0o777, owner)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// As link(2).
    pub fn link(&self, node: u64, directory: u64, name: &Name) -> Result<Found, Errno> {
        let parent = self.parent(directory)?;
        let node = self.nodes.get(node)?;
        self.check_changeable(&node)?;
        let path = self.nodes.descriptor(&node)?;
        // By its descriptor's entry, since only privileged processes may link a descriptor itself.
        rustix::fs::linkat(
            &self.own_descriptors,
            number(&path),
            &*parent.path,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.enter(&parent.node, name, open_child(&*parent.path, name)?)
    }

    /// Removes a name that is not a directory's, or one that is.
    ///
    /// # Errors
    /// As unlink(2) and rmdir(2).
    pub fn remove(&self, directory: u64, name: &Name, is_directory: bool) -> Result<(), Errno> {
        let parent = self.parent(directory)?;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&*parent.path, name.as_c_str(), flags)
    }

    /// Renames.
    ///
    /// # Errors
    /// As renameat2(2); `EINVAL` for flags other than `RENAME_NOREPLACE` and `RENAME_EXCHANGE`.
    pub fn rename(&self, from: (u64, &Name), to: (u64, &Name), how: Rename) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits_retain(how.0);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (source, target) = (self.parent(from.0)?, self.parent(to.0)?);
        let (old, new) = (from.1.as_c_str(), to.1.as_c_str());
        if flags.is_empty() {
            rustix::fs::renameat(&*source.path, old, &*target.path, new)?;
        } else {
            rustix::fs::renameat_with(&*source.path, old, &*target.path, new, flags)?;
        }
        self.note_move(&target, to.1);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.note_move(&source, from.1);
        }
        Ok(())
    }

    /// Remembers where something is now. A hint, which other changes may have overtaken.
    fn note_move(&self, parent: &Parent, name: &Name) {
        if let Ok(status) = open_child(&*parent.path, name).and_then(status) {
            self.nodes.moved(&status, &parent.node, name);
        }
    }
}
