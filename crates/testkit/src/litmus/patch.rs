//! Tests of code that changes: on the processor that changes it, on another, through another mapping.
//!
//! What is changed is a function `mov eax, IMM; ret`, whose four bytes lie in an aligned quadword, so that every store to
//! them is seen whole; or an opcode; or the target of a jump, which a translator may have made a direct one. The number of
//! the round is written, which the other processor knows too; so what it finds is right or is not, and is recorded as 1 or 0.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::code::{Binding, CodeTest, Source};
use super::program::{ALIAS, PATCH, place, relax};

/// Says that the code is written.
pub(super) const FLAG: u64 = place(5);

/// `mov eax, IMM; ret`, and where IMM is.
const FUNCTION: u64 = PATCH;
const IMMEDIATE: u64 = FUNCTION + 1;
/// `inc eax` or `dec eax`, then `ret`.
const OPCODE: u64 = PATCH + 0x40;
const OPCODE_BYTE: u64 = OPCODE + 1;
/// `jmp` to one of two functions, one after the other in another page, which say who they are.
const JUMP: u64 = PATCH + 0x80;
const JUMP_OFFSET: u64 = JUMP + 1;
const TARGETS: u64 = PATCH + 0x1000;
const TARGET_BYTES: u64 = 8;

/// Data in the page of the code.
const BESIDE: u64 = PATCH + 0xf00;

/// What is in memory before the first round.
pub(super) const INITIAL: [(u64, &[u8]); 5] = [
    (FUNCTION, &[0xb8, 0, 0, 0, 0, 0xc3]),
    (OPCODE, &[0xff, 0xc0, 0xc3]),
    (JUMP, &[0xe9, 0x7b, 0x0f, 0, 0]),
    (TARGETS, &[0xb8, 0, 0, 0, 0, 0xc3]),
    (TARGETS + TARGET_BYTES, &[0xb8, 1, 0, 0, 0, 0xc3]),
];

const _: () = assert!(TARGETS - (JUMP + 5) == 0xf7b);

const CROSS: &str = "SDM vol. 3A, 10.1.3: cross-modifying code";
const SELF: &str = "SDM vol. 3A, 10.1.3: self-modifying code";

type Body = fn(&mut CodeAssembler, usize) -> Result<(), IcedError>;

/// The tests.
pub(super) fn tests() -> Vec<CodeTest> {
    vec![
        alone("SMC+jump", |a, _| {
            a.mov(dword_ptr(IMMEDIATE), ebp)?;
            call_and_compare(a, FUNCTION, r8)
        }),
        alone("SMC+alias", |a, _| {
            a.mov(dword_ptr(ALIAS + IMMEDIATE), ebp)?;
            a.cpuid()?;
            call_and_compare(a, FUNCTION, r8)
        }),
        alone("SMC+run-alias", |a, _| {
            a.mov(dword_ptr(IMMEDIATE), ebp)?;
            a.cpuid()?;
            call_and_compare(a, ALIAS + FUNCTION, r8)
        }),
        cross("XMC", |a, processor| {
            if processor == 0 {
                return write_and_tell(a, IMMEDIATE);
            }
            wait_and_serialize(a)?;
            call_and_compare(a, FUNCTION, r8)
        }),
        cross("XMC+alias", |a, processor| {
            if processor == 0 {
                return write_and_tell(a, ALIAS + IMMEDIATE);
            }
            wait_and_serialize(a)?;
            call_and_compare(a, FUNCTION, r8)
        }),
        CodeTest {
            observed: &[("new", Source::Register(1, 0)), ("new-before", Source::Register(1, 1))],
            ..cross("XMC+running", running)
        },
        cross("XMC+late", late),
        cross("XMC+opcode", opcode),
        cross("XMC+jump-target", jump_target),
    ]
}

/// A test of one processor.
fn alone(name: &'static str, body: Body) -> CodeTest {
    let observed = &[("new", Source::Register(0, 0))];
    let legal = |outcome: &[u64]| outcome[0] == 1;
    CodeTest { name, cite: SELF, processors: 1, body, observed, legal, binding: Binding::Always }
}

/// A test of two: processor 0 writes, processor 1 runs.
fn cross(name: &'static str, body: Body) -> CodeTest {
    let observed = &[("new", Source::Register(1, 0))];
    CodeTest { cite: CROSS, processors: 2, observed, ..alone(name, body) }
}

fn write_and_tell(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    a.mov(dword_ptr(at), ebp)?;
    a.mov(dword_ptr(FLAG), 1)
}

fn wait_and_serialize(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    let mut seen = a.create_label();
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(FLAG), 0)?;
    a.jne(seen)?;
    relax(a)?;
    a.jmp(wait)?;
    a.set_label(&mut seen)?;
    a.xor(eax, eax)?;
    a.cpuid()
}

/// `to` becomes 1 if the function returns the number of the round.
fn call_and_compare(a: &mut CodeAssembler, function: u64, to: AsmRegister64) -> Result<(), IcedError> {
    call(a, function)?;
    a.cmp(eax, ebp)?;
    record_equality(a, to)
}

fn call(a: &mut CodeAssembler, function: u64) -> Result<(), IcedError> {
    a.call(function)
}

fn record_equality(a: &mut CodeAssembler, to: AsmRegister64) -> Result<(), IcedError> {
    a.sete(al)?;
    a.movzx(eax, al)?;
    a.mov(to, rax)
}

/// Processor 1 also runs the code while it changes. It may find either (an aligned quadword changes at once), but what it
/// keeps of the old must not outlive the serializing instruction.
fn running(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    if processor == 0 {
        return write_and_tell(a, IMMEDIATE);
    }
    call_and_compare(a, FUNCTION, r9)?;
    wait_and_serialize(a)?;
    call_and_compare(a, FUNCTION, r8)
}

/// The same for a writer who has written to the page just before, so that an engine may take it for data, and who takes long
/// between there, the writing, the telling, and the next jump. Meanwhile processor 1 runs the code again and again.
fn late(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    if processor == 1 {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, FUNCTION)?;
        relax(a)?;
        a.cmp(dword_ptr(FLAG), 0)?;
        a.je(again)?;
        wait_and_serialize(a)?;
        return call_and_compare(a, FUNCTION, r8);
    }
    let mut next = a.create_label();
    for _ in 0..2 {
        a.mov(dword_ptr(BESIDE), ebp)?;
    }
    a.fninit()?;
    a.fld1()?;
    a.jmp(next)?;
    a.set_label(&mut next)?;
    (0..4).try_for_each(|_| a.fsin())?;
    write_and_tell(a, IMMEDIATE)?;
    (0..16).try_for_each(|_| a.fsin())
}

/// The instruction becomes INC in even rounds, DEC in odd ones.
fn opcode(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    a.mov(ecx, ebp)?;
    a.and(ecx, 1)?;
    if processor == 0 {
        a.shl(ecx, 3)?;
        a.or(ecx, 0xc0)?;
        a.mov(byte_ptr(OPCODE_BYTE), cl)?;
        return a.mov(dword_ptr(FLAG), 1);
    }
    wait_and_serialize(a)?;
    a.mov(eax, 1)?;
    call(a, OPCODE)?;
    // 2 or 0: as 1 less twice the lowest bit, plus 1.
    a.mov(ecx, ebp)?;
    a.and(ecx, 1)?;
    a.lea(eax, ptr(rax + rcx * 2))?;
    a.cmp(eax, 2)?;
    record_equality(a, r8)
}

/// The jump leads to the first function in even rounds, to the second in odd ones.
fn jump_target(a: &mut CodeAssembler, processor: usize) -> Result<(), IcedError> {
    a.mov(ecx, ebp)?;
    a.and(ecx, 1)?;
    if processor == 0 {
        a.imul_3(ecx, ecx, TARGET_BYTES as i32)?;
        a.add(ecx, (TARGETS - (JUMP + 5)) as i32)?;
        a.mov(dword_ptr(JUMP_OFFSET), ecx)?;
        return a.mov(dword_ptr(FLAG), 1);
    }
    wait_and_serialize(a)?;
    call(a, JUMP)?;
    a.mov(ecx, ebp)?;
    a.and(ecx, 1)?;
    a.cmp(eax, ecx)?;
    record_equality(a, r8)
}
