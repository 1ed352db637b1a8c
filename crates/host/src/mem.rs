//! Anonymous files and their shared mappings.
//!
//! All memory that a guest or translated code lives in comes from a [`Memfd`], because a file can be mapped more than
//! once, handed to another process, and asked what it costs. Pages come into being on first touch and swap space is
//! not reserved for them (`MAP_NORESERVE`; a memfd itself is never accounted up front), so the size of a file is a
//! promise and not a cost.
//!
//! Tables that belong to one process alone are anonymous mappings instead ([`Mapping::zeros`]): reading an untouched page
//! of those costs nothing either.
//!
//! A [`Mapping`] hands out a raw pointer and nothing else: its bytes change under the program's feet (guest CPUs, other
//! processes), so a Rust reference to them can never be right. Whoever dereferences the pointer says why that is sound.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{MapFlags, ProtFlags};
use x86::PAGE_SIZE;

use crate::HostError;
use crate::io::{self, Extent};

/// An anonymous file in memory.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    len: u64,
}

impl Memfd {
    /// Makes a file of `len` bytes (rounded up to whole pages), all zero and costing nothing yet. `name` is what
    /// `/proc` shows.
    ///
    /// # Errors
    /// If the kernel has no descriptor left or does not take the size.
    pub fn new(name: &str, len: u64) -> Result<Self, HostError> {
        let failed = |errno: rustix::io::Errno| HostError::Create { len, source: errno.into() };
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or_else(|| failed(rustix::io::Errno::FBIG))?;
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map_err(failed)?;
        rustix::fs::ftruncate(&fd, len).map_err(failed)?;
        Ok(Self { fd, len })
    }

    /// The size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the file really costs: the bytes of the pages that exist.
    ///
    /// # Errors
    /// If the kernel cannot say.
    pub fn resident_bytes(&self) -> Result<u64, HostError> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| HostError::Usage { what: "read the cost", source: errno.into() })?;
        // stat(2): st_blocks counts 512-byte units, whatever the block size.
        Ok(stat.st_blocks.cast_unsigned().saturating_mul(512))
    }

    /// What it has from `offset` on: pages that exist, or none, which read as zeros without being asked.
    ///
    /// # Errors
    /// If the kernel cannot say.
    pub fn extent(&self, offset: u64) -> Result<Extent, HostError> {
        io::extent(self.as_fd(), offset).map_err(|source| HostError::Usage { what: "find the pages", source })
    }

    /// Gives whole pages back to the host. They read as zeros afterwards, and come back on the next touch.
    ///
    /// # Errors
    /// If the range is not whole pages of the file, or the kernel refuses.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), HostError> {
        self.check(offset, len)?;
        rustix::fs::fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
            .map_err(|errno| HostError::Usage { what: "discard pages", source: errno.into() })
    }

    /// The range is whole pages, not empty, and inside the file.
    fn check(&self, offset: u64, len: u64) -> Result<(), HostError> {
        let aligned = offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len != 0;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if aligned && inside { Ok(()) } else { Err(HostError::Range { offset, len }) }
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What may be done through a mapping. There is deliberately no "write and execute"; see
/// [`Mapping::writable_and_executable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

impl Protection {
    fn flags(self) -> ProtFlags {
        match self {
            Self::Read => ProtFlags::READ,
            Self::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// Whole pages of address space, unmapped when dropped: a shared mapping of a [`Memfd`], which stays valid when the file is
/// closed, or zeros without a file, private or for code.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; the type itself only ever hands out a raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method reads or writes the mapped bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset`, at an address of the kernel's choice.
    ///
    /// # Errors
    /// If the range is not whole pages of the file, or address space is short.
    pub fn new(file: &Memfd, offset: u64, len: u64, protection: Protection) -> Result<Self, HostError> {
        file.check(offset, len)?;
        let size = x86::bits::index(len);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is, and no existing
        // object of the program is touched.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, protection.flags(), flags, file, offset) };
        Self::mapped(start, size)
    }

    /// Maps `len` bytes of zeros (rounded up to whole pages) that are readable, writable and nobody else's.
    ///
    /// # Errors
    /// If address space is short or `len` is 0.
    pub fn zeros(len: u64) -> Result<Self, HostError> {
        let size = whole_pages(len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as in `new`.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, Protection::ReadWrite.flags(), flags)
        };
        Self::mapped(start, size)
    }

    /// Maps `len` bytes (rounded up to whole pages) of which the first are the whole of `file`, shared, and the rest
    /// zeros of nobody else's; all readable and writable.
    ///
    /// # Errors
    /// If address space is short, or `len` is not more than the file.
    pub fn headed(file: &Memfd, len: u64) -> Result<Self, HostError> {
        if len <= file.len || file.len == 0 {
            return Err(HostError::Range { offset: 0, len });
        }
        let whole = Self::zeros(len)?;
        let (head, flags) =
            (x86::bits::index(file.len), MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED);
        // SAFETY: the pages replaced are the first of `whole`, which has just been made and which nobody else knows.
        let mapped = unsafe {
            rustix::mm::mmap(whole.as_ptr().cast(), head, Protection::ReadWrite.flags(), flags, file, 0)
        };
        mapped.map_err(|errno| HostError::Map { len, source: errno.into() })?;
        Ok(whole)
    }

    /// Maps `len` bytes of zeros (rounded up to whole pages) twice: readable and writable, and readable and executable.
    ///
    /// They are nobody's file: `perf` looks for names of generated code only in mappings that have none, among which it counts this
    /// (Linux, `tools/perf/util/map.c`, `is_anon_memory`).
    ///
    /// # Errors
    /// If address space is short, `len` is 0, or the host lets nothing be executed that was made at run time.
    pub fn writable_and_executable(len: u64) -> Result<[Self; 2], HostError> {
        let size = whole_pages(len);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // Executable first: hardened hosts let no mapping become so (PR_SET_MDWE(2const)).
        let rights = ProtFlags::READ | ProtFlags::EXEC;
        // SAFETY: as in `new`.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, rights, flags) };
        let executable = Self::mapped(start, size)?;
        // SAFETY: from a shared mapping none of whose bytes are moved the kernel makes another (mremap(2)), where nothing else is.
        let again = unsafe {
            rustix::mm::mremap(executable.as_ptr().cast(), 0, size, rustix::mm::MremapFlags::MAYMOVE)
        };
        let writable = Self::mapped(again, size)?;
        let flags = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
        // SAFETY: the mapping has just been made, and nobody knows it.
        let protected = unsafe { rustix::mm::mprotect(writable.as_ptr().cast(), size, flags) };
        protected.map_err(|errno| HostError::Map { len, source: errno.into() })?;
        Ok([writable, executable])
    }

    fn mapped(start: rustix::io::Result<*mut core::ffi::c_void>, len: usize) -> Result<Self, HostError> {
        let failed = |errno: rustix::io::Errno| HostError::Map { len: len as u64, source: errno.into() };
        let start =
            NonNull::new(start.map_err(failed)?.cast()).ok_or_else(|| failed(rustix::io::Errno::NOMEM))?;
        Ok(Self { start, len })
    }

    /// The address of the first byte, page-aligned. Valid for [`Mapping::len`] bytes as long as the mapping lives,
    /// for accesses that its protection allows; the bytes may change at any time.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A mapping is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// So many bytes, rounded up to whole pages; more than there can be if they do not fit.
fn whole_pages(len: u64) -> usize {
    len.checked_next_multiple_of(PAGE_SIZE).map_or(usize::MAX, x86::bits::index)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by one of the functions above and is unmapped only here; users of the raw pointer promised not to
        // outlive the mapping. `munmap` of a whole mapping fails only for arguments that they have ruled out.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_one_file_show_the_same_bytes() {
        let file = Memfd::new("test", 3 * PAGE_SIZE).unwrap();
        let write = Mapping::new(&file, 0, 3 * PAGE_SIZE, Protection::ReadWrite).unwrap();
        let read = Mapping::new(&file, PAGE_SIZE, PAGE_SIZE, Protection::Read).unwrap();
        // SAFETY: offset 4099 lies in the first mapping and offset 3 in the second; nobody else knows them.
        let seen = unsafe {
            write.as_ptr().add(4099).write_volatile(0x5a);
            read.as_ptr().add(3).read_volatile()
        };
        assert_eq!((seen, write.len(), read.len()), (0x5a, 3 * 4096, 4096));
    }

    #[test]
    fn pages_cost_only_once_touched_and_can_be_given_back() {
        let file = Memfd::new("test", 1 << 30).unwrap();
        let map = Mapping::new(&file, 0, 1 << 30, Protection::ReadWrite).unwrap();
        assert_eq!(file.resident_bytes().unwrap(), 0);
        // SAFETY: the offsets lie in the mapping; nobody else knows it.
        unsafe {
            map.as_ptr().write_volatile(1);
            map.as_ptr().add(512 << 20).write_volatile(1);
        }
        assert_eq!(file.resident_bytes().unwrap(), 2 * PAGE_SIZE);
        file.discard(0, PAGE_SIZE).unwrap();
        assert_eq!(file.resident_bytes().unwrap(), PAGE_SIZE);
        // SAFETY: as above.
        assert_eq!(unsafe { map.as_ptr().read_volatile() }, 0);
    }

    #[test]
    fn private_zeros_may_be_larger_than_the_host() {
        let table = Mapping::zeros((1 << 42) + 1).unwrap();
        assert_eq!(table.len(), (1 << 42) + 4096);
        // SAFETY: the offsets lie in the mapping; nobody else knows it.
        let (first, last) = unsafe {
            table.as_ptr().write_volatile(1);
            (table.as_ptr().read_volatile(), table.as_ptr().add(1 << 42).read_volatile())
        };
        assert_eq!((first, last), (1, 0));
        assert!(matches!(Mapping::zeros(0), Err(HostError::Map { .. })));
        assert!(matches!(Mapping::zeros(u64::MAX), Err(HostError::Map { .. })));
    }

    #[test]
    fn headed_mappings_share_their_head_only() {
        let file = Memfd::new("test", PAGE_SIZE).unwrap();
        let (a, b) =
            (Mapping::headed(&file, 3 * PAGE_SIZE).unwrap(), Mapping::headed(&file, 2 * PAGE_SIZE).unwrap());
        // SAFETY: the offsets lie in the mappings; nobody else knows them.
        let seen = unsafe {
            a.as_ptr().write_volatile(1);
            a.as_ptr().add(4096).write_volatile(2);
            (b.as_ptr().read_volatile(), b.as_ptr().add(4096).read_volatile())
        };
        assert_eq!((seen, a.len()), ((1, 0), 3 * 4096));
        assert!(matches!(Mapping::headed(&file, PAGE_SIZE), Err(HostError::Range { .. })));
    }

    #[test]
    fn bad_ranges_are_refused() {
        let file = Memfd::new("test", 5000).unwrap();
        assert_eq!(file.len(), 2 * PAGE_SIZE);
        for (offset, len) in [(0, 0), (1, PAGE_SIZE), (0, 100), (PAGE_SIZE, 2 * PAGE_SIZE), (!4095, 4096)] {
            assert!(matches!(
                Mapping::new(&file, offset, len, Protection::Read),
                Err(HostError::Range { .. })
            ));
            assert!(matches!(file.discard(offset, len), Err(HostError::Range { .. })));
        }
        assert!(matches!(Memfd::new("test", u64::MAX), Err(HostError::Create { .. })));
    }
}
