//! The guest's exception handlers.
//!
//! A fault either ends the case or is noted and gone on after, as the child's signal handler does it: the frame's RIP is
//! replaced and IRET goes back to user mode. So an engine meets faults in the middle of hot code, and returns from them,
//! as under an operating system.
//!
//! The handler of each vector pushes what makes all frames alike — an error code, if the processor pushed none, and the
//! vector — and jumps to a common tail, which halts when the case is over. [`Frame`] is what is then on the stack.

use iced_x86::code_asm::*;

use super::case::LOGGED;

/// The handler of vector *n* is at *n* times this.
pub(super) const HANDLER_BYTES: u64 = 16;
/// Vectors that have handlers.
pub(super) const VECTORS: u64 = 32;
/// Where the common tail begins.
const TAIL: u64 = VECTORS * HANDLER_BYTES;

/// What is on the stack when the guest halts, in words: vector, error code, RIP, CS, RFLAGS, RSP, SS.
pub(super) type Frame = [u64; 7];

/// What the handlers and the host share, in words: faults to go on after, where to go on, faults so far, then the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    /// Its linear address, one that a sign-extended displacement reaches.
    pub(super) address: u64,
}

impl Shared {
    pub(super) const LEFT: u64 = 0;
    pub(super) const RESUME_AT: u64 = 8;
    pub(super) const RESUMED: u64 = 16;
    pub(super) const LOG: u64 = 64;

    fn word(self, at: u64) -> AsmMemoryOperand {
        qword_ptr(self.address + at)
    }
}

/// Whether the processor pushes an error code.
pub(super) const fn has_error(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// The handlers' code, to be put at `address`, and where the guest halts: the address after the HLT.
pub(super) fn assemble(address: u64, shared: Shared) -> Result<(Vec<u8>, u64), IcedError> {
    let mut code = Vec::new();
    let tail = assemble_tail(address + TAIL, shared)?;
    // The HLT is the tail's last byte.
    let halted = address + TAIL + tail.len() as u64;
    for vector in 0..VECTORS {
        let at = vector * HANDLER_BYTES;
        code.resize(at as usize, 0);
        let mut a = CodeAssembler::new(64)?;
        if !has_error(vector) {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        // A breakpoint ends the case.
        a.jmp(if vector == 3 { halted - 1 } else { address + TAIL })?;
        code.extend(a.assemble(address + at)?);
    }
    code.resize(TAIL as usize, 0);
    code.extend(tail);
    Ok((code, halted))
}

fn assemble_tail(address: u64, shared: Shared) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut stop = a.create_label();
    a.cmp(shared.word(Shared::LEFT), 0)?;
    a.je(stop)?;
    a.dec(shared.word(Shared::LEFT))?;
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(rbx, shared.word(Shared::RESUMED))?;
    a.inc(shared.word(Shared::RESUMED))?;
    a.and(rbx, LOGGED as i32 - 1)?;
    a.shl(rbx, 5)?;
    // Vector, error code and RIP, below the two registers.
    for word in 0..3 {
        a.mov(rax, qword_ptr(rsp + (16 + 8 * word)))?;
        a.mov(qword_ptr(rbx + (shared.address + Shared::LOG).cast_signed() + 8 * word), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + (shared.address + Shared::LOG).cast_signed() + 24), rax)?;
    a.mov(rax, shared.word(Shared::RESUME_AT))?;
    a.mov(qword_ptr(rsp + 32), rax)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut stop)?;
    a.hlt()?;
    a.assemble(address)
}
