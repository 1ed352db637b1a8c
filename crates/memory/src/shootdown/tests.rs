//! The protocol in small, in every interleaving; and the real one, with threads.

mod model;

use std::sync::atomic::AtomicBool;
use std::thread;

use x86::Gfn;

use super::*;
use crate::{Change, GuestMemory, RamRange, Watch};

use model::{Protocol, explore};

#[test]
fn no_reader_keeps_old_code() {
    for holds in [true, false] {
        let report = explore(Protocol::Right, holds);
        assert_eq!(report.stale, None, "states until a reader that knows better ran the old code");
        assert!(report.kept && report.states > 10_000, "{report:?}");
    }
}

#[test]
fn less_would_not_do() {
    for protocol in [Protocol::KeepAtOnce, Protocol::ForgetAtOnce, Protocol::EnterUnseen] {
        assert_ne!(explore(protocol, true).stale, None, "{protocol:?}");
    }
}

fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::new(&[RamRange { base: Gfn(0), frames: 4 }]).unwrap())
}

const CODE: Mfn = Mfn(1);

#[test]
fn a_frame_is_settled_when_all_have_heard_or_are_away() {
    let memory = memory();
    let calls = Arc::new(AtomicU64::new(0));
    let seat = |_| {
        let calls = calls.clone();
        memory.seat(move || {
            calls.fetch_add(1, Ordering::Relaxed);
        })
    };
    let [first, second, third] = [1, 2, 3].map(seat);
    let start = memory.epoch();
    first.enter(start);
    second.enter(start);
    assert!(memory.may_cache_writes(Gfn(1), CODE));
    let watch = memory.watch_code(CODE);
    assert!(!watch.settled && memory.changes(start, memory.epoch()).eq([Change::Watched(CODE)]));
    assert_eq!(calls.load(Ordering::Relaxed), 2, "the third is away");
    first.hear(memory.epoch());
    assert!(!memory.watch_code(CODE).settled);
    third.enter(start);
    second.leave();
    assert!(!memory.watch_code(CODE).settled);
    drop(third);
    assert_eq!(memory.watch_code(CODE), Watch { settled: true, ..watch });
    assert_eq!((memory.epoch(), memory.code_version(CODE)), (start + 1, watch.version));
    assert!(!memory.may_cache_writes(Gfn(1), CODE));
}

#[test]
fn a_write_during_a_shoot_down_begins_another() {
    let memory = memory();
    let seat = memory.seat(|| {});
    seat.enter(memory.epoch());
    assert!(memory.may_cache_writes(Gfn(1), CODE));
    let watch = memory.watch_code(CODE);
    memory.note_write(Gfn(1), CODE);
    assert!(memory.may_cache_writes(Gfn(1), CODE));
    seat.hear(memory.epoch());
    let again = memory.watch_code(CODE);
    assert!(!again.settled && again.version != watch.version);
    seat.hear(memory.epoch());
    assert!(memory.watch_code(CODE).settled);
}

/// A writer that looks at the epoch seldom, by the rules on top of `guest.rs`.
fn writer(memory: &GuestMemory, seat: &Seat, rounds: u64, flag: &AtomicU64, answer: &AtomicU64) {
    let (mut seen, mut holds) = (memory.epoch(), false);
    seat.enter(seen);
    for round in 1..=rounds {
        for write in 0..2 {
            if !holds {
                holds = memory.may_cache_writes(Gfn(1), CODE);
            }
            // First beside the code, then the code.
            let offset = 128 * (1 - write);
            memory.frames().write(CODE, offset, round);
            if !holds {
                memory.note_write_at(Gfn(1), CODE, offset, 8);
            }
        }
        flag.store(round, Ordering::Release);
        while answer.load(Ordering::Acquire) < round {
            // A block boundary at last.
            let now = memory.epoch();
            if now != seen {
                if std::mem::take(&mut holds) {
                    memory.note_write(Gfn(1), CODE);
                }
                seen = now;
                seat.hear(seen);
            }
            thread::yield_now();
        }
    }
    seat.leave();
}

#[test]
fn threads_run_what_was_written() {
    const ROUNDS: u64 = 2_000;
    let memory = memory();
    let (flag, answer, stale) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (seat, mut kept) = (memory.seat(|| {}), None);
    thread::scope(|scope| {
        scope.spawn(|| writer(&memory, &seat, ROUNDS, &flag, &answer));
        for round in 1..=ROUNDS {
            loop {
                let told = flag.load(Ordering::Acquire) == round;
                let ran = match kept {
                    Some((version, code)) if memory.code_version(CODE) == version => code,
                    _ => {
                        let watch = memory.watch_code(CODE);
                        let code = memory.frames().read::<u64>(CODE, 0);
                        memory.mark_code(CODE, 0, 8);
                        let is_kept = watch.settled && memory.frames().read::<u64>(CODE, 0) == code;
                        kept = is_kept.then_some((watch.version, code));
                        code
                    }
                };
                if told {
                    stale.fetch_or(ran != round, Ordering::Relaxed);
                    break;
                }
            }
            answer.store(round, Ordering::Release);
        }
    });
    assert!(!stale.into_inner());
}

#[test]
fn all_others_stand_still_while_one_is_alone() {
    const EACH: u64 = 2_000;
    let memory = memory();
    let add_one = || {
        // What another thread does in between is lost.
        let old = memory.frames().read::<u64>(CODE, 0);
        memory.frames().write(CODE, 0, old + 1);
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            let seat = memory.seat(|| {});
            let (memory, add_one) = (&memory, &add_one);
            scope.spawn(move || {
                seat.enter(memory.epoch());
                for turn in 0..EACH {
                    memory.alone(&seat, add_one);
                    seat.hear(memory.epoch());
                    if turn % 16 == 0 {
                        seat.leave();
                        seat.enter(memory.epoch());
                    }
                }
                seat.leave();
            });
        }
        let seat = memory.seat(|| {});
        seat.enter(memory.epoch());
        for _ in 0..EACH {
            // A block of ordinary instructions.
            let once = memory.frames().read::<u64>(CODE, 0);
            std::hint::spin_loop();
            assert_eq!(memory.frames().read::<u64>(CODE, 0), once);
            // An epoch that is old by now.
            let epoch = memory.epoch();
            thread::yield_now();
            seat.hear(epoch);
        }
        seat.leave();
    });
    assert_eq!(memory.frames().read::<u64>(CODE, 0), 2 * EACH);
}
