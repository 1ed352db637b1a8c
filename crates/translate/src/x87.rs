//! Instructions whose registers are the x87 unit's: x87 and MMX.
//!
//! They run as they are on the host's own unit. The guest's state is *lent* to it when the first of them is met: the
//! first one of every block looks whether it is there ([`Context::x87`](crate::Context::x87)) and leaves to the engine if not
//! ([`Exit::Lend`](crate::Exit::Lend)). The engine lends a state only if all its exceptions are masked, and nothing here
//! unmasks one: so nothing is ever pending, and no instruction traps.
//!
//! The host's last-instruction fields are about the host's code, so the guest's are kept in the context: the page of FIP
//! is stored by a block's first x87 instruction, its offset and FOP by each. The operand's address and the selectors
//! stay as they were: newer processors keep none of them either unless there is an unmasked exception.
//!
//! What loads or stores more of the unit than a register and two words is left to the interpreter.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::asm::{Condition, Op};
use crate::block::Mode;
use crate::context::at;
use crate::copy::copy;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// What a block's code has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct X87 {
    /// Looked whether the state is there.
    lent: bool,
    /// Stored the page of FIP.
    page: bool,
}

/// How an instruction of these is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// x87 arithmetic: as it is; it leaves its address in FIP.
    Arithmetic,
    /// MMX, or a store of a control word: as it is.
    Plain,
    /// WAIT: nothing is ever pending.
    Wait,
    /// FLDCW.
    LoadControl,
    /// FNSTSW AX.
    StatusToAx,
}

/// Which kind, if any.
pub(crate) fn kind(insn: &Instruction) -> Option<Kind> {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Wait => Some(Kind::Wait),
        M::Fldcw => Some(Kind::LoadControl),
        M::Fnstsw if insn.op0_kind() == OpKind::Register => Some(Kind::StatusToAx),
        M::Fnstsw | M::Fnstcw | M::Fnclex | M::Emms => Some(Kind::Plain),
        M::Maskmovq
        | M::Fninit
        | M::Fldenv
        | M::Fnstenv
        | M::Frstor
        | M::Fnsave
        | M::Fneni
        | M::Fndisi
        | M::Fnsetpm => None,
        _ if insn.encoding() != EncodingKind::Legacy => None,
        _ if is_unit(insn) => Some(Kind::Arithmetic),
        _ if has_mmx_operand(insn) => Some(Kind::Plain),
        _ => None,
    }
}

fn is_unit(insn: &Instruction) -> bool {
    use CpuidFeature as C;
    insn.cpuid_features().iter().any(|feature| matches!(feature, C::FPU | C::FPU287 | C::FPU387))
}

fn has_mmx_operand(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm())
}

/// Whether the instruction is one of SSE's, and needs CR4.OSFXSR (SDM vol. 3, 23.25.3).
fn is_of_sse(insn: &Instruction) -> bool {
    has_mmx_operand(insn) && !insn.cpuid_features().contains(&CpuidFeature::MMX)
}

/// Translates an instruction of a kind.
pub(crate) fn translate(e: &mut Emitter<'_>, insn: &Instruction, kind: Kind) -> Result {
    let mode = e.source.mode;
    if !mode.has(Mode::X87) || is_of_sse(insn) && !mode.has(Mode::SSE) {
        return Err(Unsupported);
    }
    borrow(e);
    match kind {
        Kind::Arithmetic => {
            copy(e, insn)?;
            note_pointer(e);
            Ok(())
        }
        Kind::Plain => copy(e, insn),
        Kind::Wait => Ok(()),
        Kind::LoadControl => load_control(e, insn),
        Kind::StatusToAx => status_to_ax(e, insn),
    }
}

/// Makes sure that the unit holds the guest's state.
fn borrow(e: &mut Emitter<'_>) {
    if e.x87.lent {
        return;
    }
    e.free_flags();
    e.delta = None;
    let resume = e.asm.here();
    e.asm.gs_is_zero32(at::X87);
    let absent = e.asm.jcc(Condition::EQUAL);
    e.lend_from(absent, resume);
    e.x87.lent = true;
}

/// FIP is the current instruction's address, FOP its opcode. RAX is lost.
fn note_pointer(e: &mut Emitter<'_>) {
    if !e.x87.page {
        e.asm.gs_load(Gpr::RAX, at::PAGE);
        e.asm.gs_store(at::X87_PAGE, Gpr::RAX);
        e.x87.page = true;
    }
    e.asm.gs_store_imm32(at::X87_LAST, u32::from(e.at) | u32::from(opcode(e)) << 16);
}

/// The last-opcode field: three bits of the current instruction's first opcode byte, and the second one.
fn opcode(e: &Emitter<'_>) -> u16 {
    let start = usize::from(e.at - e.source.offset);
    let bytes = e.source.code.get(start..).unwrap_or_default();
    // No prefix lies among the escape opcodes.
    let opcode =
        bytes.iter().position(|byte| matches!(byte, 0xd8..=0xdf)).and_then(|at| bytes.get(at..at + 2));
    opcode.map_or(0, |bytes| u16::from(bytes[0] & 7) << 8 | u16::from(bytes[1]))
}

/// FLDCW of a word that masks all exceptions, as those do that change rounding or precision; another one is interpreted.
/// The word is looked at and loaded from a copy, so that nobody can change it in between.
fn load_control(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    const MASKS: i32 = 0x3f;
    e.free_flags();
    e.delta = None;
    e.linear_address(insn)?;
    e.check_kept(2, false)?;
    // MOVZX ECX, word [RAX]
    e.asm.raw(&[0x0f, 0xb7, 0x08]);
    e.asm.gs_store(at::TEMP, Gpr::RCX);
    e.asm.op32_imm(Op::And, Gpr::RCX, MASKS);
    e.asm.op32_imm(Op::Cmp, Gpr::RCX, MASKS);
    let unmasks = e.asm.jcc(Condition::NOT_EQUAL);
    e.interpret_from(unmasks);
    // FLDCW gs:[TEMP]
    e.asm.raw(&[0x65, 0xd9, 0x2c, 0x25]);
    e.asm.raw(&at::TEMP.to_le_bytes());
    Ok(())
}

/// FNSTSW AX, into the low half of where the guest's EAX lives.
fn status_to_ax(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let home = Gpr::RAX.home().ok_or(Unsupported)?;
    e.encode(insn)?;
    let merge = Instruction::with2(Code::Mov_r16_rm16, home.sized(2), Register::AX);
    e.encode(&merge.map_err(|_| Unsupported)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;
    use crate::listing::{exits, text};

    #[test]
    fn a_block_asks_for_the_state_once() {
        let two = [0xd9, 0xe8, 0xde, 0xc1]; // fld1; faddp
        assert_eq!(exits(Mode::new(), &two), [Exit::Interpret]);
        assert!(matches!(exits(Mode::X87, &two)[..], [Exit::Lend { .. }]));
        let code = text(Mode::X87, &two);
        let place = |name: &str| code.iter().position(|line| line.starts_with(name));
        assert!(place("fld1").unwrap() < place("faddp").unwrap());
    }

    #[test]
    fn what_may_unmask_an_exception_may_be_interpreted() {
        let loads = exits(Mode::X87, &[0xd9, 0x28]); // fldcw [rax]
        assert!(matches!(loads[..], [Exit::Lend { .. }, Exit::Miss { write: false, .. }, Exit::Interpret]));
        // fnstenv [rax]; fnsave [rax]; fninit; maskmovq mm0, mm1
        for whole in [&[0xd9, 0x30][..], &[0xdd, 0x30], &[0xdb, 0xe3], &[0x0f, 0xf7, 0xc1]] {
            assert_eq!(exits(Mode::X87.with(Mode::SSE, true), whole), [Exit::Interpret]);
        }
    }

    #[test]
    fn mmx_instructions_of_sse_need_sse() {
        let (paddb, pshufw) = ([0x0f, 0xfc, 0xc1], [0x0f, 0x70, 0xc1, 0]);
        assert!(matches!(exits(Mode::X87, &paddb)[..], [Exit::Lend { .. }]));
        assert_eq!(exits(Mode::X87, &pshufw), [Exit::Interpret]);
        let both = Mode::X87.with(Mode::SSE, true);
        assert!(matches!(exits(both, &pshufw)[..], [Exit::Lend { .. }]));
    }

    #[test]
    fn the_opcode_is_the_escape_byte_and_the_next() {
        // fs fadd dword [rbx]
        let code = text(Mode::X87, &[0x64, 0xd8, 0x03]);
        let store = code.iter().find(|line| line.contains("30123h"));
        assert!(store.is_some_and(|line| line.starts_with("mov dword [gs:")), "{code:?}");
    }
}
