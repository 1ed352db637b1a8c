//! A disk that is a file or a block device, byte for byte.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use host::io::{Sources, Targets};

use crate::image::open_file;
use crate::{Disk, DiskError, Extent, SECTOR, zeros};

/// A raw image.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    bytes: u64,
    read_only: bool,
}

impl RawDisk {
    /// Opens an image.
    ///
    /// # Errors
    /// If it cannot be opened, is no file or block device, has a size that no disk has, or is another VM's.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let (file, bytes) = open_file(path, read_only)?;
        Self::of(path, file, bytes, read_only)
    }

    /// A file of so many bytes that is open; its name is for messages.
    pub(crate) fn of(path: &Path, file: File, bytes: u64, read_only: bool) -> Result<Self, DiskError> {
        Self::check_size(path, bytes)?;
        Ok(Self::new(file, bytes, read_only))
    }

    /// Refuses a size that no disk has.
    pub(crate) fn check_size(path: &Path, bytes: u64) -> Result<(), DiskError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::Size { path: path.to_owned(), bytes });
        }
        Ok(())
    }

    /// The disk that a file of so many bytes is.
    pub(crate) fn new(file: File, bytes: u64, read_only: bool) -> Self {
        Self { file, bytes, read_only }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Disk for RawDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &Targets<'_>) -> io::Result<()> {
        to.read_from(self.file.as_fd(), offset)
    }

    fn extent(&self, offset: u64, most: u64) -> io::Result<Extent> {
        let found = host::io::extent(self.file.as_fd(), offset)?;
        Ok(Extent { len: most.min(found.len), zeros: !found.is_data })
    }

    fn write(&self, offset: u64, from: &Sources<'_>) -> io::Result<()> {
        self.check_writable()?;
        from.write_to(self.file.as_fd(), offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        zeros::discard(&self.file, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        zeros::write(&self.file, offset, len, unmap)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn image(bytes: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn zeros_are_written_and_space_given_back() {
        let (_dir, path) = image(1 << 20);
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let disk = RawDisk::open(&path, false).unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        disk.write_zeroes(4096, 100_000, false).unwrap();
        zeros::write_plainly(&disk.file, 300_001, 70_000).unwrap();
        disk.discard(512 << 10, 256 << 10).unwrap();
        disk.write_zeroes(768 << 10, 4096, true).unwrap();
        disk.flush().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        let zeros = |at: usize| bytes[at] == 0;
        assert!(!zeros(4095) && zeros(4096) && zeros(104_095) && !zeros(104_096));
        assert!(!zeros(300_000) && zeros(300_001) && zeros(370_000) && !zeros(370_001));
        assert!(zeros(512 << 10) && zeros((772 << 10) - 1) && !zeros(772 << 10));
        assert!(blocks() < before, "{before} blocks");
    }

    #[test]
    fn an_image_belongs_to_one_writer_or_to_readers() {
        let (_dir, path) = image(1024);
        let reader = RawDisk::open(&path, true).unwrap();
        let other = RawDisk::open(&path, true).unwrap();
        assert!(matches!(RawDisk::open(&path, false), Err(DiskError::InUse(_))));
        assert!(reader.write_zeroes(0, 512, false).is_err() && reader.discard(0, 512).is_err());
        drop((reader, other));
        let _writer = RawDisk::open(&path, false).unwrap();
        assert!(matches!(RawDisk::open(&path, true), Err(DiskError::InUse(_))));
    }

    #[test]
    fn what_is_no_disk_is_refused_with_a_remedy() {
        let (dir, path) = image(1000);
        let says = |path: &Path| RawDisk::open(path, false).unwrap_err().to_string();
        assert!(says(&path).contains("has 1000 bytes"));
        assert!(says(dir.path()).contains("is not a disk image"));
        assert!(says(Path::new("/dev/null")).contains("is not a disk image"));
        assert!(says(&dir.path().join("none")).contains("umbra disk create"));
        let absent = RawDisk::open(&dir.path().join("none"), true).unwrap_err().to_string();
        assert!(!absent.contains("make it first"), "nobody reads an image that has just been made");
    }
}
