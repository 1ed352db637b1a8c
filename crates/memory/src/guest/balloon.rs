//! Memory that a guest gives back while it runs.
//!
//! There are two ways, which differ in what becomes of the frame:
//!
//! * *The balloon.* The guest lets the host have frames until it asks for them back. The map says so
//!   ([`FrameKind::Ballooned`]), so every other part of the hypervisor knows that there is nothing to save, to share or to send.
//!   A guest that touches such a frame nevertheless gets it, as zeros, and out of the balloon.
//! * *Emptied frames* stay the guest's. It says that it does not use them at the moment and does not care what is in them; it
//!   may use them again without asking. That is what free-page reporting means, and it is a write of zeros to them that costs
//!   less than nothing.
//!
//! # Why nothing stale is left
//! A machine frame has one host address for ever, so a translation that somebody has cached never leads to another guest's
//! bytes, whatever happens here: giving memory back makes a hole in the file behind it, which the kernel fills with zeros at
//! the next access, after it has taken the page out of the page tables (and TLBs) of this process.
//!
//! For emptied frames that is all: the same translations lead to the same frames, with other contents, of which caches of code
//! and of page tables hear as of any write. For the balloon the translations have to go before the memory does, or a
//! guest that lies would write to a frame of which the map says that it reads as zeros. So the map is changed first, then all
//! vCPUs hear of it, and when all have dropped what leads to the frames, or are away, the memory goes, of those frames that nobody
//! has taken back meanwhile.
//!
//! Neither trusts the guest: frames that are not its RAM, or come twice, are left as they are. Frames that it uses
//! (page tables, code, the ring that the request came on) become zeros, as if it had written that itself.

use std::time::Duration;

use x86::{Gfn, Gpa, Mfn, PAGE_MASK, PAGE_SHIFT};

use super::GuestMemory;
use crate::changes::Change;
use crate::{FrameKind, GuestRange, MemoryError, P2mEntry};

/// How long is waited before vCPUs are asked again whether they have heard: most have within microseconds.
const LOOK: Duration = Duration::from_micros(50);

impl GuestMemory {
    /// How many frames are in the balloon.
    pub fn ballooned_frames(&self) -> u64 {
        self.p2m.ballooned()
    }

    /// Takes frames of RAM into the balloon and gives their memory back to the host; others are left alone. Waits until all
    /// vCPUs that run guest code have come to a block boundary, so none of their threads may call this.
    ///
    /// # Errors
    /// If the kernel does not take the memory back. The frames are in the balloon nevertheless.
    pub fn inflate(&self, frames: &[Gfn]) -> Result<(), MemoryError> {
        let mut taken: Vec<(Gfn, Mfn)> = Vec::with_capacity(frames.len());
        let mut epoch = 0;
        for &gfn in frames {
            let is_ram = |kind| kind == FrameKind::Ram;
            if let Some(before) = self.p2m.change_kind(gfn, FrameKind::Ballooned, is_ram) {
                epoch = self.announce(Change::Remapped(gfn));
                taken.push((gfn, before.mfn));
            }
        }
        while self.seats.heard() < epoch {
            std::thread::sleep(LOOK);
        }
        taken.retain(|&(gfn, _)| self.entry(gfn).kind == FrameKind::Ballooned);
        taken.sort_unstable_by_key(|&(_, mfn)| mfn.0);
        for run in taken.chunk_by(|a, b| a.1.0 + 1 == b.1.0) {
            self.discard(run.iter().copied())?;
        }
        Ok(())
    }

    /// Lets the guest have frames back, which read as zeros. Those that are not in the balloon are left alone.
    pub fn deflate(&self, frames: &[Gfn]) {
        for &gfn in frames {
            let is_out = |kind| kind == FrameKind::Ballooned;
            if self.p2m.change_kind(gfn, FrameKind::Ram, is_out).is_some() {
                self.announce(Change::Remapped(gfn));
            }
        }
    }

    /// Makes the whole frames in a range zeros that cost nothing, as far as they are RAM; returns how many bytes that were.
    ///
    /// # Errors
    /// If the kernel does not take the memory back. Nothing has become of the frames then.
    pub fn empty(&self, range: GuestRange) -> Result<u64, MemoryError> {
        let GuestRange { gpa: Gpa(start), len } = range;
        let Some(end) = start.checked_add(len) else { return Ok(0) };
        let (mut gfn, end) = (start.div_ceil(PAGE_MASK + 1), end >> PAGE_SHIFT);
        let mut frames = 0;
        while gfn < end {
            let first = self.entry(Gfn(gfn));
            let expected = |n: u64| P2mEntry { kind: FrameKind::Ram, mfn: Mfn(first.mfn.0 + n) };
            let count =
                (0..end - gfn).take_while(|&n| self.entry(Gfn(gfn + n)) == expected(n)).count() as u64;
            if count != 0 {
                self.discard((0..count).map(|n| (Gfn(gfn + n), Mfn(first.mfn.0 + n))))?;
            }
            frames += count;
            gfn += count.max(1);
        }
        Ok(frames << PAGE_SHIFT)
    }

    /// Gives back the memory of frames that follow each other, and tells whoever follows their contents.
    fn discard(&self, run: impl Iterator<Item = (Gfn, Mfn)> + Clone) -> Result<(), MemoryError> {
        let Some((_, first)) = run.clone().next() else { return Ok(()) };
        self.frames.discard(first, run.clone().count() as u64)?;
        run.for_each(|(gfn, mfn)| self.note_write(gfn, mfn));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;
    use x86::PAGE_SIZE;

    use super::*;
    use crate::RamRange;

    const FRAMES: u64 = 600;

    /// Some memory with a hole in it, every byte of it written.
    fn memory() -> GuestMemory {
        let ranges =
            [RamRange { base: Gfn(0), frames: 160 }, RamRange { base: Gfn(256), frames: FRAMES - 160 }];
        let memory = GuestMemory::new(&ranges).unwrap();
        for range in ranges {
            memory.fill(range.base.base(), range.frames * PAGE_SIZE, 0x5a).unwrap();
        }
        memory
    }

    fn range(gpa: u64, len: u64) -> GuestRange {
        GuestRange { gpa: Gpa(gpa), len }
    }

    fn is_zero(memory: &GuestMemory, gfn: u64) -> bool {
        let mut page = [1; 4096];
        memory.read(Gfn(gfn).base(), &mut page).unwrap();
        page == [0; 4096]
    }

    #[test]
    fn what_is_given_back_costs_nothing_and_comes_back_as_zeros() {
        let memory = memory();
        let cost = || memory.resident_bytes().unwrap();
        assert_eq!(cost(), FRAMES * PAGE_SIZE);
        memory.inflate(&[3, 5, 4, 300, 5].map(Gfn)).unwrap();
        assert_eq!((cost(), memory.ballooned_frames()), ((FRAMES - 4) * PAGE_SIZE, 4));
        memory.deflate(&[Gfn(4), Gfn(5), Gfn(6)]);
        assert_eq!((memory.entry(Gfn(4)).kind, memory.ballooned_frames()), (FrameKind::Ram, 2));
        assert!(is_zero(&memory, 4) && is_zero(&memory, 3) && !is_zero(&memory, 6));
        memory.write(Gpa(0x3008), b"used without asking").unwrap();
        assert_eq!((memory.entry(Gfn(3)).kind, memory.ballooned_frames()), (FrameKind::Ram, 1));
    }

    #[test]
    fn whole_frames_are_emptied_and_nothing_else() {
        let memory = memory();
        memory.set_kind(Gfn(20), FrameKind::ReadOnly).unwrap();
        let before = memory.resident_bytes().unwrap();
        assert_eq!(memory.empty(range(0x1_0800, 0x1_0000)).unwrap(), 14 * PAGE_SIZE);
        assert!(!is_zero(&memory, 16) && is_zero(&memory, 17) && !is_zero(&memory, 20));
        assert!(is_zero(&memory, 31) && !is_zero(&memory, 32));
        // Part of it is memory.
        assert_eq!(memory.empty(range(159 << 12, 98 << 12)).unwrap(), 2 * PAGE_SIZE);
        assert_eq!(memory.resident_bytes().unwrap(), before - 16 * PAGE_SIZE + 2 * PAGE_SIZE);
        for nothing in [range(0x1008, 0x1ff0), range(u64::MAX - 5, 6), range(1 << 50, 1 << 32), range(0, 0)] {
            assert_eq!(memory.empty(nothing).unwrap(), 0, "{nothing:?}");
        }
    }

    #[test]
    fn caches_of_contents_hear_of_it() {
        for way in [
            |memory: &GuestMemory| memory.inflate(&[Gfn(7)]).unwrap(),
            |memory: &GuestMemory| assert_eq!(memory.empty(range(0x7000, 0x1000)).unwrap(), 0x1000),
        ] {
            let memory = memory();
            let mfn = memory.entry(Gfn(7)).mfn;
            let code = memory.watch_code(mfn);
            memory.mark_code(mfn, 64, 16);
            memory.trace(mfn);
            memory.start_dirty_log();
            way(&memory);
            assert_ne!(memory.code_version(mfn), code.version);
            assert_eq!(memory.take_dirty(), [Gfn(7)]);
            let mut traced = Vec::new();
            memory.take_traced(|write| traced.push(write.gfn));
            assert_eq!(traced, [Gfn(7)]);
        }
    }

    /// A vCPU that writes by a cached translation until it hears that it must not.
    #[test]
    fn the_memory_goes_when_the_last_translation_has() {
        let memory = Arc::new(memory());
        let mfn = memory.entry(Gfn(9)).mfn;
        let called = Arc::new(AtomicBool::new(false));
        let call = called.clone();
        let seat = memory.seat(move || call.store(true, Ordering::SeqCst));
        let seen = memory.epoch();
        seat.enter(seen);
        std::thread::scope(|scope| {
            let balloon = memory.clone();
            let inflating = scope.spawn(move || balloon.inflate(&[Gfn(9)]));
            while !called.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // Late: the map says ballooned, the translation is there still.
            memory.frames().write(mfn, 0, 1_u64);
            assert!(!inflating.is_finished());
            let now = memory.epoch();
            memory.note_write(Gfn(9), mfn);
            seat.hear(now);
            inflating.join().unwrap().unwrap();
        });
        assert_eq!(memory.frames().read::<u64>(mfn, 0), 0);
        seat.leave();
    }

    proptest! {
        /// Against a list of what is out: whatever a guest asks for, a frame is whole or zero, and counted right.
        #[test]
        fn any_requests_in_any_order(
            steps in proptest::collection::vec((0..4_u8, 0..900_u64, 0..40_u64), 1..40),
        ) {
            let memory = memory();
            let (mut out, mut zero) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
            let is_memory = |gfn: u64| gfn < 160 || (256..FRAMES + 96).contains(&gfn);
            for (what, first, count) in steps {
                let frames: Vec<Gfn> = (first..first + count).map(Gfn).collect();
                let there = (first..first + count).filter(|&gfn| is_memory(gfn));
                match what {
                    0 => {
                        memory.inflate(&frames).unwrap();
                        there.for_each(|gfn| { out.insert(gfn); zero.insert(gfn); });
                    }
                    1 => {
                        memory.deflate(&frames);
                        there.for_each(|gfn| { out.remove(&gfn); });
                    }
                    2 => {
                        let emptied = memory.empty(range(first << 12, count << 12)).unwrap();
                        let hit: Vec<_> = there.filter(|gfn| !out.contains(gfn)).collect();
                        prop_assert_eq!(emptied, hit.len() as u64 * PAGE_SIZE);
                        zero.extend(hit);
                    }
                    _ => if is_memory(first) {
                        memory.write(Gfn(first).base(), &[7; 4096]).unwrap();
                        out.remove(&first);
                        zero.remove(&first);
                    },
                }
            }
            prop_assert_eq!(memory.ballooned_frames(), out.len() as u64);
            for gfn in (0..900).filter(|&gfn| is_memory(gfn)) {
                prop_assert_eq!(memory.entry(Gfn(gfn)).kind == FrameKind::Ballooned, out.contains(&gfn));
                prop_assert_eq!(is_zero(&memory, gfn), zero.contains(&gfn));
            }
        }
    }
}
