//! The archive format of initial RAM file systems: cpio, "new ASCII" (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! An entry is a header of a magic number and thirteen 8-digit hexadecimal fields, the NUL-terminated name, and the
//! data, each of the last two padded to 4 bytes. An entry named `TRAILER!!!` ends the archive. Everything belongs to root
//! and has the time 0, so the same contents always make the same bytes.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The type bits of a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// A directory on the host could not be put into an archive.
#[derive(Debug, thiserror::Error)]
#[error("cannot read '{}'", path.display())]
pub struct TreeError {
    /// What could not be read.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// An archive in the making. Paths are relative to the root directory; what a path goes through has to come before it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What an entry is, apart from its name.
struct Entry<'a> {
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    /// A directory.
    pub fn directory(&mut self, path: &str) {
        self.entry(path.as_bytes(), &Entry { mode: DIRECTORY | 0o755, device: (0, 0), data: &[] });
    }

    /// A file that may be executed.
    pub fn program(&mut self, path: &str, data: &[u8]) {
        self.entry(path.as_bytes(), &Entry { mode: REGULAR | 0o755, device: (0, 0), data });
    }

    /// A file of text.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        self.entry(path.as_bytes(), &Entry { mode: REGULAR | 0o644, device: (0, 0), data });
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        let data = target.as_bytes();
        self.entry(path.as_bytes(), &Entry { mode: SYMLINK | 0o777, device: (0, 0), data });
    }

    /// A character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        let entry = Entry { mode: CHARACTER_DEVICE | 0o600, device: (major, minor), data: &[] };
        self.entry(path.as_bytes(), &entry);
    }

    /// Everything in a directory of the host, under the names that it has there, in the order of its names. Devices, pipes
    /// and sockets are left out.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn tree(&mut self, root: &Path) -> Result<(), TreeError> {
        self.branch(root, root)
    }

    fn branch(&mut self, root: &Path, dir: &Path) -> Result<(), TreeError> {
        let items = fs::read_dir(dir).map_err(of(dir))?;
        let paths: io::Result<Vec<_>> = items.map(|item| Ok(item?.path())).collect();
        let mut paths = paths.map_err(of(dir))?;
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes();
            let metadata = fs::symlink_metadata(&path).map_err(of(&path))?;
            let mode = metadata.permissions().mode() & 0o7777;
            let device = (0, 0);
            if metadata.is_dir() {
                self.entry(name, &Entry { mode: DIRECTORY | mode, device, data: &[] });
                self.branch(root, &path)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(of(&path))?;
                let data = target.as_os_str().as_bytes();
                self.entry(name, &Entry { mode: SYMLINK | 0o777, device, data });
            } else if metadata.is_file() {
                let data = fs::read(&path).map_err(of(&path))?;
                self.entry(name, &Entry { mode: REGULAR | mode, device, data: &data });
            }
        }
        Ok(())
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(b"TRAILER!!!", &Entry { mode: 0, device: (0, 0), data: &[] });
        self.bytes
    }

    fn entry(&mut self, path: &[u8], entry: &Entry<'_>) {
        self.entries += 1;
        let inode = self.entries;
        let (major, minor) = entry.device;
        // A file of 4 GiB would not fit into the guest either.
        let (size, name_size) = (entry.data.len() as u32, path.len() as u32 + 1);
        let fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The error of a path.
fn of(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    |source| TreeError { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_as_documented() {
        let mut archive = Archive::default();
        archive.file("a", b"hello");
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        let header = "070701000000010000\
                      81a4000000000000000000000001000000000000000500000000000000000000000000000000\
                      0000000200000000";
        assert_eq!(std::str::from_utf8(&bytes[..110]).unwrap(), header);
        assert_eq!(&bytes[110..124], b"a\0hello\0\0\0\x30\x37\x30\x37"[..14].as_ref());
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn a_tree_keeps_its_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("usr")).unwrap();
        fs::write(dir.path().join("usr/a"), "hello").unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("link")).unwrap();
        let mut archive = Archive::default();
        archive.tree(dir.path()).unwrap();
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(at("link\0") < at("usr\0") && at("usr\0") < at("usr/a\0") && at("hello") < at("TRAILER!!!"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Archive::default().tree(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read '/nowhere/at/all'");
    }
}
