//! The archive format of initial RAM file systems: cpio, "new ASCII" (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! An entry is a header of a magic number and thirteen 8-digit hexadecimal fields, the NUL-terminated name, and the
//! data, each of the last two padded to 4 bytes. An entry named `TRAILER!!!` ends the archive. Everything belongs to root
//! and has the time 0, so the same contents always make the same bytes.

/// The type bits of a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
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
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, &Entry { mode: DIRECTORY | 0o755, device: (0, 0), data: &[] });
    }

    /// A file that may be executed.
    pub(super) fn program(&mut self, path: &str, data: &[u8]) {
        self.entry(path, &Entry { mode: REGULAR | 0o755, device: (0, 0), data });
    }

    /// A file of text.
    pub(super) fn file(&mut self, path: &str, data: &[u8]) {
        self.entry(path, &Entry { mode: REGULAR | 0o644, device: (0, 0), data });
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, &Entry { mode: SYMLINK | 0o777, device: (0, 0), data: target.as_bytes() });
    }

    /// A character device.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, &Entry { mode: CHARACTER_DEVICE | 0o600, device: (major, minor), data: &[] });
    }

    /// The archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &Entry { mode: 0, device: (0, 0), data: &[] });
        self.bytes
    }

    fn entry(&mut self, path: &str, entry: &Entry<'_>) {
        self.entries += 1;
        let inode = self.entries;
        let (major, minor) = entry.device;
        // Both are far below 4 GiB: a name is a path of ours, and data a busybox or a script.
        let size = entry.data.len() as u32;
        let name_size = path.len() as u32 + 1;
        let fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
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
}
