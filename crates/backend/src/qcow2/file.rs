//! The image as a file of clusters.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use host::io::{Sources, Targets};

use crate::zeros;

/// The most entries that are read at once: a page of them.
pub(super) const WINDOW: u64 = 512;

/// The image's file.
#[derive(Debug)]
pub(super) struct Clusters {
    pub(super) file: File,
    pub(super) bits: u32,
    /// Whether anybody will want the file after a crash of the host.
    pub(super) durable: bool,
}

impl Clusters {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A cluster's bytes.
    pub(super) fn bytes(&self) -> u64 {
        1 << self.bits
    }

    /// How far into its cluster an offset is.
    pub(super) fn inside(&self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The entries of an L2 table.
    pub(super) fn l2_entries(&self) -> u64 {
        self.bytes() / 8
    }

    /// Where the cluster begins that an offset lies in.
    pub(super) fn start(&self, offset: u64) -> u64 {
        offset - self.inside(offset)
    }

    /// Reads; what lies behind the end of the file is zeros.
    pub(super) fn read(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        Targets::of(to).read_zero_padded(self.fd(), at)
    }

    /// Reads `count` big-endian numbers.
    pub(super) fn read_entries(&self, at: u64, count: u64) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; index(count.saturating_mul(8))];
        self.read(&mut bytes, at)?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    pub(super) fn write_entries(&self, entries: impl Iterator<Item = u64>, at: u64) -> io::Result<()> {
        self.write(&entries.flat_map(u64::to_be_bytes).collect::<Vec<u8>>(), at)
    }

    /// Writes from anywhere.
    pub(super) fn write_from(&self, from: &Sources<'_>, at: u64) -> io::Result<()> {
        from.write_to(self.fd(), at)
    }

    /// Makes zeros.
    pub(super) fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 { Ok(()) } else { zeros::write(&self.file, at, len, unmap) }
    }

    /// Makes durable what was written before, ahead of what is written from now on.
    pub(super) fn barrier(&self) -> io::Result<()> {
        if self.durable { self.file.sync_data() } else { Ok(()) }
    }
}

/// A number of bytes of ours, as an index: it comes from tables whose size is bounded.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
