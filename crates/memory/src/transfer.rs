//! Device transfers: ranges of guest memory handed to the host's system calls as they are, without a copy.
//!
//! Every range goes through the P2M, page by page, as with [`GuestMemory::read`] and [`GuestMemory::write`], and what kind
//! of frame allows what is the same, but that a ballooned frame is taken back for either direction. A transfer begins
//! only if all of it is allowed. Frames may change their kind while it goes on: it then ends in the machine frames that it
//! began with, as with a bus master that had translated its addresses. Those stay mapped as long as the memory lives.
//!
//! A write is noted ([`GuestMemory::note_write_at`]) after the bytes have changed, whatever became of the system call.

use host::io::{Sources, Targets};
use x86::{Gfn, Gpa, Mfn, PAGE_SIZE};

use crate::guest::pieces;
use crate::{FrameKind, GuestMemory, MemoryError, P2mEntry};

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// The first byte.
    pub gpa: Gpa,
    /// The length in bytes.
    pub len: u64,
}

/// What of a range lies in one frame.
struct Part {
    gfn: Gfn,
    mfn: Mfn,
    offset: u64,
    len: usize,
    /// Its host address.
    start: *mut u8,
}

impl GuestMemory {
    /// Lets `act` read guest memory.
    ///
    /// # Errors
    /// As for [`GuestMemory::read`]; `act` has not been called then.
    pub fn provide<R>(
        &self,
        ranges: &[GuestRange],
        act: impl FnOnce(&Sources<'_>) -> R,
    ) -> Result<R, MemoryError> {
        let mut sources = Sources::default();
        self.each_part(ranges, "read", |part| {
            // SAFETY: the bytes lie inside one frame of the mapping of guest frames, which is readable and lives as long
            // as `self`, which outlives `sources`; no Rust object ever lies in it.
            unsafe { sources.push(part.start, part.len) };
        })?;
        Ok(act(&sources))
    }

    /// Lets `act` write guest memory.
    ///
    /// # Errors
    /// As for [`GuestMemory::write`]; `act` has not been called then.
    pub fn receive<R>(
        &self,
        ranges: &[GuestRange],
        act: impl FnOnce(&Targets<'_>) -> R,
    ) -> Result<R, MemoryError> {
        let mut targets = Targets::default();
        let mut parts = Vec::new();
        self.each_part(ranges, "write", |part| {
            // SAFETY: as in `provide`; the mapping is also writable.
            unsafe { targets.push(part.start, part.len) };
            parts.push(part);
        })?;
        let result = act(&targets);
        // The frames that were written, whatever the P2M says by now.
        for Part { gfn, mfn, offset, len, .. } in parts {
            self.note_write_at(gfn, mfn, offset, len as u64);
        }
        Ok(result)
    }

    /// Calls `add` with every part of the ranges that lies in one frame.
    fn each_part(
        &self,
        ranges: &[GuestRange],
        access: &'static str,
        mut add: impl FnMut(Part),
    ) -> Result<(), MemoryError> {
        for range in ranges {
            for piece in pieces(range.gpa, range.len)? {
                let gfn = piece.gpa.frame();
                let P2mEntry { kind, mfn } = self.entry(gfn);
                let allowed = match kind {
                    FrameKind::Ram => true,
                    FrameKind::ReadOnly | FrameKind::Shared => access == "read",
                    FrameKind::Ballooned => self.set_kind(gfn, FrameKind::Ram).is_ok(),
                    _ => false,
                };
                let start = self.frames().host_ptr(mfn);
                if !allowed || start.is_null() {
                    return Err(MemoryError::Refused { gpa: piece.gpa, kind, access });
                }
                let (offset, len) = (piece.gpa.offset(), piece.bytes.len());
                debug_assert!(offset + len as u64 <= PAGE_SIZE);
                add(Part { gfn, mfn, offset, len, start: start.wrapping_add(x86::bits::index(offset)) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use host::Memfd;
    use x86::Gfn;

    use super::*;
    use crate::RamRange;

    fn memory() -> GuestMemory {
        GuestMemory::new(&[RamRange { base: Gfn(0), frames: 4 }, RamRange { base: Gfn(8), frames: 2 }])
            .unwrap()
    }

    fn range(gpa: u64, len: u64) -> GuestRange {
        GuestRange { gpa: Gpa(gpa), len }
    }

    #[test]
    fn a_transfer_goes_through_the_map_and_is_logged() {
        let memory = memory();
        let file = Memfd::new("test", 0x4000).unwrap();
        memory.write(Gpa(0xff0), b"some bytes that cross into the next frame").unwrap();
        let out = [range(0xff0, 20), range(0x9ff8, 8), range(0xff0 + 20, 21)];
        memory.provide(&out, |sources| sources.write_to(file.as_fd(), 5)).unwrap().unwrap();
        memory.start_dirty_log();
        let code = memory.watch_code(memory.entry(Gfn(8)).mfn);
        memory.mark_code(memory.entry(Gfn(8)).mfn, 0, 64);
        memory
            .receive(&[range(0x2ffe, 2), range(0x8000, 47)], |to| to.read_from(file.as_fd(), 5))
            .unwrap()
            .unwrap();
        let mut seen = [0; 47];
        memory.read(Gpa(0x8000), &mut seen).unwrap();
        assert_eq!(&seen[18..26], &[0; 8]);
        assert_eq!(&seen[26..], b"cross into the next frame"[4..].as_ref());
        assert_eq!(memory.take_dirty(), [Gfn(2), Gfn(8)]);
        assert_ne!(memory.code_version(memory.entry(Gfn(8)).mfn), code.version);
    }

    #[test]
    fn what_may_not_be_touched_refuses_the_whole_transfer() {
        let memory = memory();
        memory.set_kind(Gfn(1), FrameKind::ReadOnly).unwrap();
        memory.set_kind(Gfn(2), FrameKind::Ballooned).unwrap();
        let bytes = |ranges: &[GuestRange]| memory.receive(ranges, |to| Some(to.bytes())).ok().flatten();
        assert_eq!(bytes(&[range(0, 0x1000), range(0x1800, 1)]), None);
        assert_eq!(bytes(&[range(0x3fff, 2)]), None, "no memory there");
        assert_eq!(bytes(&[range(u64::MAX, 2)]), None);
        assert_eq!(bytes(&[range(0x2000, 0x2000), range(0, 0)]), Some(0x2000));
        assert_eq!(memory.entry(Gfn(2)).kind, FrameKind::Ram, "taken back");
        assert_eq!(memory.provide(&[range(0, 0x4000)], |from| Some(from.bytes())).ok(), Some(Some(0x4000)));
    }
}
