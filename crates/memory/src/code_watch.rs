//! Which machine frames hold code that an engine has decoded or translated, and whether it is still what they hold.
//!
//! One 32-bit word per machine frame:
//!
//! ```text
//!   31       5     4      3       2          1          0
//!  | changes | fluid | traced | clearing | writable | watched |
//! ```
//!
//! * *watched*: an engine holds code of this frame. Writes to it must not be cached in translations.
//! * *writable*: while neither watched nor traced, some vCPU was allowed to cache a writable translation. Together with *watched*: such
//!   translations have to be dropped before code of the frame may be kept ([`crate::shootdown`]).
//! * *clearing*: the watch has ended, and the marks (below) are being taken away; until then nobody can watch again, so
//!   that only marks of the watch that has ended go.
//! * *traced*: somebody follows all writes to the frame, which is another reason not to cache them ([`crate::traces`]).
//! * *fluid*: the frame is written so often that to watch it is not worth while. Nobody can watch it; what is kept of its
//!   code has to compare it with the bytes as they are, each time before it runs.
//! * *changes*: raised by one when a watched frame is written, which also ends the watch.
//!
//! The **version** that engines compare is the word without *writable* and *traced*. An engine gets it from [`CodeWatch::watch`],
//! with *watched* set; it stays the same until the frame's code is written, and never comes back afterwards, because
//! *changes* has grown by the time *watched* is set again. (It comes back after 2^27 further writes, each to a frame watched anew in between, to an
//! engine that has not looked once meanwhile; such a guest runs its own stale code and harms nobody else.)
//!
//! A frame may hold data beside its code. So engines say where the code is that they hold ([`CodeWatch::mark`]), in
//! granules of 64 bytes, before they take its bytes for good; a write elsewhere in a watched frame changes nothing. Marks
//! are taken away after the version is raised, by who raised it: who marks in between finds its version outdated.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86::Mfn;
use x86::bits::index;

use crate::MemoryError;
use crate::zeroed::Table;

/// Bytes of a granule.
const GRANULE: u64 = 64;
const WATCHED: u32 = 1;
const WRITABLE: u32 = 2;
const CLEARING: u32 = 4;
const TRACED: u32 = 8;
const FLUID: u32 = 16;
/// From watched to "not watched, clearing, one change more".
const CHANGED: u32 = 32 + CLEARING - WATCHED;
/// What is not part of the version.
const ASIDE: u32 = WRITABLE | TRACED;

#[derive(Debug)]
pub(crate) struct CodeWatch {
    frames: Table<AtomicU32>,
    /// By frame: the granules that hold code.
    marks: Table<AtomicU64>,
}

/// The granules of a range of a frame, as bits.
pub(crate) const fn granules(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let (first, last) = (offset / GRANULE, (offset + len - 1) / GRANULE);
    let last = if last > 63 { 63 } else { last };
    if first > last { 0 } else { (u64::MAX >> (63 - last)) & (u64::MAX << first) }
}

impl CodeWatch {
    /// Nothing is watched. Costs memory only where frames are.
    pub(crate) fn new(frames: u64) -> Result<Self, MemoryError> {
        Ok(Self { frames: Table::new(frames)?, marks: Table::new(frames)? })
    }

    #[inline(always)]
    pub(crate) fn version(&self, mfn: Mfn) -> u32 {
        self.word(mfn) & !ASIDE
    }

    #[inline(always)]
    fn word(&self, mfn: Mfn) -> u32 {
        self.frames.get(index(mfn.0)).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline(always)]
    pub(crate) fn is_watched(&self, mfn: Mfn) -> bool {
        self.version(mfn) & WATCHED != 0
    }

    /// Starts to watch a frame, or goes on. Returns the version, and whether writable translations of it may be cached
    /// somewhere; `None` if it cannot be watched at this moment.
    pub(crate) fn watch(&self, mfn: Mfn) -> Option<(u32, bool)> {
        let Some(word) = self.frames.get(index(mfn.0)) else { return Some((0, false)) };
        // A read-modify-write is a full barrier on x86: the caller's reads of the code come after the watch is seen.
        let watched = |old| (old & (CLEARING | FLUID) == 0).then_some(old | WATCHED);
        let before = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, watched).ok()?;
        Some((before & !ASIDE | WATCHED, before & WRITABLE != 0))
    }

    /// Makes a frame fluid; true if it was not. The caller ends the watch, if there is one, by [`CodeWatch::written`].
    pub(crate) fn make_fluid(&self, mfn: Mfn) -> bool {
        self.frames.get(index(mfn.0)).is_some_and(|word| word.fetch_or(FLUID, Ordering::SeqCst) & FLUID == 0)
    }

    /// The frame may be watched again.
    pub(crate) fn make_solid(&self, mfn: Mfn) {
        if let Some(word) = self.frames.get(index(mfn.0)) {
            word.fetch_and(!FLUID, Ordering::AcqRel);
        }
    }

    pub(crate) fn is_fluid(&self, mfn: Mfn) -> bool {
        self.word(mfn) & FLUID != 0
    }

    /// Whether the watch of this version still goes on, and writable translations from before may be cached somewhere.
    pub(crate) fn is_unsettled(&self, mfn: Mfn, version: u32) -> bool {
        self.word(mfn) & !TRACED == version | WRITABLE
    }

    /// No translation from before the watch of this version is cached any more.
    pub(crate) fn settle(&self, mfn: Mfn, version: u32) {
        if let Some(word) = self.frames.get(index(mfn.0)) {
            // If the frame was written meanwhile, translations may have been made since.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
                (old & !TRACED == version | WRITABLE).then_some(old & !WRITABLE)
            });
        }
    }

    /// Says that code in this range of a watched frame is going to be kept.
    pub(crate) fn mark(&self, mfn: Mfn, offset: u64, len: u64) {
        if let Some(marks) = self.marks.get(index(mfn.0)) {
            // A full barrier: the caller's reads of the code come after writers can see the marks.
            marks.fetch_or(granules(offset, len), Ordering::SeqCst);
        }
    }

    /// Bytes of the frame were changed, before this call: those of a range, or unknown ones. True if that ended a watch.
    pub(crate) fn written(&self, mfn: Mfn, range: Option<(u64, u64)>) -> bool {
        let (Some(word), Some(marks)) = (self.frames.get(index(mfn.0)), self.marks.get(index(mfn.0))) else {
            return false;
        };
        if word.load(Ordering::Acquire) & WATCHED == 0 {
            return false;
        }
        if let Some((offset, len)) = range
            && marks.load(Ordering::Acquire) & granules(offset, len) == 0
        {
            return false;
        }
        let ended = word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                (old & WATCHED != 0).then(|| old.wrapping_add(CHANGED))
            })
            .is_ok();
        if ended {
            marks.store(0, Ordering::Release);
            word.fetch_and(!CLEARING, Ordering::AcqRel);
        }
        ended
    }

    /// Asks to cache a writable translation of the frame: refused while it is watched or traced.
    pub(crate) fn allow_writable(&self, mfn: Mfn) -> bool {
        let Some(word) = self.frames.get(index(mfn.0)) else { return false };
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            (old & (WATCHED | TRACED | WRITABLE) == 0).then_some(old | WRITABLE)
        })
        .map_or_else(|now| now & (WATCHED | TRACED) == 0, |_| true)
    }

    /// Starts to trace the frame. True if writable translations of it may be cached somewhere.
    pub(crate) fn trace(&self, mfn: Mfn) -> bool {
        // A full barrier: what the caller reads of the frame from now on comes after writers can see that it is traced.
        self.frames
            .get(index(mfn.0))
            .is_some_and(|word| word.fetch_or(TRACED, Ordering::SeqCst) & WRITABLE != 0)
    }

    /// Whether the frame is traced; and if so, whether that is settled.
    #[inline]
    pub(crate) fn traced(&self, mfn: Mfn) -> Option<bool> {
        let word = self.word(mfn);
        (word & TRACED != 0).then_some(word & WRITABLE == 0)
    }

    /// No translation from before the trace is cached any more.
    pub(crate) fn settle_trace(&self, mfn: Mfn) {
        if let Some(word) = self.frames.get(index(mfn.0)) {
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
                (old & TRACED != 0).then_some(old & !WRITABLE)
            });
        }
    }

    /// Ends a trace.
    pub(crate) fn untrace(&self, mfn: Mfn) {
        if let Some(word) = self.frames.get(index(mfn.0)) {
            word.fetch_and(!TRACED, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Mfn = Mfn(5);

    #[test]
    fn a_version_lasts_until_the_first_write() {
        let watch = CodeWatch::new(8).unwrap();
        let (first, _) = watch.watch(M).unwrap();
        assert_eq!((watch.version(M), watch.watch(M).unwrap().0, watch.is_watched(M)), (first, first, true));
        watch.written(M, None);
        assert!(watch.version(M) != first && !watch.is_watched(M));
        let (second, _) = watch.watch(M).unwrap();
        assert!(second != first && watch.version(M) == second);
    }

    #[test]
    fn writes_beside_the_code_change_nothing() {
        let watch = CodeWatch::new(8).unwrap();
        let (version, _) = watch.watch(M).unwrap();
        watch.mark(M, 100, 30);
        for (offset, len) in [(0, 64), (192, 8), (4088, 8), (63, 1), (70, 0)] {
            assert!(!watch.written(M, Some((offset, len))), "{offset}+{len}");
        }
        assert_eq!(watch.version(M), version);
        // To the granule, not to the byte.
        assert!(watch.written(M, Some((64, 1))));
        assert_ne!(watch.version(M), version);
        let (version, _) = watch.watch(M).unwrap();
        assert!(!watch.written(M, Some((100, 8))) && watch.version(M) == version, "marks end with the watch");
        watch.mark(M, 4000, 96);
        assert!(watch.written(M, None));
        assert_eq!((granules(0, 4096), granules(64, 64), granules(63, 2)), (u64::MAX, 2, 3));
    }

    #[test]
    fn versions_never_repeat() {
        let watch = CodeWatch::new(8).unwrap();
        let mut seen = std::collections::HashSet::new();
        for round in 0..1000 {
            assert!(seen.insert(watch.watch(M).unwrap().0));
            watch.written(M, None);
            watch.written(M, None);
            if round % 3 == 0 {
                assert!(watch.allow_writable(M));
            }
            assert!(!seen.contains(&watch.version(M)));
        }
    }

    #[test]
    fn watching_reports_writable_translations_until_it_is_settled() {
        let watch = CodeWatch::new(8).unwrap();
        assert!(!watch.watch(M).unwrap().1);
        assert!(!watch.allow_writable(M));
        watch.written(M, None);
        assert!(watch.allow_writable(M) && watch.allow_writable(M));
        let (version, writable) = watch.watch(M).unwrap();
        assert!(writable && watch.is_unsettled(M, version) && !watch.allow_writable(M));
        assert_eq!((watch.watch(M).unwrap(), watch.version(M)), ((version, true), version));
        watch.settle(M, version);
        assert!(!watch.is_unsettled(M, version));
        assert_eq!((watch.watch(M).unwrap(), watch.version(M)), ((version, false), version));
    }

    #[test]
    fn a_watch_that_has_ended_cannot_be_settled() {
        let watch = CodeWatch::new(8).unwrap();
        assert!(watch.allow_writable(M));
        let (version, _) = watch.watch(M).unwrap();
        watch.written(M, None);
        watch.settle(M, version);
        let (next, writable) = watch.watch(M).unwrap();
        assert!(writable && next != version);
        watch.settle(M, version);
        assert!(watch.is_unsettled(M, next));
    }

    #[test]
    fn nobody_watches_a_fluid_frame() {
        let watch = CodeWatch::new(8).unwrap();
        let (version, _) = watch.watch(M).unwrap();
        assert!(watch.make_fluid(M) && !watch.make_fluid(M) && watch.is_fluid(M));
        assert!(watch.written(M, None), "its watch goes on until it is ended");
        assert!(watch.version(M) != version && watch.watch(M).is_none() && watch.allow_writable(M));
        assert!(!watch.written(M, None));
        watch.make_solid(M);
        let (next, writable) = watch.watch(M).unwrap();
        assert!(writable && next != version && !watch.is_fluid(M));
    }

    #[test]
    fn frames_outside_are_never_code_and_never_writable() {
        let watch = CodeWatch::new(8).unwrap();
        let outside = Mfn(8);
        assert_eq!(watch.watch(outside), Some((0, false)));
        watch.written(outside, None);
        assert!(!watch.allow_writable(outside) && !watch.is_watched(outside));
    }
}
