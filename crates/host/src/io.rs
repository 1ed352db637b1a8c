//! System calls that move bytes between files and memory that no Rust object covers, such as a guest's.
//!
//! The kernel reads and writes such memory as any other processor would, so a list of addresses is all it takes: no copy,
//! no reference. Whoever makes the list vouches for the addresses; whoever uses it need not know where they lead.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

/// The most ranges that one call takes (`IOV_MAX`, sysconf(3)).
const MOST_RANGES: usize = 1024;

/// Memory that a call may read from, for `'a`.
#[derive(Debug, Default)]
pub struct Sources<'a>(Ranges<'a>);

/// Memory that a call may write to, for `'a`.
#[derive(Debug, Default)]
pub struct Targets<'a>(Ranges<'a>);

#[derive(Debug, Default)]
struct Ranges<'a> {
    list: Vec<libc::iovec>,
    bytes: u64,
    life: PhantomData<&'a ()>,
}

impl Ranges<'_> {
    /// Adds a range, to the last one if it goes on there.
    fn push(&mut self, start: *mut u8, len: usize) {
        self.bytes += len as u64;
        if let Some(last) = self.list.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
        {
            last.iov_len += len;
        } else if len != 0 {
            self.list.push(libc::iovec { iov_base: start.cast(), iov_len: len });
        }
    }

    /// Calls until all bytes have been moved, or none more are; returns how many. `call` gets ranges, their number and an
    /// offset, and returns what the system call returned.
    fn transfer(
        &self,
        offset: u64,
        call: impl Fn(*const libc::iovec, libc::c_int, i64) -> isize,
    ) -> io::Result<u64> {
        let mut list = self.list.clone();
        let (mut first, mut moved) = (0, 0);
        let mut at = i64::try_from(offset).map_err(|_| io::Error::from(Errno::FBIG))?;
        while let Some(rest) = list.get_mut(first..).filter(|rest| !rest.is_empty()) {
            let count = libc::c_int::try_from(rest.len().min(MOST_RANGES)).unwrap_or(libc::c_int::MAX);
            match usize::try_from(call(rest.as_ptr(), count, at)) {
                Ok(0) => break,
                Ok(done) => {
                    moved += done as u64;
                    first += advance(rest, done);
                    at = at.saturating_add(i64::try_from(done).unwrap_or(i64::MAX));
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(moved)
    }

    /// `len` bytes of it from byte `from` on, or as many as there are.
    fn part(&self, mut from: u64, mut len: u64) -> Self {
        let mut part = Self::default();
        for range in &self.list {
            let skip = usize::try_from(from).unwrap_or(usize::MAX).min(range.iov_len);
            let take = usize::try_from(len).unwrap_or(usize::MAX).min(range.iov_len - skip);
            part.push(range.iov_base.cast::<u8>().wrapping_add(skip), take);
            (from, len) = (from - skip as u64, len - take as u64);
        }
        part
    }

    /// An error unless all bytes have been moved.
    fn expect_all(&self, moved: u64) -> io::Result<()> {
        if moved == self.bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Takes the first `done` bytes off a list; returns how many ranges that leaves empty at its beginning.
fn advance(list: &mut [libc::iovec], mut done: usize) -> usize {
    for (number, range) in list.iter_mut().enumerate() {
        if done < range.iov_len {
            range.iov_base = range.iov_base.cast::<u8>().wrapping_add(done).cast();
            range.iov_len -= done;
            return number;
        }
        done -= range.iov_len;
    }
    list.len()
}

impl<'a> Sources<'a> {
    /// Bytes of our own.
    pub fn of(bytes: &'a [u8]) -> Self {
        let mut sources = Self::default();
        sources.0.push(bytes.as_ptr().cast_mut(), bytes.len());
        sources
    }

    /// `len` bytes of it from byte `from` on, or as many as there are.
    #[must_use]
    pub fn part(&self, from: u64, len: u64) -> Self {
        Self(self.0.part(from, len))
    }

    /// Adds a range.
    ///
    /// # Safety
    /// `len` bytes from `start` are mapped readable for `'a`, and no Rust object that may not be read by others lies there.
    pub unsafe fn push(&mut self, start: *mut u8, len: usize) {
        self.0.push(start, len);
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Writes all of it to a file, from `offset` on.
    ///
    /// # Errors
    /// As pwritev(2); some of it may have been written then.
    pub fn write_to(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let moved = self.0.transfer(offset, |list, count, at| {
            // SAFETY: `list` holds `count` ranges that whoever pushed them vouched for; the kernel only reads them.
            unsafe { libc::pwritev(file.as_raw_fd(), list, count, at) }
        })?;
        self.0.expect_all(moved)
    }
}

impl<'a> Targets<'a> {
    /// Bytes of our own.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        let mut targets = Self::default();
        targets.0.push(bytes.as_mut_ptr(), bytes.len());
        targets
    }

    /// `len` bytes of it from byte `from` on, or as many as there are.
    #[must_use]
    pub fn part(&self, from: u64, len: u64) -> Self {
        Self(self.0.part(from, len))
    }

    /// Makes all of it zeros.
    pub fn zero(&self) {
        for range in &self.0.list {
            // SAFETY: whoever pushed the range vouched for it as memory that may be written and belongs to no Rust object;
            // the instruction writes as any other processor would, whoever else looks at it.
            unsafe {
                std::arch::asm!("rep stosb", inout("rcx") range.iov_len => _, inout("rdi") range.iov_base => _,
                    in("al") 0u8, options(nostack, preserves_flags));
            }
        }
    }

    /// Fills it with these bytes, as far as there are any.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for range in &self.0.list {
            let (now, later) = rest.split_at(range.iov_len.min(rest.len()));
            // SAFETY: as in `zero`; `now` is not longer than the range, and cannot lie in it.
            unsafe {
                std::arch::asm!("rep movsb", inout("rcx") now.len() => _, inout("rdi") range.iov_base => _,
                    inout("rsi") now.as_ptr() => _, options(nostack, preserves_flags));
            }
            rest = later;
        }
    }

    /// Fills all of it from a file, from `offset` on, with zeros for what lies behind the file's end.
    ///
    /// # Errors
    /// As preadv(2); some of it may have been filled then.
    pub fn read_zero_padded(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let moved = self.read_up_to(file, offset)?;
        self.part(moved, self.bytes() - moved).zero();
        Ok(())
    }

    /// Adds a range.
    ///
    /// # Safety
    /// `len` bytes from `start` are mapped writable for `'a`, and no Rust object lies there.
    pub unsafe fn push(&mut self, start: *mut u8, len: usize) {
        self.0.push(start, len);
    }

    /// How many bytes there is room for.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Fills all of it from a file, from `offset` on.
    ///
    /// # Errors
    /// As preadv(2), and if the file ends before; some of it may have been filled then.
    pub fn read_from(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.0.expect_all(self.read_up_to(file, offset)?)
    }

    /// Fills as much of it as the file has, from `offset` on; returns how many bytes that were.
    ///
    /// # Errors
    /// As preadv(2); some of it may have been filled then.
    pub fn read_up_to(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
        self.0.transfer(offset, |list, count, at| {
            // SAFETY: `list` holds `count` ranges that whoever pushed them vouched for as memory that belongs to no Rust
            // object, so that the kernel may write there.
            unsafe { libc::preadv(file.as_raw_fd(), list, count, at) }
        })
    }
}

/// Makes `len` bytes of a file zeros and gives their blocks back, if the file system can; they count as the file's still.
///
/// # Errors
/// As fallocate(2); [`io::ErrorKind::Unsupported`] if the file system cannot.
pub fn punch_hole(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Makes `len` bytes of a file zeros and keeps room for them.
///
/// # Errors
/// As [`punch_hole`].
pub fn zero_range(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)
}

fn allocate(file: BorrowedFd<'_>, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, flags, offset, len) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
            done => return Ok(done?),
        }
    }
}

/// A part of a file of which one thing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, in bytes, at least one.
    pub len: u64,
    /// Whether it holds data, or may; otherwise it is a hole, which reads as zeros and takes no room.
    pub is_data: bool,
}

/// What a file has from `offset` on. Behind its end there is a hole, and where the file system cannot tell, all is data. Moves the file's
/// own position, which nothing here uses.
///
/// # Errors
/// As lseek(2).
pub fn extent(file: BorrowedFd<'_>, offset: u64) -> io::Result<Extent> {
    let next = |whence, unknown: u64| match rustix::fs::seek(file, whence) {
        Ok(at) => Ok(at),
        Err(Errno::NXIO) => Ok(u64::MAX),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(unknown),
        Err(error) => Err(error),
    };
    let data = next(SeekFrom::Data(offset), offset)?;
    let is_data = data == offset;
    let end = if is_data { next(SeekFrom::Hole(offset), u64::MAX)? } else { data };
    Ok(Extent { len: end.saturating_sub(offset).max(1), is_data })
}

/// Takes a lock on a whole file for as long as it is open, shared with others who share it; false if somebody has one that
/// excludes it.
///
/// # Errors
/// As flock(2).
pub fn try_lock(file: BorrowedFd<'_>, shared: bool) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    let kind =
        if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match flock(file, kind) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use crate::{Mapping, Memfd, Protection};

    use super::*;

    #[test]
    fn bytes_go_to_a_file_and_come_back_elsewhere() {
        let memory = Memfd::new("test", 16 << 12).unwrap();
        let map = Mapping::new(&memory, 0, 16 << 12, Protection::ReadWrite).unwrap();
        let file = Memfd::new("test", 16 << 12).unwrap();
        let at = |offset| map.as_ptr().wrapping_add(offset);
        // SAFETY: all offsets lie in the mapping, which outlives the lists and which nobody else knows.
        unsafe {
            (0..64).for_each(|n| at(n).write_volatile(n as u8));
            let mut sources = Sources::default();
            // More ranges than one call takes, in two bytes each; neighbours in reverse, so that none are joined.
            for n in (0..1500).rev() {
                sources.push(at(n % 32 * 2), 2);
            }
            sources.write_to(file.as_fd(), 10).unwrap();
            let mut targets = Targets::default();
            targets.push(at(0x5000), 1000);
            targets.push(at(0x5000 + 1000), 1000);
            targets.push(at(0x7000), 1000);
            assert_eq!((targets.bytes(), targets.0.list.len()), (3000, 2));
            targets.read_from(file.as_fd(), 10).unwrap();
            let seen =
                |n: usize| if n < 2000 { at(0x5000 + n) } else { at(0x7000 + n - 2000) }.read_volatile();
            for n in 0..3000 {
                assert_eq!(usize::from(seen(n)), (1499 - n / 2) % 32 * 2 + n % 2, "{n}");
            }
        }
    }

    #[test]
    fn parts_are_cut_filled_and_zeroed() {
        let mut bytes = [1; 100];
        let (one, two) = bytes.split_at_mut(30);
        let mut targets = Targets::of(one);
        // SAFETY: the range is the end of an array that nobody else uses meanwhile; a gap keeps it apart.
        unsafe { targets.push(two.as_mut_ptr().wrapping_add(10), 60) };
        targets.part(20, 20).zero();
        targets.part(89, 50).copy_from(&[2; 50]);
        targets.part(25, 10).copy_from(&[3; 3]);
        assert_eq!(targets.part(90, 1).bytes(), 0);
        assert_eq!(bytes[19..30], [1, 0, 0, 0, 0, 0, 3, 3, 3, 0, 0]);
        assert_eq!(bytes[30..51], [[1; 10].as_slice(), &[0; 10], &[1]].concat());
        assert_eq!(bytes[98..], [1, 2]);

        let file = Memfd::new("test", 4096).unwrap();
        Sources::of(b"0123456789").part(3, 4).write_to(file.as_fd(), 4092).unwrap();
        let mut seen = [9; 8];
        Targets::of(&mut seen).read_zero_padded(file.as_fd(), 4091).unwrap();
        assert_eq!(&seen, b"\x003456\0\0\0");
    }

    #[test]
    fn the_end_of_a_file_and_holes() {
        let file = Memfd::new("test", 2 << 12).unwrap();
        let map = Mapping::new(&file, 0, 2 << 12, Protection::ReadWrite).unwrap();
        let mut targets = Targets::default();
        // SAFETY: the range lies in the mapping, which nobody else knows.
        unsafe {
            map.as_ptr().write_volatile(9);
            targets.push(map.as_ptr().wrapping_add(0x1000), 0x1000);
        }
        let known = |offset| extent(file.as_fd(), offset).unwrap();
        assert_eq!(known(8), Extent { len: 0x0ff8, is_data: true });
        assert_eq!(known(0x1000), Extent { len: u64::MAX - 0x1000, is_data: false });
        let error = targets.read_from(file.as_fd(), 0x1001).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(targets.read_from(file.as_fd(), u64::MAX).is_err());
        punch_hole(file.as_fd(), 0, 0x1000).unwrap();
        assert!(!known(0).is_data && !known(1 << 40).is_data);
        // SAFETY: as above.
        assert_eq!(unsafe { map.as_ptr().read_volatile() }, 0);
    }
}
