//! Traces through [`GuestMemory`]: what is logged, when a frame is lost, and the shoot-down at the beginning.

use x86::Gpa;

use super::*;
use crate::{Change, GuestMemory, RamRange};

const TABLE: Gfn = Gfn(3);
const FRAME: Mfn = Mfn(3);

fn memory() -> GuestMemory {
    GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x8000)]).unwrap()
}

fn taken(memory: &GuestMemory) -> Vec<TracedWrite> {
    let mut writes = Vec::new();
    memory.take_traced(|write| writes.push(write));
    writes
}

#[test]
fn every_write_is_logged_where_it_was() {
    let memory = memory();
    assert!(memory.trace_settled(FRAME, memory.trace(FRAME)));
    assert_eq!(taken(&memory), []);
    memory.write_word(Gpa(0x3040), 1u64).unwrap();
    memory.write(Gpa(0x3ffc), &[1; 8]).unwrap();
    memory.write_word(Gpa(0x5000), 1u64).unwrap();
    let granules = 1 << 1 | 1 << 63;
    assert_eq!(taken(&memory), [TracedWrite { gfn: TABLE, granules, lost: false }]);
    assert_eq!((taken(&memory), memory.traced_writes()), (vec![], 2));
    memory.untrace(FRAME);
    memory.write_word(Gpa(0x3040), 2u64).unwrap();
    assert_eq!(taken(&memory), []);
    assert!(memory.may_cache_writes(TABLE, FRAME));
}

#[test]
fn a_frame_that_is_written_too_often_between_looks_is_lost() {
    let memory = memory();
    memory.limit_traces(3);
    memory.trace(FRAME);
    for _ in 0..4 {
        memory.write_word(Gpa(0x3000), 1u64).unwrap();
        memory.write_word(Gpa(0x3008), 1u64).unwrap();
        assert_eq!(taken(&memory), [TracedWrite { gfn: TABLE, granules: 1, lost: false }]);
    }
    assert!(!memory.may_cache_writes(TABLE, FRAME), "still traced");
    (0..3).for_each(|at| memory.write_word(Gpa(0x3000 + 64 * at), 1u64).unwrap());
    assert!(memory.may_cache_writes(TABLE, FRAME), "no longer");
    assert_eq!(taken(&memory), [TracedWrite { gfn: TABLE, granules: 7, lost: true }]);
}

#[test]
fn a_trace_is_settled_when_all_have_dropped_their_writable_translations() {
    let memory = memory();
    memory.limit_traces(1);
    let seat = memory.seat(|| {});
    let start = memory.epoch();
    seat.enter(start);
    assert!(memory.may_cache_writes(TABLE, FRAME));
    let epoch = memory.trace(FRAME);
    assert!(!memory.may_cache_writes(TABLE, FRAME), "no new ones");
    assert!(memory.changes(start, memory.epoch()).eq([Change::Watched(FRAME)]));
    assert!(!memory.trace_settled(FRAME, epoch), "but the old");
    // The vCPU's part at its next block boundary; that it may have written does not make the frame lost.
    memory.note_write(TABLE, FRAME);
    seat.hear(memory.epoch());
    assert!(memory.trace_settled(FRAME, epoch));
    assert_eq!(taken(&memory), [TracedWrite { gfn: TABLE, granules: u64::MAX, lost: false }]);
    memory.untrace(FRAME);
    let next = memory.trace(FRAME);
    assert!(memory.trace_settled(FRAME, next) && memory.epoch() == start + 1, "nobody has any");
}

#[test]
fn traces_and_code_share_frames() {
    let memory = memory();
    assert!(memory.may_cache_writes(TABLE, FRAME));
    let watch = memory.watch_code(FRAME);
    assert!(watch.settled, "nobody is seated");
    memory.mark_code(FRAME, 0, 64);
    memory.trace(FRAME);
    assert_eq!(memory.code_version(FRAME), watch.version, "a trace is no write");
    memory.write_word(Gpa(0x3100), 1u64).unwrap();
    assert_eq!((memory.code_version(FRAME), taken(&memory).len()), (watch.version, 1));
    memory.write_word(Gpa(0x3000), 1u64).unwrap();
    assert!(memory.code_version(FRAME) != watch.version && !memory.may_cache_writes(TABLE, FRAME));
    memory.untrace(FRAME);
    assert!(memory.may_cache_writes(TABLE, FRAME));
    let epoch = memory.trace(FRAME);
    let watch = memory.watch_code(FRAME);
    assert!(memory.trace_settled(FRAME, epoch) && watch.settled);
    memory.untrace(FRAME);
    assert!(!memory.may_cache_writes(TABLE, FRAME), "still code");
}
