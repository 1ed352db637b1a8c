//! The guest program around the bodies of a test: rounds, barriers, delays, records.
//!
//! Every processor runs its own program, in rounds:
//!
//! 1. The processor whose turn it is (they rotate) records the final values of the round before and clears the places. So
//!    which caches hold them changes from round to round.
//! 2. Barrier: a counter that all increase, and that each compares with where it must be by now; it never goes
//!    back, so nothing has to be reset.
//! 3. Now and then, read the places, so that later loads are quick and stores slow. Then wait for an agreed time and a short
//!    random delay, so that bodies overlap, in many ways. The barrier alone would not do: who comes last leaves it
//!    long before the others see that. So everybody who comes notes a time a little later than now; as all have come, the
//!    last note is what all of them read. (If the host's counters differ, bodies overlap less, and nothing else.)
//! 4. The body.
//! 5. Record R8 to R11. Barrier.
//!
//! One round more than asked for is run: its step 1 records the last final values.
//!
//! The processors may be fewer than the host's, or the host busy. So whoever waits gives up the host's
//! processor after a while ([`YIELD_PORT`]), or each round would take a time slice of the host's scheduler.
//!
//! Registers: R8 to R11 are a body's result, 0 at its begin. RBP counts rounds down, the same on all processors, R12 counts
//! down to the next turn, R13 is the generator of delays, R14 where the barrier must be, R15 the row of
//! results. A body may change all the others.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::flat::{CODE, DATA, RAM_BYTES, STACK, YIELD_PORT};

/// Rounds in a row without the host looking.
pub(super) const BATCH: u64 = 2048;
/// What a processor records of a round: R8 to R11. The final values have as much room.
pub(super) const ROW: u64 = 32;
/// Words in a row.
pub(super) const WORDS: usize = 4;
/// All guest memory is mapped a second time from here on.
pub(super) const ALIAS: u64 = RAM_BYTES;
/// A page for code that tests change.
pub(super) const PATCH: u64 = 0x8_0000;
/// Processors at the most.
pub(super) const PROCESSORS: usize = 4;

const BARRIER: u64 = DATA + 0x1_0000;
/// When to go on, by the time stamp counter.
const APPOINTMENT: u64 = BARRIER + 8;
/// How long after the last arrival that is, in cycles: enough for all to see it.
const HEAD_START: i32 = 4096;
const RECORDS: u64 = 0x20_0000;
const RECORDS_BYTES: u64 = 0x2_0000;
const PAGE: u64 = 0x1000;

const _: () = assert!((BATCH + 1) * ROW <= RECORDS_BYTES);
const _: () = assert!(RECORDS + (PROCESSORS as u64 + 1) * RECORDS_BYTES <= STACK - PROCESSORS as u64 * PAGE);

/// Writes a body, for the processor of this number.
pub(super) type Body<'a> = &'a dyn Fn(&mut CodeAssembler, usize) -> Result<(), IcedError>;

/// What all processors of a test agree on.
pub(super) struct Frame<'a> {
    pub(super) processors: usize,
    /// Places whose final values are recorded, 8 bytes each, at most [`WORDS`].
    pub(super) finals: &'a [u64],
    /// Places that are cleared before each round, 8 bytes each.
    pub(super) cleared: &'a [u64],
}

/// Where the place of this index lies: in a page and a line of its own, at the line's begin.
pub(super) const fn place(index: usize) -> u64 {
    DATA + index as u64 * (PAGE + 64)
}

/// Where a processor's program begins.
pub(super) const fn code_of(processor: usize) -> u64 {
    CODE + processor as u64 * PAGE
}

/// A processor's initial stack pointer.
pub(super) const fn stack_of(processor: usize) -> u64 {
    STACK - processor as u64 * PAGE
}

/// Where a processor's rows begin; those of the final values come after the last processor's.
pub(super) const fn records_of(processor: usize) -> u64 {
    RECORDS + processor as u64 * RECORDS_BYTES
}

/// Where the barrier's counter is: how far the processors have come.
pub(super) const fn barrier() -> u64 {
    BARRIER
}

impl Frame<'_> {
    /// The program of a processor.
    ///
    /// # Errors
    /// If the assembler does not like it.
    pub(super) fn program(&self, processor: usize, body: Body<'_>) -> Result<Vec<u8>, IcedError> {
        let mut assembler = CodeAssembler::new(64)?;
        let a = &mut assembler;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        self.turn(a, processor)?;
        for result in [r8, r9, r10, r11] {
            a.xor(result, result)?;
        }
        self.appoint(a)?;
        self.stagger(a)?;
        body(a, processor)?;
        for (offset, result) in (0i32..).step_by(8).zip([r8, r9, r10, r11]) {
            a.mov(qword_ptr(r15 + offset), result)?;
        }
        self.meet(a)?;
        a.add(r15, ROW as i32)?;
        a.dec(rbp)?;
        a.jnz(top)?;
        a.hlt()?;
        a.assemble(code_of(processor))
    }

    /// Step 1.
    fn turn(&self, a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
        let mut others = a.create_label();
        let mut over = a.create_label();
        a.dec(r12)?;
        a.jns(others)?;
        a.mov(r12d, self.processors as u32 - 1)?;
        let finals = (records_of(PROCESSORS) - records_of(processor)) as i32;
        for (offset, at) in (finals..).step_by(8).zip(self.finals) {
            a.mov(rax, qword_ptr(*at))?;
            a.mov(qword_ptr(r15 + offset), rax)?;
        }
        a.xor(eax, eax)?;
        for at in self.cleared {
            a.mov(qword_ptr(*at), rax)?;
        }
        a.jmp(over)?;
        a.set_label(&mut others)?;
        a.zero_bytes()?;
        a.set_label(&mut over)?;
        a.zero_bytes()
    }

    /// Steps 2 and 5: the barrier.
    fn meet(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut wait = a.create_label();
        let mut met = a.create_label();
        a.add(r14, self.processors as i32)?;
        a.lock().inc(qword_ptr(BARRIER))?;
        a.set_label(&mut wait)?;
        a.cmp(qword_ptr(BARRIER), r14)?;
        a.jae(met)?;
        relax(a)?;
        a.jmp(wait)?;
        a.set_label(&mut met)?;
        a.zero_bytes()
    }

    /// Step 2, and the note of when to go on.
    fn appoint(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        now(a)?;
        a.add(rax, HEAD_START)?;
        a.mov(qword_ptr(APPOINTMENT), rax)?;
        self.meet(a)
    }

    /// Step 3.
    fn stagger(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut cold = a.create_label();
        let mut long = a.create_label();
        let mut wait = a.create_label();
        a.imul_3(r13, r13, 0x5851_f42d)?;
        a.add(r13, 0x3c6e_f35f)?;
        a.mov(rbx, r13)?;
        a.shr(rbx, 33)?;
        a.test(ebx, 1)?;
        a.jz(cold)?;
        for at in self.cleared {
            a.mov(ecx, dword_ptr(*at))?;
        }
        a.set_label(&mut cold)?;
        // One round in four has delays of up to 512 cycles, the others of up to 64.
        a.mov(ecx, ebx)?;
        a.shr(ebx, 8)?;
        a.and(ebx, 511)?;
        a.test(ecx, 6)?;
        a.jz(long)?;
        a.and(ebx, 63)?;
        a.set_label(&mut long)?;
        a.add(rbx, qword_ptr(APPOINTMENT))?;
        a.set_label(&mut wait)?;
        now(a)?;
        a.cmp(rax, rbx)?;
        a.jb(wait)
    }
}

/// The time stamp counter in RAX; changes RDX.
fn now(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

/// One turn of waiting for somebody else: now and then the host's processor is given up. Changes EDI and flags.
pub(super) fn relax(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut stay = a.create_label();
    a.pause()?;
    a.inc(edi)?;
    a.test(edi, 0xff)?;
    a.jnz(stay)?;
    a.out(YIELD_PORT, al)?;
    a.set_label(&mut stay)?;
    a.zero_bytes()
}
