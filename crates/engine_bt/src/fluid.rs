//! Which frames are *fluid*: written so often that to watch them for the sake of their code is not worth while.
//!
//! A write to a watched frame leaves translated code, and if it meets code, everything made of that is lost. There are two
//! ways for that to be too much: code that is written again and again, and data beside code. Both are counted, and a frame
//! where there is too much of either, in a short time, is not watched any more ([`memory::GuestMemory::make_fluid`]); the
//! blocks of a fluid frame check themselves instead ([`translate::SelfCheck`]).
//!
//! Nobody knows when it would be worth while to watch it again, since nobody sees the writes. So each *spell* ends after
//! a while, and the next one, if there has to be one, is twice as long.

use x86::Mfn;

use crate::cache::NumberMap;

/// Writes to code that are too many in a [`CODE_WINDOW`].
const CODE_WRITES: u32 = 8;
/// Changes of memory, of all kinds.
const CODE_WINDOW: u64 = 128;
/// Writes beside code that are too many in a [`DATA_WINDOW`].
const DATA_WRITES: u32 = 64;
/// Entries of translated code.
const DATA_WINDOW: u64 = 1 << 14;
/// Entries of translated code that the first spell lasts.
const SPELL: u64 = 1 << 14;
/// How often a spell's length doubles.
const LONGEST: u8 = 12;
/// Frames that are remembered.
const FRAMES: usize = 4096;
/// Frames that can be fluid.
const FLUID: usize = 1024;

/// Events, of which a number in a time is too much.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    events: u32,
    since: u64,
}

impl Count {
    /// Counts an event; true if that is too many of them.
    fn add(&mut self, now: u64, window: u64, limit: u32) -> bool {
        if now.wrapping_sub(self.since) > window {
            *self = Self { events: 0, since: now };
        }
        self.events = self.events.saturating_add(1);
        self.events >= limit
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    code: Count,
    data: Count,
    /// When its spell ends, if it has one.
    until: Option<u64>,
    spells: u8,
}

/// What a vCPU knows of frames that are written.
#[derive(Debug)]
pub(crate) struct Fluid {
    frames: NumberMap<Frame>,
    /// When a spell ends.
    next: u64,
}

impl Fluid {
    pub(crate) fn new() -> Self {
        Self { frames: NumberMap::default(), next: u64::MAX }
    }

    /// Code of a frame was written, at an epoch of memory. True if it should be fluid.
    pub(crate) fn code_written(&mut self, mfn: Mfn, epoch: u64) -> bool {
        self.frame(mfn).code.add(epoch, CODE_WINDOW, CODE_WRITES)
    }

    /// Data beside code was written, after so many entries. True if the frame should be fluid.
    pub(crate) fn data_written(&mut self, mfn: Mfn, entries: u64) -> bool {
        self.frame(mfn).data.add(entries, DATA_WINDOW, DATA_WRITES)
    }

    fn frame(&mut self, mfn: Mfn) -> &mut Frame {
        if self.frames.len() >= FRAMES {
            self.frames.retain(|_, frame| frame.until.is_some());
        }
        self.frames.entry(mfn.0).or_default()
    }

    /// Begins a frame's spell. False if too many have one.
    pub(crate) fn begin(&mut self, mfn: Mfn, entries: u64) -> bool {
        if self.frames.values().filter(|frame| frame.until.is_some()).count() >= FLUID {
            return false;
        }
        let frame = self.frame(mfn);
        let until = entries.saturating_add(SPELL << frame.spells);
        *frame = Frame { until: Some(until), spells: (frame.spells + 1).min(LONGEST), ..Frame::default() };
        self.next = self.next.min(until);
        true
    }

    /// Whether a spell has ended.
    #[inline]
    pub(crate) const fn is_over(&self, entries: u64) -> bool {
        entries >= self.next
    }

    /// The frames whose spells have ended; they have none from now on.
    pub(crate) fn end(&mut self, entries: u64) -> Vec<Mfn> {
        let mut over = Vec::new();
        self.next = u64::MAX;
        for (&mfn, frame) in &mut self.frames {
            match frame.until {
                Some(until) if until <= entries => {
                    frame.until = None;
                    over.push(Mfn(mfn));
                }
                Some(until) => self.next = self.next.min(until),
                None => {}
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Mfn = Mfn(7);

    #[test]
    fn many_writes_in_a_short_time_are_too_many() {
        let mut fluid = Fluid::new();
        assert!((1..CODE_WRITES).all(|n| !fluid.code_written(M, n.into())));
        assert!(fluid.code_written(M, 20));
        let mut seldom = Fluid::new();
        assert!((0..1000).all(|n| !seldom.code_written(M, n * CODE_WINDOW)));
        assert!((1..DATA_WRITES).all(|n| !fluid.data_written(M, n.into())));
        assert!(fluid.data_written(M, 100) && !fluid.data_written(Mfn(8), 100));
    }

    #[test]
    fn spells_end_and_grow() {
        let mut fluid = Fluid::new();
        let mut now = 0;
        for spell in 0..4 {
            assert!(!fluid.is_over(u64::MAX - 1), "there is none");
            assert!(fluid.begin(M, now));
            now += SPELL << spell;
            assert!(!fluid.is_over(now - 1) && fluid.end(now - 1).is_empty());
            assert!(fluid.is_over(now));
            assert_eq!(fluid.end(now), [M]);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut fluid = Fluid::new();
        for n in 0..100_000 {
            fluid.code_written(Mfn(n), n);
            fluid.begin(Mfn(n), n);
        }
        assert!(fluid.frames.len() <= FRAMES);
        assert!(!fluid.begin(Mfn(1 << 20), 0));
    }
}
