//! The archive of an initial RAM file system: cpio, "new ASCII" (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The type bits of a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// A directory.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path.as_bytes(), DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// A file that may be executed.
    pub(super) fn program(&mut self, path: &str, data: &[u8]) {
        self.entry(path.as_bytes(), REGULAR | 0o755, (0, 0), data);
    }

    /// A character device.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path.as_bytes(), CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// Everything in a directory, under the names that it has there.
    ///
    /// # Errors
    /// If something cannot be read.
    pub(super) fn tree(&mut self, root: &Path) -> Result<()> {
        self.branch(root, root)
    }

    fn branch(&mut self, root: &Path, dir: &Path) -> Result<()> {
        let items = fs::read_dir(dir).with_context(|| format!("cannot read '{}'", dir.display()))?;
        let mut paths = items.map(|item| Ok(item?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root)?.as_os_str().as_bytes();
            let context = || format!("cannot read '{}'", path.display());
            let metadata = fs::symlink_metadata(&path).with_context(context)?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                self.entry(name, DIRECTORY | mode, (0, 0), &[]);
                self.branch(root, &path)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).with_context(context)?;
                self.entry(name, SYMLINK | 0o777, (0, 0), target.as_os_str().as_bytes());
            } else if metadata.is_file() {
                self.entry(name, REGULAR | mode, (0, 0), &fs::read(&path).with_context(context)?);
            }
        }
        Ok(())
    }

    /// The archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(b"TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &[u8], mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        // A file of 4 GiB would not fit into the guest either.
        let (size, name_size) = (data.len() as u32, path.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
