//! What a machine boots from: bytes that were made, or files.
//!
//! A machine reset loads everything again, so all of it has to stay at hand. Files stay open and are read anew, which costs no
//! memory; they should not change meanwhile.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use firmware::{Content, LoadError};
use memory::{GuestMemory, GuestRange};
use x86::Gpa;

/// A kernel or an initial RAM disk.
#[derive(Debug)]
pub enum Image {
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// The first `len` bytes of a regular file.
    File {
        /// The file.
        file: File,
        /// Its size when it was opened.
        len: u64,
    },
}

impl Image {
    /// All of it.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter.
    pub(crate) fn read(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Self::File { file, len } => {
                let mut bytes = vec![0; usize::try_from(*len).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl Content for Image {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    fn put(&self, memory: &GuestMemory, at: Gpa) -> Result<(), LoadError> {
        match self {
            Self::Bytes(bytes) => bytes.put(memory, at),
            Self::File { file, len } => read_into(file, *len, memory, at),
        }
    }
}

/// Reads a file into guest memory, without a copy of ours.
fn read_into(file: &File, len: u64, memory: &GuestMemory, at: Gpa) -> Result<(), LoadError> {
    let whole = [GuestRange { gpa: at, len }];
    let read = memory.receive(&whole, |targets| targets.read_from(file.as_fd(), 0))?;
    read.map_err(|error| LoadError::Unreadable { error: error.kind() })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use memory::RamRange;
    use x86::Gfn;

    use super::*;

    #[test]
    fn a_file_is_put_as_bytes_are_until_it_is_cut() {
        let bytes: Vec<u8> = (0..(1 << 20) + 100_u32).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let image = Image::File { file: file.try_clone().unwrap(), len: bytes.len() as u64 };
        let memory = GuestMemory::new(&[RamRange { base: Gfn(0), frames: 1024 }]).unwrap();
        image.put(&memory, Gpa(0x1003)).unwrap();
        let mut read = vec![0; bytes.len()];
        memory.read(Gpa(0x1003), &mut read).unwrap();
        assert_eq!(read, bytes);
        assert_eq!(image.read().unwrap(), bytes);
        file.set_len(5).unwrap();
        assert!(matches!(image.put(&memory, Gpa(0)), Err(LoadError::Unreadable { .. })));
        assert!(image.read().is_err());
    }
}
