//! LDMXCSR, STMXCSR: while translated code runs, the host's MXCSR is the guest's.
//!
//! That all exceptions are masked is part of the mode, so a value that unmasks one is left to the interpreter; so is one
//! with reserved bits, which faults.

use iced_x86::{Code, Instruction, MemoryOperand, Register};
use x86::fpu::MXCSR_MASK;

use crate::asm::{Condition, Op};
use crate::block::Mode;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// All exceptions masked.
const MASKED: i32 = 0x1f80;
/// What decides whether a value may be loaded: with any of these bits other than [`MASKED`] it may not.
const DECIDING: i32 = !MXCSR_MASK.cast_signed() | MASKED;

/// Translates one of them.
pub(crate) fn mxcsr(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let (load, needed) = match insn.code() {
        Code::Ldmxcsr_m32 => (true, Mode::SSE),
        Code::VEX_Vldmxcsr_m32 => (true, Mode::AVX),
        Code::Stmxcsr_m32 => (false, Mode::SSE),
        Code::VEX_Vstmxcsr_m32 => (false, Mode::AVX),
        _ => return Err(Unsupported),
    };
    if !e.source.mode.has(needed) {
        return Err(Unsupported);
    }
    e.free_flags();
    e.linear_address(insn)?;
    e.check_kept(4, !load)?;
    if !load {
        let memory = MemoryOperand::with_base(Register::RAX);
        let store = Instruction::with1(Code::Stmxcsr_m32, memory).map_err(|_| Unsupported)?;
        return e.encode(&store);
    }
    // What is loaded is what was looked at, whoever else writes there.
    e.asm.load32(Gpr::RAX, Gpr::RAX, 0);
    e.asm.gs_store32(at::TEMP, Gpr::RAX);
    e.asm.op32_imm(Op::Xor, Gpr::RAX, MASKED);
    e.asm.test32_imm(Gpr::RAX, DECIDING);
    let other = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(other);
    e.asm.gs_ldmxcsr(at::TEMP);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;
    use crate::listing::exits;

    #[test]
    fn one_access_each() {
        let (load, store) = ([0x0f, 0xae, 0x10], [0x0f, 0xae, 0x18]);
        assert_eq!(exits(Mode::new(), &load), [Exit::Interpret]);
        let loads = exits(Mode::SSE, &load);
        assert!(matches!(loads[..], [Exit::Miss { write: false, .. }, Exit::Interpret]));
        let stores = exits(Mode::SSE, &store);
        assert!(matches!(stores[..], [Exit::Miss { write: true, .. }]));
    }

    #[test]
    fn what_may_be_loaded() {
        let may = |value: i32| (value ^ MASKED) & DECIDING == 0;
        assert!(may(0x1f80) && may(0xffff) && may(0x7fc0));
        assert!(!may(0x1f00) && !may(0) && !may(0x11f80));
    }
}
