//! Threads that use memory as vCPUs, devices and a migration would, at once.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::*;

/// Adds one, as `lock inc` does.
fn increment<W: Word>(frames: &Frames, offset: u64) {
    let mut old = frames.read::<W>(Mfn(1), offset);
    while let Err(found) = frames.compare_exchange(Mfn(1), offset, old, W::from_u64(old.into_u64() + 1)) {
        old = found;
    }
}

fn count_up<W: Word>(offset: u64) {
    const EACH: u64 = 1000;
    let memory = small();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..EACH).for_each(|_| increment::<W>(memory.frames(), offset)));
        }
    });
    assert_eq!(
        memory.frames().read::<W>(Mfn(1), offset).into_u64(),
        3 * EACH,
        "{} bytes at {offset}",
        W::BYTES
    );
}

#[test]
fn exchanges_are_atomic_at_any_alignment() {
    // Aligned; misaligned in a cache line; across a line; at the end of the frame.
    for offset in [64, 65, 67, 125, 127, 4088] {
        count_up::<u16>(offset);
        count_up::<u32>(offset);
    }
    for offset in [64, 65, 121, 127, 4088] {
        count_up::<u64>(offset);
    }
}

#[test]
fn sixteen_byte_exchanges_are_atomic() {
    let memory = small();
    let one_more = |old: u128| old + (1 << 64 | 1);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let mut old = 0;
                    while let Err(found) =
                        memory.frames().compare_exchange_128(Mfn(2), 4080, old, one_more(old))
                    {
                        old = found;
                    }
                }
            });
        }
    });
    assert_eq!(memory.frames().compare_exchange_128(Mfn(2), 4080, 0, 0), Err(60_000 << 64 | 60_000));
}

#[test]
fn aligned_words_never_tear() {
    let memory = small();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200_000 {
                memory.write_word(Gpa(0x1ff8), u64::MAX).unwrap();
                memory.write_word(Gpa(0x1ff8), 0u64).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let word: u64 = memory.read_word(Gpa(0x1ff8)).unwrap();
            assert!(word == 0 || word == u64::MAX, "{word:#x}");
        }
    });
}

/// Where two threads meet. They leave within a few cycles of each other, as with `std::sync::Barrier` they would not.
struct Line(AtomicU64);

impl Line {
    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let mut spins = 0u32;
        while self.0.load(Ordering::SeqCst) < arrived.next_multiple_of(2) {
            spins += 1;
            // The other may not be running at all.
            if spins.is_multiple_of(1000) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

#[test]
fn a_decoder_has_the_new_bytes_or_learns_that_it_has_not() {
    const ROUNDS: u64 = 100_000;
    let memory = small();
    let (frames, line) = (memory.frames(), Line(AtomicU64::new(0)));
    let mut stale = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                line.wait();
                // A device in odd rounds, an engine's slow path in even ones.
                if round % 2 == 0 {
                    frames.write(Mfn(1), 0, round);
                    memory.note_write(Gfn(1), Mfn(1));
                } else {
                    memory.write(Gpa(0x1000), &round.to_le_bytes()).unwrap();
                }
                line.wait();
            }
        });
        for round in 1..=ROUNDS {
            line.wait();
            let watch = memory.watch_code(Mfn(1));
            let seen = frames.read::<u64>(Mfn(1), 0);
            memory.mark_code(Mfn(1), 0, 8);
            let kept = watch.settled && frames.read::<u64>(Mfn(1), 0) == seen;
            line.wait();
            let valid = kept && memory.code_version(Mfn(1)) == watch.version;
            if valid && seen != round {
                stale.push(round);
            }
        }
    });
    assert_eq!(stale.len(), 0, "rounds in which old bytes passed for current: {:?}", stale.get(..8));
}

/// A vCPU's cached writable translations, kept by the rules on top of `guest.rs`.
struct Cache<'a> {
    memory: &'a GuestMemory,
    seen: u64,
    writable: Vec<(Gfn, Mfn)>,
}

impl Cache<'_> {
    fn sync(&mut self) {
        let epoch = self.memory.epoch();
        if epoch != self.seen {
            for (gfn, mfn) in self.writable.drain(..) {
                self.memory.note_write(gfn, mfn);
            }
            self.seen = epoch;
        }
    }

    fn write(&mut self, gfn: Gfn, offset: u64, value: u64) {
        let mfn = self.memory.entry(gfn).mfn;
        if self.writable.contains(&(gfn, mfn)) {
            return self.memory.frames().write(mfn, offset, value);
        }
        if self.memory.may_cache_writes(gfn, mfn) {
            self.writable.push((gfn, mfn));
            self.memory.frames().write(mfn, offset, value);
        } else {
            self.memory.frames().write(mfn, offset, value);
            self.memory.note_write(gfn, mfn);
        }
    }
}

/// Numbers that look random (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

const FRAMES: u64 = 24;

/// Writes as a vCPU does, in blocks of a few writes, until told to stop.
fn vcpu(memory: &GuestMemory, seed: u64, stop: &AtomicBool) {
    let mut numbers = Numbers(seed);
    let mut cache = Cache { memory, seen: memory.epoch(), writable: Vec::new() };
    while !stop.load(Ordering::Acquire) {
        cache.sync();
        for _ in 0..numbers.below(20) {
            let gfn = Gfn(numbers.below(FRAMES));
            cache.write(gfn, 8 * numbers.below(512), numbers.0);
        }
        // Now and then decode, as if some frames held code.
        if numbers.below(8) == 0 {
            memory.watch_code(Mfn(numbers.below(FRAMES)));
        }
    }
    cache.sync();
}

/// Copies every frame, then the dirty ones again and again while vCPUs and a device write, then once more when all is
/// quiet. Returns the frames that differ.
fn migrate(seed: u64) -> Vec<Gfn> {
    let memory = GuestMemory::new(&[range(0, FRAMES)]).unwrap();
    let mut copy = vec![[0; 4096]; index(FRAMES)];
    let stop = AtomicBool::new(false);
    let mut fetch = |gfns: Vec<Gfn>| {
        for gfn in gfns {
            memory.read(gfn.base(), &mut copy[index(gfn.0)]).unwrap();
        }
    };
    thread::scope(|scope| {
        for vcpu_seed in 1..=2 {
            let (memory, stop) = (&memory, &stop);
            scope.spawn(move || vcpu(memory, seed * 1000 + vcpu_seed, stop));
        }
        scope.spawn(|| {
            let mut numbers = Numbers(seed * 7777);
            while !stop.load(Ordering::Acquire) {
                let gpa = Gpa(numbers.below(FRAMES * 4096 - 64));
                memory.write(gpa, &[x86::bits::low8(numbers.0); 64]).unwrap();
            }
        });
        thread::sleep(std::time::Duration::from_millis(2));
        memory.start_dirty_log();
        fetch((0..FRAMES).map(Gfn).collect());
        for _ in 0..20 {
            fetch(memory.take_dirty());
            thread::yield_now();
        }
        stop.store(true, Ordering::Release);
    });
    fetch(memory.take_dirty());
    let differs = |gfn: &Gfn| {
        let mut page = [0; 4096];
        memory.read(gfn.base(), &mut page).unwrap();
        page != copy[index(gfn.0)]
    };
    (0..FRAMES).map(Gfn).filter(differs).collect()
}

#[test]
fn repeated_harvests_copy_a_running_guest_exactly() {
    for seed in 1..=30 {
        assert_eq!(migrate(seed), [], "seed {seed}");
    }
}
