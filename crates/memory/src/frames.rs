//! Machine frames: where guest bytes live on the host.
//!
//! All frames of a VM are one anonymous file, mapped once, in order of their number, at an address that never changes.
//! So a frame's host address is one shift and one addition, a cached translation can hold it, and the same file can
//! be mapped again elsewhere (by KVM, by another process). A frame costs nothing until it is first touched.
//!
//! An access names a frame and an offset. Both are checked here, always, because they come from caches that a guest
//! influences: an access that is not wholly inside one existing frame reads zeros or is ignored. That never happens in
//! a correct engine; it is the last line that keeps an incorrect one inside the guest's memory.

use std::os::fd::{AsFd, BorrowedFd};

use host::{Mapping, Memfd, Protection};
use x86::bits::index;
use x86::{Mfn, PAGE_SHIFT, PAGE_SIZE};

use crate::word::{self, raw::Access};
use crate::{MemoryError, Word};

/// A VM's machine frames, numbered from 0.
#[derive(Debug)]
pub struct Frames {
    base: *mut u8,
    count: u64,
    file: Memfd,
    // Owns what `base` points to.
    _mapping: Mapping,
}

// SAFETY: `base` points into `_mapping`, which may be used from any thread; every access to the bytes is by
// instructions that are right under races (word.rs).
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl AsFd for Frames {
    /// The file, in which frames lie in the order of their numbers: for whoever maps them into another process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Frames {
    /// Makes `count` frames of zeros, none of which costs anything yet.
    ///
    /// # Errors
    /// If the host has no descriptor or no address space left.
    pub fn new(count: u64) -> Result<Self, MemoryError> {
        // A count that overflows asks for more than any host has, and so does its saturated size.
        let len = count.saturating_mul(PAGE_SIZE);
        let file = Memfd::new("umbra-ram", len)?;
        let mapping = Mapping::new(&file, 0, len, Protection::ReadWrite)?;
        Ok(Self { base: mapping.as_ptr(), count, file, _mapping: mapping })
    }

    /// How many frames there are.
    #[inline(always)]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What the frames really cost: the bytes of those that exist on the host.
    ///
    /// # Errors
    /// If the kernel cannot say.
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        Ok(self.file.resident_bytes()?)
    }

    /// How many frames from `first` on are alike: whether they exist on the host. What does not exist reads as zeros, and would come to
    /// exist by being read.
    ///
    /// # Errors
    /// If the kernel cannot say.
    pub(crate) fn extent(&self, first: Mfn) -> Result<(u64, bool), MemoryError> {
        let extent = self.file.extent(first.0.saturating_mul(PAGE_SIZE))?;
        Ok((extent.len.div_ceil(PAGE_SIZE), extent.is_data))
    }

    /// Gives the memory of `count` frames back to the host, from `first` on. They read as zeros and cost nothing until they
    /// are next touched.
    ///
    /// # Errors
    /// If there are no such frames, or the kernel refuses.
    pub fn discard(&self, first: Mfn, count: u64) -> Result<(), MemoryError> {
        let (start, len) = (first.0.saturating_mul(PAGE_SIZE), count.saturating_mul(PAGE_SIZE));
        Ok(self.file.discard(start, len)?)
    }

    /// The host address of `bytes` bytes at `offset` in a frame, if they lie inside it.
    #[inline(always)]
    fn at(&self, mfn: Mfn, offset: u64, bytes: usize) -> Option<*mut u8> {
        // For a word the subtraction is a constant, and one comparison is left.
        let fits = PAGE_SIZE.checked_sub(bytes as u64).is_some_and(|last| offset <= last);
        (fits && mfn.0 < self.count).then(|| self.base.wrapping_add(index((mfn.0 << PAGE_SHIFT) + offset)))
    }

    /// Reads a word inside one frame; 0 if it does not lie inside an existing one.
    #[inline(always)]
    pub fn read<W: Word>(&self, mfn: Mfn, offset: u64) -> W {
        match self.at(mfn, offset, W::BYTES) {
            // SAFETY: the word lies inside frame `mfn` of the mapping, which lives as long as `self`.
            Some(at) => unsafe { Access::load(at) },
            None => W::default(),
        }
    }

    /// Writes a word inside one frame; ignored if it does not lie inside an existing one.
    ///
    /// Tells nobody: see [`crate::GuestMemory::note_write`].
    #[inline(always)]
    pub fn write<W: Word>(&self, mfn: Mfn, offset: u64, value: W) {
        if let Some(at) = self.at(mfn, offset, W::BYTES) {
            // SAFETY: the word lies inside frame `mfn` of the mapping, which is writable and lives as long as `self`.
            unsafe { Access::store(at, value) };
        }
    }

    /// Atomically replaces a word inside one frame by `new` if it is `expected`, at any alignment, as a full barrier.
    /// `Err` holds what was found instead. A word that does not lie inside an existing frame is left alone and the
    /// exchange said to have happened, so that no loop waits for it.
    ///
    /// # Errors
    /// The word found, if it was not `expected`.
    #[inline(always)]
    pub fn compare_exchange<W: Word>(&self, mfn: Mfn, offset: u64, expected: W, new: W) -> Result<W, W> {
        let Some(at) = self.at(mfn, offset, W::BYTES) else { return Ok(expected) };
        // SAFETY: the word lies inside frame `mfn` of the mapping, which is writable and lives as long as `self`.
        let found = unsafe { Access::compare_exchange(at, expected, new) };
        if found == expected { Ok(found) } else { Err(found) }
    }

    /// As [`Frames::compare_exchange`] for 16 bytes, which must be aligned to 16 (CMPXCHG16B faults otherwise, SDM
    /// vol. 2A, so an engine has raised #GP before); if they are not, nothing happens as for a word outside.
    ///
    /// # Errors
    /// The value found, if it was not `expected`.
    #[inline]
    pub fn compare_exchange_128(
        &self,
        mfn: Mfn,
        offset: u64,
        expected: u128,
        new: u128,
    ) -> Result<u128, u128> {
        let Some(at) = self.at(mfn, offset, 16).filter(|_| offset.is_multiple_of(16)) else {
            return Ok(expected);
        };
        // SAFETY: the 16 bytes lie inside frame `mfn` of the mapping, which is writable and lives as long as `self`;
        // frames are page-aligned, so an aligned offset is an aligned address.
        let found = unsafe { word::compare_exchange_128(at, expected, new) };
        if found == expected { Ok(found) } else { Err(found) }
    }

    /// Copies bytes of one frame out. If they do not lie inside an existing one, `to` is zeroed.
    #[inline]
    pub fn copy_out(&self, mfn: Mfn, offset: u64, to: &mut [u8]) {
        match self.at(mfn, offset, to.len()) {
            // SAFETY: the source lies inside frame `mfn` of the mapping, which lives as long as `self`; the
            // destination is an exclusive slice, which cannot lie in the mapping.
            Some(at) => unsafe { word::copy(at, to.as_mut_ptr(), to.len()) },
            None => to.fill(0),
        }
    }

    /// Copies bytes into one frame; ignored if they do not lie inside an existing one.
    ///
    /// Tells nobody: see [`crate::GuestMemory::note_write`].
    #[inline]
    pub fn copy_in(&self, mfn: Mfn, offset: u64, from: &[u8]) {
        if let Some(at) = self.at(mfn, offset, from.len()) {
            // SAFETY: the destination lies inside frame `mfn` of the mapping, which is writable and lives as long as
            // `self`; the source is a live slice, which cannot lie in the mapping.
            unsafe { word::copy(from.as_ptr(), at, from.len()) };
        }
    }

    /// Sets bytes of one frame; ignored if they do not lie inside an existing one.
    pub(crate) fn fill(&self, mfn: Mfn, offset: u64, len: usize, byte: u8) {
        if let Some(at) = self.at(mfn, offset, len) {
            // SAFETY: the range lies inside frame `mfn` of the mapping, which is writable and lives as long as `self`.
            unsafe { word::fill(at, len, byte) };
        }
    }

    /// The host address of a frame's first byte, valid for one page while `self` lives; null if there is no such
    /// frame. For engines that put it into generated code, whose accesses then race as a processor's do.
    #[inline(always)]
    pub fn host_ptr(&self, mfn: Mfn) -> *mut u8 {
        self.at(mfn, 0, 1).unwrap_or(std::ptr::null_mut())
    }
}
