//! The pages that the trials of a turn open for writing: as they were, and as each left them.

use memory::GuestMemory;
use translate::context::Table;
use x86::{Gfn, Mfn, PAGE_SIZE};

use super::TRIALS;

const BYTES: usize = PAGE_SIZE as usize;
/// Bytes compared at once.
const LINE: usize = 128;
type Content = Box<[u8; BYTES]>;

struct Page {
    mfn: Mfn,
    gfn: Gfn,
    before: Content,
    /// By trial; as before, if that had not opened it.
    after: [Content; TRIALS],
}

/// All of them.
#[derive(Default)]
pub(super) struct Pages {
    pages: Vec<Page>,
    openings: Vec<(Table, u64)>,
    /// Trials that have been taken back.
    done: usize,
    /// Room that is used again.
    spare: Vec<(Content, [Content; TRIALS])>,
}

/// Eight bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) gfn: Gfn,
    pub(super) offset: usize,
    pub(super) before: [u8; 8],
    pub(super) trial: [u8; 8],
    pub(super) now: [u8; 8],
}

impl Pages {
    /// A frame is about to be writable through `opening`.
    pub(super) fn open(&mut self, memory: &GuestMemory, mfn: Mfn, gfn: Gfn, opening: (Table, u64)) {
        self.openings.push(opening);
        if self.holds(mfn) {
            return;
        }
        let room = || Box::new([0; BYTES]);
        let (mut before, mut after) =
            self.spare.pop().unwrap_or_else(|| (room(), std::array::from_fn(|_| room())));
        memory.frames().copy_out(mfn, 0, &mut *before);
        for earlier in after.iter_mut().take(self.done) {
            earlier.copy_from_slice(&*before);
        }
        self.pages.push(Page { mfn, gfn, before, after });
    }

    /// Whether a frame was opened.
    pub(super) fn holds(&self, mfn: Mfn) -> bool {
        self.pages.iter().any(|page| page.mfn == mfn)
    }

    /// Through which entries of which tables.
    pub(super) fn openings(&self) -> impl Iterator<Item = (Table, u64)> + '_ {
        self.openings.iter().copied()
    }

    /// Notes what a trial made of the pages, and puts them back as they were.
    pub(super) fn take_back(&mut self, memory: &GuestMemory) {
        for page in &mut self.pages {
            let Some(after) = page.after.get_mut(self.done) else { continue };
            memory.frames().copy_out(page.mfn, 0, &mut **after);
            // Only what was changed: the rest may be somebody else's.
            let lines = page.before.chunks_exact(LINE).zip(after.chunks_exact(LINE));
            for (line, (before, after)) in (0..).step_by(LINE).zip(lines).filter(|(_, (a, b))| a != b) {
                for (lane, (before, after)) in
                    (line..).step_by(8).zip(before.chunks_exact(8).zip(after.chunks_exact(8)))
                {
                    if before != after {
                        memory.frames().copy_in(page.mfn, lane as u64, before);
                    }
                }
            }
            memory.note_write(page.gfn, page.mfn);
        }
        self.done += 1;
    }

    /// Where memory is not now what a trial had made of it.
    pub(super) fn differences(&self, memory: &GuestMemory, trial: usize) -> Vec<Lane> {
        let mut found = Vec::new();
        let mut now = [0; BYTES];
        for page in &self.pages {
            memory.frames().copy_out(page.mfn, 0, &mut now);
            let Some(after) = page.after.get(trial).filter(|after| ***after != now) else { continue };
            let lanes = page.before.as_chunks().0.iter().zip(after.as_chunks().0).zip(now.as_chunks().0);
            for (offset, ((&before, &trial), &now)) in (0..).step_by(8).zip(lanes) {
                if trial != now {
                    found.push(Lane { gfn: page.gfn, offset, before, trial, now });
                }
            }
        }
        found
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.openings.clear();
        self.done = 0;
        self.spare.extend(self.pages.drain(..).map(|page| (page.before, page.after)));
    }
}

#[cfg(test)]
mod tests {
    use memory::RamRange;
    use x86::Gpa;

    use super::*;

    #[test]
    fn writes_are_taken_back_and_remembered() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 4 * PAGE_SIZE)]).unwrap();
        memory.write_word(Gpa(0x1008), 1u64).unwrap();
        let frame = |gfn| memory.entry(Gfn(gfn)).mfn;
        let mut pages = Pages::default();
        pages.open(&memory, frame(1), Gfn(1), (Table::User, 0x5008));
        pages.open(&memory, frame(1), Gfn(1), (Table::User, 0x7008));
        memory.write_word(Gpa(0x1008), 2u64).unwrap();
        pages.take_back(&memory);
        assert_eq!(memory.read_word::<u64>(Gpa(0x1008)).unwrap(), 1);
        assert_eq!(pages.openings().count(), 2);
        pages.open(&memory, frame(2), Gfn(2), (Table::User, 0x6000));
        memory.write_word(Gpa(0x1008), 3u64).unwrap();
        memory.write_word(Gpa(0x2000), 4u64).unwrap();
        pages.take_back(&memory);
        assert_eq!(memory.read_word::<u64>(Gpa(0x1008)).unwrap(), 1);
        assert_eq!(memory.read_word::<u64>(Gpa(0x2000)).unwrap(), 0);
        let [lane] = pages.differences(&memory, 0)[..] else { panic!("one lane differs from the first") };
        assert_eq!((lane.offset, lane.trial[0], lane.now[0]), (8, 2, 1));
        memory.write_word(Gpa(0x1008), 2u64).unwrap();
        assert!(pages.differences(&memory, 0).is_empty());
        let lanes =
            pages.differences(&memory, 1).iter().map(|lane| (lane.gfn, lane.trial[0])).collect::<Vec<_>>();
        assert_eq!(lanes, [(Gfn(1), 3), (Gfn(2), 4)]);
        pages.clear();
        assert!(!pages.holds(frame(1)));
    }
}
