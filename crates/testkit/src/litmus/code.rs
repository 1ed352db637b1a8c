//! Tests whose bodies are more than a few loads and stores: counters, locks, values seen whole, changing code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::patch;
use super::program::{place, relax};

/// What the processors do, what is recorded, and when it is right.
pub(super) struct CodeTest {
    pub(super) name: &'static str,
    pub(super) cite: &'static str,
    pub(super) processors: usize,
    pub(super) body: fn(&mut CodeAssembler, usize) -> Result<(), IcedError>,
    /// What is recorded, by name.
    pub(super) observed: &'static [(&'static str, Source)],
    pub(super) legal: fn(&[u64]) -> bool,
    pub(super) binding: Binding,
}

/// Where a part of an outcome comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// R8 and its successors of a processor.
    Register(usize, usize),
    /// The 8 bytes at an address when all is done.
    Final(u64),
}

/// Whom a test binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    Always,
    /// Only where the guest's processor has AVX.
    Avx,
    /// Only where the guest's processor is Intel's.
    Intel,
}

/// Additions that each processor makes in a round.
const TURNS: u32 = 32;
/// The same for locks across cache lines, which the host makes slow.
const SPLIT_TURNS: u32 = 2;
const CROWD: usize = 4;

const A: u64 = place(0);
const B: u64 = place(1);
const C: u64 = place(2);
const FLAGS: [u64; 2] = [place(3), place(4)];
/// A doubleword across two cache lines.
const ACROSS_LINES: u64 = place(0) + 62;
/// A doubleword across two pages, neither of which is anything else's.
const ACROSS_PAGES: u64 = crate::flat::DATA + 0x2_0ffe;

const COUNTED: fn(&[u64]) -> bool = |outcome| outcome[0] == CROWD as u64 * u64::from(TURNS);
const COUNTER: &[(&str, Source)] = &[("counter", Source::Final(A))];
const ATOMIC: &str = "SDM vol. 3A, 10.1.2: locked operations are atomic";
const WHOLE: &[(&str, Source)] = &[("torn", Source::Register(1, 0))];

/// Places that are cleared before each round of these tests.
pub(super) const CLEARED: [u64; 9] =
    [A, A + 8, B, C, FLAGS[0], FLAGS[1], ACROSS_LINES, ACROSS_PAGES, patch::FLAG];

/// The tests.
pub(super) fn tests() -> Vec<CodeTest> {
    let mut tests = vec![
        counter("counter+lock-inc", |a, _| repeat(a, TURNS, |a| a.lock().inc(dword_ptr(A)))),
        counter("counter+xadd", |a, _| {
            repeat(a, TURNS, |a| {
                a.mov(eax, 1)?;
                a.lock().xadd(dword_ptr(A), eax)
            })
        }),
        counter("counter+cmpxchg", |a, _| repeat(a, TURNS, cmpxchg)),
        counter("counter+xchg-lock", |a, _| repeat(a, TURNS, |a| locked(a, take_by_xchg, release_by_store))),
        counter("counter+bts-lock", |a, _| repeat(a, TURNS, |a| locked(a, take_by_bts, release_by_btr))),
        counter("counter+ticket-lock", |a, _| repeat(a, TURNS, |a| locked(a, take_ticket, next_ticket))),
        CodeTest {
            name: "counter+cmpxchg8b",
            legal: |outcome| outcome[0] == (CROWD as u64 * u64::from(TURNS)) * 0x1_0000_0001,
            ..counter("", |a, _| repeat(a, TURNS, cmpxchg8b))
        },
        CodeTest {
            name: "counter+cmpxchg16b",
            observed: &[("low", Source::Final(A)), ("high", Source::Final(A + 8))],
            legal: |outcome| outcome.iter().all(|half| *half == CROWD as u64 * u64::from(TURNS)),
            ..counter("", |a, _| repeat(a, TURNS, cmpxchg16b))
        },
        CodeTest {
            name: "counter+peterson",
            cite: "SDM vol. 3A, 10.2.5: Peterson's lock is made of stores, loads and MFENCE",
            processors: 2,
            legal: |outcome| outcome[0] == 2 * u64::from(TURNS),
            ..counter("", |a, processor| repeat(a, TURNS, |a| peterson(a, processor)))
        },
        CodeTest {
            name: "counter+split-lock",
            processors: 2,
            observed: &[("counter", Source::Final(ACROSS_LINES))],
            legal: |outcome| outcome[0] == 2 * u64::from(SPLIT_TURNS),
            ..counter("", |a, _| repeat(a, SPLIT_TURNS, |a| a.lock().inc(dword_ptr(ACROSS_LINES))))
        },
        CodeTest {
            name: "counter+page-lock",
            processors: 2,
            observed: &[("counter", Source::Final(ACROSS_PAGES))],
            legal: |outcome| outcome[0] == 2 * u64::from(SPLIT_TURNS),
            ..counter("", |a, _| repeat(a, SPLIT_TURNS, |a| a.lock().inc(dword_ptr(ACROSS_PAGES))))
        },
        whole("whole+16-in-8", |a, processor| word(a, processor, word_ptr(A + 5), ax, cx)),
        whole("whole+32-in-8", |a, processor| double(a, processor, A + 3)),
        whole("whole+64", |a, processor| quad(a, processor, A)),
        CodeTest {
            binding: Binding::Intel,
            cite: "SDM vol. 3A, 10.1.1: unaligned accesses within a cache line",
            ..whole("whole+64-in-line", |a, processor| quad(a, processor, A + 27))
        },
        CodeTest {
            binding: Binding::Avx,
            cite: "SDM vol. 3A, 10.1.1: aligned 16 bytes, where there is AVX",
            ..whole("whole+128", octo)
        },
    ];
    tests.extend(patch::tests());
    tests
}

fn counter(name: &'static str, body: fn(&mut CodeAssembler, usize) -> Result<(), IcedError>) -> CodeTest {
    let (observed, legal, binding) = (COUNTER, COUNTED, Binding::Always);
    CodeTest { name, cite: ATOMIC, processors: CROWD, body, observed, legal, binding }
}

fn whole(name: &'static str, body: fn(&mut CodeAssembler, usize) -> Result<(), IcedError>) -> CodeTest {
    let cite = "SDM vol. 3A, 10.1.1; AMD APM vol. 2, 7.3.2: within an aligned quadword";
    let legal = |outcome: &[u64]| outcome[0] == 0;
    CodeTest { name, cite, processors: 2, body, observed: WHOLE, legal, binding: Binding::Always }
}

/// A loop that counts in ESI.
fn repeat(
    a: &mut CodeAssembler,
    times: u32,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(esi, times)?;
    a.set_label(&mut top)?;
    // Some bodies begin with a label of their own.
    a.zero_bytes()?;
    body(a)?;
    a.dec(esi)?;
    a.jnz(top)
}

fn cmpxchg(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(eax, dword_ptr(A))?;
    a.set_label(&mut again)?;
    a.lea(ecx, ptr(rax + 1))?;
    a.lock().cmpxchg(dword_ptr(A), ecx)?;
    a.jnz(again)
}

/// Adds one to both halves.
fn cmpxchg8b(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(eax, dword_ptr(A))?;
    a.mov(edx, dword_ptr(A + 4))?;
    a.set_label(&mut again)?;
    a.lea(ebx, ptr(rax + 1))?;
    a.lea(ecx, ptr(rdx + 1))?;
    a.lock().cmpxchg8b(qword_ptr(A))?;
    a.jnz(again)
}

/// Adds one to both halves.
fn cmpxchg16b(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rax, qword_ptr(A))?;
    a.mov(rdx, qword_ptr(A + 8))?;
    a.set_label(&mut again)?;
    a.lea(rbx, ptr(rax + 1))?;
    a.lea(rcx, ptr(rdx + 1))?;
    a.lock().cmpxchg16b(xmmword_ptr(A))?;
    a.jnz(again)
}

type Part = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A plain addition between taking and releasing a lock.
fn locked(a: &mut CodeAssembler, take: Part, release: Part) -> Result<(), IcedError> {
    take(a)?;
    add_plainly(a)?;
    release(a)
}

fn add_plainly(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(A))?;
    a.inc(rax)?;
    a.mov(qword_ptr(A), rax)
}

fn take_by_xchg(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut attempt = a.create_label();
    let mut taken = a.create_label();
    a.set_label(&mut attempt)?;
    a.mov(eax, 1)?;
    a.xchg(dword_ptr(B), eax)?;
    a.test(eax, eax)?;
    a.jz(taken)?;
    relax(a)?;
    a.jmp(attempt)?;
    a.set_label(&mut taken)?;
    a.zero_bytes()
}

fn release_by_store(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(B), 0)
}

fn take_by_bts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut attempt = a.create_label();
    let mut taken = a.create_label();
    a.set_label(&mut attempt)?;
    a.lock().bts(dword_ptr(B), 7)?;
    a.jnc(taken)?;
    relax(a)?;
    a.jmp(attempt)?;
    a.set_label(&mut taken)?;
    a.zero_bytes()
}

fn release_by_btr(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lock().btr(dword_ptr(B), 7)
}

/// B is the next ticket, C whose turn it is.
fn take_ticket(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    let mut taken = a.create_label();
    a.mov(edx, 1)?;
    a.lock().xadd(dword_ptr(B), edx)?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(C), edx)?;
    a.je(taken)?;
    relax(a)?;
    a.jmp(wait)?;
    a.set_label(&mut taken)?;
    a.zero_bytes()
}

/// Only the holder writes C.
fn next_ticket(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(dword_ptr(C))
}

/// B is whose turn it is to wait.
fn peterson(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    let (own, other) = (FLAGS[processor % 2], FLAGS[(processor + 1) % 2]);
    let mut wait = a.create_label();
    let mut taken = a.create_label();
    a.mov(dword_ptr(own), 1)?;
    a.mov(dword_ptr(B), processor as u32)?;
    a.mfence()?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(other), 0)?;
    a.je(taken)?;
    a.cmp(dword_ptr(B), processor as u32)?;
    a.jne(taken)?;
    relax(a)?;
    a.jmp(wait)?;
    a.set_label(&mut taken)?;
    add_plainly(a)?;
    a.mov(dword_ptr(own), 0)
}

/// Processor 0 writes zeros and ones in turn; processor 1 counts in R8 what is neither.
fn word(
    a: &mut CodeAssembler,
    processor: usize,
    at: AsmMemoryOperand,
    value: AsmRegister16,
    spare: AsmRegister16,
) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    repeat(a, TURNS, |a| {
        if processor == 0 {
            a.not(value)?;
            return a.mov(at, value);
        }
        a.mov(spare, at)?;
        a.movsx(rcx, spare)?;
        count_if_mixed(a)
    })
}

/// The same for a doubleword.
fn double(a: &mut CodeAssembler, processor: usize, at: u64) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    repeat(a, TURNS, |a| {
        if processor == 0 {
            a.not(eax)?;
            return a.mov(dword_ptr(at), eax);
        }
        a.movsxd(rcx, dword_ptr(at))?;
        count_if_mixed(a)
    })
}

/// The same for a quadword.
fn quad(a: &mut CodeAssembler, processor: usize, at: u64) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    repeat(a, TURNS, |a| {
        if processor == 0 {
            a.not(rax)?;
            return a.mov(qword_ptr(at), rax);
        }
        a.mov(rcx, qword_ptr(at))?;
        count_if_mixed(a)
    })
}

/// The same for 16 bytes.
fn octo(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    a.pxor(xmm0, xmm0)?;
    a.pcmpeqd(xmm1, xmm1)?;
    repeat(a, TURNS, |a| {
        if processor == 0 {
            a.pxor(xmm0, xmm1)?;
            return a.movdqa(xmmword_ptr(A), xmm0);
        }
        let mut same = a.create_label();
        a.movdqa(xmm0, xmmword_ptr(A))?;
        a.movq(rcx, xmm0)?;
        a.psrldq(xmm0, 8)?;
        a.movq(rdx, xmm0)?;
        a.cmp(rcx, rdx)?;
        a.je(same)?;
        a.inc(r8)?;
        a.set_label(&mut same)?;
        count_if_mixed(a)
    })
}

/// Counts RCX in R8 unless it is all zeros or all ones.
fn count_if_mixed(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut pure = a.create_label();
    a.lea(rdx, ptr(rcx + 1))?;
    a.cmp(rdx, 1)?;
    a.jbe(pure)?;
    a.inc(r8)?;
    a.set_label(&mut pure)?;
    a.zero_bytes()
}
