//! Open directories.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::PoisonError;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::handle::Handle;
use super::{Found, Name, Share};

/// Room for entries, as the host's kernel gives them.
const BUFFER: usize = 32 << 10;

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its file number, as [`super::Attributes::inode`] unless another file system is mounted there.
    pub inode: u64,
    /// Where the next entry is found.
    pub next: u64,
    /// Its type, as the upper four bits of a mode's lower sixteen; 0 if that is not known.
    pub kind: u8,
    /// Its name; `.` and `..` are among them.
    pub name: &'a CStr,
}

/// What a directory is opened with, and a file is not.
pub(super) fn kept(kind: FileType) -> OFlags {
    if kind == FileType::Directory { OFlags::DIRECTORY } else { OFlags::empty() }
}

impl Share {
    /// Opens a directory.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_directory(&self, node: u64) -> Result<u64, Errno> {
        let node = self.nodes.get(node)?;
        if node.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.reopen(&node, flags)?;
        self.handles.add(Handle::new(node.id(), flags, directory))
    }

    /// Shows `each` the entries of a directory, from a position on (0, or where an entry said that the next is), until it
    /// returns false or there are no more.
    ///
    /// # Errors
    /// As getdents64(2); `EBADF` if the handle is another node's.
    pub fn each_entry(
        &self,
        node: u64,
        handle: u64,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let node = self.nodes.get(node)?;
        let directory = self.handles.file(handle)?;
        // What may be shown depends on the node.
        if directory.node() != node.id() {
            return Err(Errno::BADF);
        }
        if node.is_covered() {
            return Ok(());
        }
        let _position = directory.position.lock().unwrap_or_else(PoisonError::into_inner);
        // Positions are the file system's own numbers, of which some have the highest bit set.
        rustix::fs::seek(directory.descriptor(), SeekFrom::Start(from))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(directory.descriptor(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let shown = Entry {
                inode: self.nodes.number(node.device(), entry.ino()),
                next: entry.next_entry_cookie(),
                kind: u8::try_from(entry.file_type().as_raw_mode() >> 12 & 0xf).unwrap_or(0),
                name: entry.file_name(),
            };
            if !each(shown) {
                break;
            }
        }
        Ok(())
    }

    /// Looks an entry of an open directory up.
    ///
    /// # Errors
    /// As [`Share::lookup`].
    pub fn lookup_entry(&self, directory: u64, name: &CStr) -> Result<Found, Errno> {
        self.lookup(directory, &Name::new(name.to_bytes())?)
    }
}
