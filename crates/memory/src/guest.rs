//! [`GuestMemory`]: the only road to guest bytes, and the rules by which engines may take short cuts on it.
//!
//! # The road
//! Devices, loaders and the page walk name guest-physical addresses, all of which a guest may have made up. Every
//! operation here accepts any address and any length, goes page by page through the P2M, and answers with an error
//! instead of a panic. What the kinds of frames allow:
//!
//! | kind | read | write, fill, compare-exchange |
//! |---|---|---|
//! | `Ram` | bytes | bytes |
//! | `ReadOnly`, `Shared` | bytes | refused |
//! | `Ballooned` | zeros, without touching the frame | takes the frame back: it becomes `Ram` |
//! | `Mmio`, `Absent`, `Swapped` | refused | refused |
//!
//! An operation over several frames is refused at the first byte that cannot be reached; what lies before it has been
//! done by then, as when a bus master is stopped in the middle of a transfer.
//!
//! # Double fetches
//! A guest can change a word between two reads of it. So a word is read *once*, by [`GuestMemory::read_word`] or by
//! [`GuestMemory::read`] into a buffer of the caller's, checked there and used from there; no reference into guest
//! memory exists that could be looked at twice by mistake. A word inside one frame is read by one instruction; one that
//! crosses frames is put together from two reads.
//!
//! # The short cut and the epoch
//! An engine caches translations that lead straight to a machine frame. Four things can make one wrong: a P2M change,
//! a harvest of the dirty log (the next write has to be logged again), a frame that came to hold decoded code (writes
//! have to be noticed), a frame that came to be traced (likewise; `traces`). Each of these first changes its own table,
//! then raises the **epoch** by a [`Change`]. Whoever caches translations promises, per vCPU:
//!
//! 1. To read [`GuestMemory::epoch`] *before* the look-ups whose results it caches, and to remember it as *seen*.
//! 2. To cache a writable translation only if [`GuestMemory::may_cache_writes`] says so; otherwise each write is
//!    followed by [`GuestMemory::note_write`].
//! 3. At each block boundary, and before it reports itself stopped, to compare the epoch with *seen*. If they differ: read
//!    the new epoch and the changes up to it, call `note_write` for every writable translation it holds of the frames that
//!    they concern, drop those translations, and remember the new epoch as seen.
//! 4. To do 3 also before a writable translation is dropped for any other reason (a flush that the guest asked for,
//!    replacement by another entry), if the epoch differs from *seen*.
//!
//! Why nothing is lost: suppose a write goes through a translation cached before the change. By 1, the vCPU's *seen* is
//! older than the change's epoch, so by 3 and 4 it calls `note_write` for that frame after the write and before it
//! forgets the translation: the dirty log gets the frame again and the version of its code rises. Until then the vCPU is
//! between two block boundaries, where a processor too may still be using the old translation.
//! Suppose instead a translation is looked up after the change: it sees the changed table.
//!
//! # Self-modifying code
//! An engine calls [`GuestMemory::watch_code`] *before* it reads the bytes that it decodes, marks those it is going to keep
//! ([`GuestMemory::mark_code`]) and sees that they are still the same, keeps the version beside what it made of them, and
//! before running that again compares [`GuestMemory::code_version`]. Writers change the bytes first and raise the version after, with a full barrier in between on either side: so if the decoder missed the bytes, the writer
//! sees the watch and raises the version (the classical argument of Dekker). The version is up before the writer's next
//! instruction. That is what SDM vol. 3A, 10.1.3 asks for self-modifying code, if blocks end at writes that raise it; and
//! for cross-modifying code, if nothing is kept that was made of a frame whose watch is not [`Watch::settled`], and vCPUs
//! take a [`Seat`]: [`crate::shootdown`] says how and why. A frame that is written too often for all that is made *fluid*
//! ([`GuestMemory::make_fluid`]): what is kept of its code then compares itself with the bytes.

mod balloon;
mod resident;

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use x86::bits::index;
use x86::{Gfn, Gpa, Mfn, PAGE_SIZE};

use crate::changes::{Change, ChangeLog};
use crate::code_watch::{CodeWatch, granules};
use crate::dirty::DirtyLog;
use crate::layout::Layout;
use crate::p2m::P2m;
use crate::shootdown::{Seats, Shootdowns};
use crate::traces::{TracedWrite, Traces};
use crate::{FrameKind, Frames, MemoryError, P2mEntry, RamRange, SavedP2m, Seat, Word};

/// What [`GuestMemory::watch_code`] says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// To compare with [`GuestMemory::code_version`] later, of a settled frame.
    pub version: u32,
    /// What is made of the frame's bytes from now on may be kept as long as the version lasts. Otherwise somebody may still
    /// write them without anybody being told: the bytes may be executed, but nothing may be kept.
    pub settled: bool,
}

/// The memory of one guest: machine frames, the map to them, the dirty log, the watch over code.
#[derive(Debug)]
pub struct GuestMemory {
    changes: ChangeLog,
    frames: Frames,
    p2m: P2m,
    code: CodeWatch,
    dirty: DirtyLog,
    seats: Seats,
    shootdowns: Shootdowns,
    traces: Traces,
    layout: Layout,
}

impl GuestMemory {
    /// Makes memory of this layout, all RAM, all zeros, none of it costing anything yet.
    ///
    /// # Errors
    /// If the ranges are empty, overlap, are not ascending or lie too high, or the host has not the address space.
    pub fn new(ranges: &[RamRange]) -> Result<Self, MemoryError> {
        let layout = Layout::new(ranges)?;
        Ok(Self {
            changes: ChangeLog::new(),
            frames: Frames::new(layout.frames())?,
            p2m: P2m::new(&layout)?,
            code: CodeWatch::new(layout.frames())?,
            dirty: DirtyLog::new(layout.frames())?,
            seats: Seats::default(),
            shootdowns: Shootdowns::default(),
            traces: Traces::new(),
            layout,
        })
    }

    /// The ranges of guest frames that have memory.
    pub fn ranges(&self) -> &[RamRange] {
        self.layout.ranges()
    }

    /// How much memory the guest was given, in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.layout.frames() * PAGE_SIZE
    }

    /// What the guest's memory really costs the host, in bytes.
    ///
    /// # Errors
    /// If the kernel cannot say.
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        self.frames.resident_bytes()
    }

    /// The machine frames.
    #[inline(always)]
    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// What a guest frame is; [`FrameKind::Mmio`] outside the layout.
    #[inline(always)]
    pub fn entry(&self, gfn: Gfn) -> P2mEntry {
        self.p2m.entry(gfn)
    }

    /// The machine frame of `first`, if it and the `frames - 1` frames that follow are RAM in ascending machine frames: what
    /// a large page may map.
    pub fn run(&self, first: Gfn, frames: u64) -> Option<Mfn> {
        self.p2m.run(first, frames)
    }

    /// Changes what a guest frame is. Accesses begun afterwards see the new kind, cached translations at their next block
    /// boundary. A frame that becomes [`FrameKind::Ballooned`] loses its contents and costs nothing until it is used
    /// again; for many of them, while the guest runs, there is [`GuestMemory::inflate`].
    ///
    /// # Errors
    /// If the frame is not part of the layout, or the kernel does not take the frame back.
    pub fn set_kind(&self, gfn: Gfn, kind: FrameKind) -> Result<(), MemoryError> {
        let before = self.p2m.set_kind(gfn, kind).ok_or(MemoryError::NotMemory { gfn })?;
        if before.kind == kind {
            return Ok(());
        }
        self.announce(Change::Remapped(gfn));
        if kind == FrameKind::Ballooned {
            self.frames.discard(before.mfn, 1)?;
            self.note_write(gfn, before.mfn);
        }
        Ok(())
    }

    /// Reads bytes, across frames.
    ///
    /// # Errors
    /// If a frame refuses reads or the range passes the end of the address space.
    pub fn read(&self, gpa: Gpa, to: &mut [u8]) -> Result<(), MemoryError> {
        for piece in pieces(gpa, to.len() as u64)? {
            // In bounds: the pieces cut up exactly this length.
            let Some(part) = to.get_mut(piece.bytes.clone()) else { break };
            match self.entry(piece.gpa.frame()) {
                P2mEntry { kind: FrameKind::Ballooned, .. } => part.fill(0),
                entry => self.frames.copy_out(readable(piece.gpa, entry)?, piece.gpa.offset(), part),
            }
        }
        Ok(())
    }

    /// Writes bytes, across frames.
    ///
    /// # Errors
    /// If a frame refuses writes or the range passes the end of the address space.
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        for piece in pieces(gpa, from.len() as u64)? {
            let mfn = self.writable(piece.gpa)?;
            let len = piece.bytes.len() as u64;
            if let Some(part) = from.get(piece.bytes) {
                self.frames.copy_in(mfn, piece.gpa.offset(), part);
            }
            self.note_write_at(piece.gpa.frame(), mfn, piece.gpa.offset(), len);
        }
        Ok(())
    }

    /// Sets `len` bytes to `byte`, across frames.
    ///
    /// # Errors
    /// As for [`GuestMemory::write`].
    pub fn fill(&self, gpa: Gpa, len: u64, byte: u8) -> Result<(), MemoryError> {
        for piece in pieces(gpa, len)? {
            let mfn = self.writable(piece.gpa)?;
            self.frames.fill(mfn, piece.gpa.offset(), piece.bytes.len(), byte);
            self.note_write_at(piece.gpa.frame(), mfn, piece.gpa.offset(), piece.bytes.len() as u64);
        }
        Ok(())
    }

    /// Reads a little-endian word, by one instruction unless it crosses frames.
    ///
    /// # Errors
    /// As for [`GuestMemory::read`].
    #[inline]
    pub fn read_word<W: Word>(&self, gpa: Gpa) -> Result<W, MemoryError> {
        if inside_one_frame(gpa, W::BYTES) {
            return match self.entry(gpa.frame()) {
                P2mEntry { kind: FrameKind::Ballooned, .. } => Ok(W::default()),
                entry => Ok(self.frames.read(readable(gpa, entry)?, gpa.offset())),
            };
        }
        let mut bytes = [0; 8];
        let (word, _) = bytes.split_at_mut(W::BYTES.min(8));
        self.read(gpa, word)?;
        Ok(W::from_u64(u64::from_le_bytes(bytes)))
    }

    /// Writes a little-endian word, by one instruction unless it crosses frames.
    ///
    /// # Errors
    /// As for [`GuestMemory::write`].
    #[inline]
    pub fn write_word<W: Word>(&self, gpa: Gpa, value: W) -> Result<(), MemoryError> {
        if inside_one_frame(gpa, W::BYTES) {
            let mfn = self.writable(gpa)?;
            self.frames.write(mfn, gpa.offset(), value);
            self.note_write_at(gpa.frame(), mfn, gpa.offset(), W::BYTES as u64);
            return Ok(());
        }
        let bytes = value.into_u64().to_le_bytes();
        let (word, _) = bytes.split_at(W::BYTES.min(8));
        self.write(gpa, word)
    }

    /// Atomically replaces a word by `new` if it is `expected`; the inner `Err` holds what was found instead. This is how a
    /// page walk sets accessed and dirty bits (SDM vol. 3A, 5.8), and who traces page tables is not told of them: it does
    /// these walks itself, and what it made of an entry without such a bit is none the worse for the bit.
    ///
    /// # Errors
    /// As for [`GuestMemory::write`], and if the word crosses frames.
    pub fn mark_entry<W: Word>(&self, gpa: Gpa, expected: W, new: W) -> Result<Result<W, W>, MemoryError> {
        if !inside_one_frame(gpa, W::BYTES) {
            return Err(MemoryError::Crossing { gpa });
        }
        let mfn = self.writable(gpa)?;
        let outcome = self.frames.compare_exchange(mfn, gpa.offset(), expected, new);
        if outcome.is_ok() {
            // As in `note`.
            fence(Ordering::SeqCst);
            self.log_write(gpa.frame());
            self.code_written(mfn, Some((gpa.offset(), W::BYTES as u64)));
        }
        Ok(outcome)
    }

    /// Atomically replaces a word; what was there.
    ///
    /// # Errors
    /// As for [`GuestMemory::write`], and if the word crosses frames.
    pub fn swap_word<W: Word>(&self, gpa: Gpa, new: W) -> Result<W, MemoryError> {
        if !inside_one_frame(gpa, W::BYTES) {
            return Err(MemoryError::Crossing { gpa });
        }
        let mfn = self.writable(gpa)?;
        let mut old = self.frames.read(mfn, gpa.offset());
        while let Err(found) = self.frames.compare_exchange(mfn, gpa.offset(), old, new) {
            old = found;
        }
        self.note_write_at(gpa.frame(), mfn, gpa.offset(), W::BYTES as u64);
        Ok(old)
    }

    /// The machine frame to write to, taken back from the balloon if need be.
    fn writable(&self, gpa: Gpa) -> Result<Mfn, MemoryError> {
        let gfn = gpa.frame();
        let entry = self.entry(gfn);
        match entry.kind {
            FrameKind::Ram => Ok(entry.mfn),
            FrameKind::Ballooned => self.set_kind(gfn, FrameKind::Ram).map(|()| entry.mfn),
            kind => Err(MemoryError::Refused { gpa, kind, access: "write" }),
        }
    }

    // ---- the dirty log -------------------------------------------------------------------------------------------

    /// Starts to log which frames are written, with an empty log.
    pub fn start_dirty_log(&self) {
        self.dirty.switch(true);
        self.announce(Change::Logged);
    }

    /// Stops logging.
    pub fn stop_dirty_log(&self) {
        self.dirty.switch(false);
    }

    /// The frames written since logging started or this was last called, ascending. A frame that is written while this
    /// runs is in this harvest or in the next. The last harvest is complete when all vCPUs have reported themselves
    /// stopped, and all devices quiet, before it.
    pub fn take_dirty(&self) -> Vec<Gfn> {
        let mut dirty = Vec::new();
        self.dirty.take(|slot| dirty.extend(self.layout.gfn(slot)));
        // An empty log means that no writable translation has been cached since the last epoch.
        if !dirty.is_empty() {
            self.announce(Change::Logged);
        }
        dirty
    }

    // ---- cached translations and cached code ---------------------------------------------------------------------

    /// Asks to cache a writable translation of a frame, and logs the frame as written. `false` if writes must not be
    /// cached, because the frame holds code that an engine has decoded, or is traced.
    pub fn may_cache_writes(&self, gfn: Gfn, mfn: Mfn) -> bool {
        let allowed = self.code.allow_writable(mfn);
        if allowed {
            self.log_write(gfn);
        }
        allowed
    }

    /// To be called after bytes of a frame were written other than by this type's own methods: logs the frame; if it is
    /// traced, says so to the tracer; and if it holds code, raises its version and ends the watch.
    pub fn note_write(&self, gfn: Gfn, mfn: Mfn) {
        self.note(gfn, mfn, None);
    }

    /// As [`GuestMemory::note_write`], for who knows which bytes of the frame were written.
    pub fn note_write_at(&self, gfn: Gfn, mfn: Mfn, offset: u64, len: u64) {
        self.note(gfn, mfn, Some((offset, len)));
    }

    /// `range` is offset and length of what was written, if known.
    #[inline]
    fn note(&self, gfn: Gfn, mfn: Mfn, range: Option<(u64, u64)>) {
        // The write has to be visible before "is anybody watching?" is read, or a watcher that starts in between could
        // read the old bytes while this read the old answer. x86 reorders exactly that (SDM vol. 3A, 10.2.3.4).
        fence(Ordering::SeqCst);
        self.log_write(gfn);
        self.trace_write(gfn, mfn, range);
        self.code_written(mfn, range);
    }

    fn code_written(&self, mfn: Mfn, range: Option<(u64, u64)>) {
        if self.code.written(mfn, range) {
            self.announce(Change::Written(mfn));
        }
    }

    fn log_write(&self, gfn: Gfn) {
        if self.dirty.is_on()
            && let Some(slot) = self.layout.slot(gfn)
        {
            self.dirty.mark(slot);
        }
    }

    #[inline]
    fn trace_write(&self, gfn: Gfn, mfn: Mfn, range: Option<(u64, u64)>) {
        if let Some(settled) = self.code.traced(mfn) {
            let granules = range.map_or(u64::MAX, |(offset, len)| granules(offset, len));
            self.traces.log(gfn, mfn, granules, settled, || self.code.untrace(mfn));
        }
    }

    /// Starts to trace a frame: from now on [`GuestMemory::take_traced`] says what is written to it. There is one tracer,
    /// whose traces end by [`GuestMemory::untrace`], or when a frame is lost. Returns what to ask
    /// [`GuestMemory::trace_settled`] with; until then the frame may be written without anybody being told.
    ///
    /// To be called before the frame is read for what the tracer keeps.
    pub fn trace(&self, mfn: Mfn) -> u64 {
        if self.code.trace(mfn) { self.announce(Change::Watched(mfn)) } else { 0 }
    }

    /// Whether all have dropped their writable translations of a frame since the trace that began with `epoch`. What was
    /// written through them is in the log.
    pub fn trace_settled(&self, mfn: Mfn, epoch: u64) -> bool {
        if epoch == 0 {
            return true;
        }
        let settled = self.seats.heard() >= epoch;
        if settled {
            self.code.settle_trace(mfn);
        }
        settled
    }

    /// Ends a trace.
    pub fn untrace(&self, mfn: Mfn) {
        self.code.untrace(mfn);
    }

    /// How many writes to a traced frame, with no look at the log in between, end its trace.
    pub fn limit_traces(&self, writes: u32) {
        self.traces.set_limit(writes);
    }

    /// What was written to traced frames since the last time, each frame once. To be called before each use of what the
    /// tracer has made of them.
    #[inline]
    pub fn take_traced(&self, each: impl FnMut(TracedWrite)) {
        self.traces.take(each);
    }

    /// Writes to traced frames so far.
    pub fn traced_writes(&self) -> u64 {
        self.traces.writes()
    }

    /// Whether a frame is traced.
    pub fn is_traced(&self, mfn: Mfn) -> bool {
        self.code.traced(mfn).is_some()
    }

    /// Announces that the caller is about to read code of a frame in order to cache what it makes of it. If writable
    /// translations of the frame may be cached somewhere, the caller's included, that raises the epoch once; who asks
    /// again when all have heard of it finds the frame settled.
    pub fn watch_code(&self, mfn: Mfn) -> Watch {
        let Some((version, writable)) = self.code.watch(mfn) else {
            return Watch { version: 0, settled: false };
        };
        Watch { version, settled: !writable || self.shoot_down(mfn, version) }
    }

    #[cold]
    fn shoot_down(&self, mfn: Mfn, version: u32) -> bool {
        self.shootdowns.advance(
            &self.seats,
            (mfn, version),
            |over| self.code.settle(over.mfn, over.version),
            || self.code.is_unsettled(mfn, version),
            || self.announce(Change::Watched(mfn)),
        )
    }

    /// A vCPU's seat; `call` makes it reach a block boundary soon if it runs. Whoever caches writable translations while
    /// others run needs one.
    pub fn seat(&self, call: impl Fn() + Send + Sync + 'static) -> Seat {
        self.seats.take(Box::new(call))
    }

    /// Makes an access while all other vCPUs stand still: for one that has to be atomic and cannot be. The caller hears
    /// changes before it uses a cached translation again.
    pub fn alone<R>(&self, seat: &Seat, access: impl FnOnce() -> R) -> R {
        self.seats.alone(seat, || self.announce(Change::Nothing), access)
    }

    /// Raises the epoch, and returns it.
    fn announce(&self, change: Change) -> u64 {
        let epoch = self.changes.push(change);
        self.seats.call(epoch);
        epoch
    }

    /// Says which bytes of a watched frame the caller has decoded and is going to keep what it made of them. To be called
    /// before the bytes are read for the last time: writes elsewhere in the frame leave its version alone.
    pub fn mark_code(&self, mfn: Mfn, offset: u64, len: u64) {
        self.code.mark(mfn, offset, len);
    }

    /// Gives up watching a frame, which is written too often for that: its watch ends, as if it were written, and nobody
    /// can watch it until [`GuestMemory::make_solid`]. What is kept of its code compares itself with the frame's bytes
    /// each time before it runs, and after each write of its own.
    pub fn make_fluid(&self, mfn: Mfn) {
        if self.code.make_fluid(mfn) {
            self.code_written(mfn, None);
        }
    }

    /// The frame can be watched again.
    pub fn make_solid(&self, mfn: Mfn) {
        self.code.make_solid(mfn);
    }

    /// Whether a frame cannot be watched, because it is written too often.
    pub fn is_fluid(&self, mfn: Mfn) -> bool {
        self.code.is_fluid(mfn)
    }

    /// The version of a frame's code: equal to what [`GuestMemory::watch_code`] returned as long as no marked code of
    /// the frame was written since.
    #[inline(always)]
    pub fn code_version(&self, mfn: Mfn) -> u32 {
        self.code.version(mfn)
    }

    /// Whether a frame's code is being watched, so that writes to it must not be cached.
    #[inline(always)]
    pub fn is_code(&self, mfn: Mfn) -> bool {
        self.code.is_watched(mfn)
    }

    /// Changes whenever cached translations or cached code may have become wrong; never 0. The rules stand on top of
    /// this file.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.changes.epoch()
    }

    /// What happened from epoch `seen` to epoch `now`.
    pub fn changes(&self, seen: u64, now: u64) -> impl Iterator<Item = Change> {
        self.changes.between(seen, now)
    }

    // ---- the saved form ------------------------------------------------------------------------------------------

    /// The layout and the kinds of all frames, without their contents.
    pub fn save(&self) -> SavedP2m {
        SavedP2m::new(self.ranges(), |gfn| self.entry(gfn).kind)
    }

    /// Memory of this layout as it was saved, with contents of zeros. The layout comes from the machine's description, so
    /// that a damaged record cannot ask for more than the machine was given.
    ///
    /// # Errors
    /// As for [`GuestMemory::new`], and if the record is of another layout, or its kinds do not cover it exactly.
    pub fn restore(saved: &SavedP2m, ranges: &[RamRange]) -> Result<Self, MemoryError> {
        let memory = Self::new(ranges)?;
        memory.take_over(saved)?;
        Ok(memory)
    }

    /// Makes this memory, all of it RAM, what was saved, but for the contents. No vCPU runs.
    ///
    /// # Errors
    /// If the record is of another layout, or its kinds do not cover it exactly.
    pub fn take_over(&self, saved: &SavedP2m) -> Result<(), MemoryError> {
        if saved.ranges() != self.ranges() {
            return Err(MemoryError::Damaged { problem: "it is of memory that is laid out differently" });
        }
        for (gfn, kind) in saved.kinds(self.layout.frames(), |slot| self.layout.gfn(slot))? {
            self.set_kind(gfn, kind)?;
        }
        Ok(())
    }
}

/// The machine frame to read from.
#[inline]
fn readable(gpa: Gpa, entry: P2mEntry) -> Result<Mfn, MemoryError> {
    match entry.kind {
        FrameKind::Ram | FrameKind::ReadOnly | FrameKind::Shared => Ok(entry.mfn),
        kind => Err(MemoryError::Refused { gpa, kind, access: "read" }),
    }
}

#[inline(always)]
fn inside_one_frame(gpa: Gpa, bytes: usize) -> bool {
    gpa.offset() + bytes as u64 <= PAGE_SIZE
}

/// The part of a range that lies in one frame.
pub(crate) struct Piece {
    pub(crate) gpa: Gpa,
    /// Which bytes of the whole range these are.
    pub(crate) bytes: Range<usize>,
}

/// Cuts a range up at frame boundaries.
pub(crate) fn pieces(gpa: Gpa, len: u64) -> Result<impl Iterator<Item = Piece>, MemoryError> {
    // The last byte's address must exist; the address past the end need not.
    if len != 0 && gpa.checked_add(len - 1).is_none() {
        return Err(MemoryError::PastEnd { gpa, len });
    }
    let mut done = 0;
    Ok(std::iter::from_fn(move || {
        let left = len - done;
        let at = gpa.wrapping_add(done);
        let size = left.min(PAGE_SIZE - at.offset());
        let start = done;
        done += size;
        (size != 0).then_some(Piece { gpa: at, bytes: index(start)..index(done) })
    }))
}

#[cfg(test)]
mod tests;
