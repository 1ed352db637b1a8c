//! What the manual leaves undefined, along a run of instructions: status flags, and registers that got their values from
//! them or from a double shift by more bits than there are.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use instruction::status_flags;
use x86::rflags::OF;

/// What is known of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Undefined {
    /// The flags that are undefined now.
    pub(super) flags: u64,
    /// An instruction read a flag while it was undefined, or its result is: whatever follows may depend on it.
    pub(super) was_read: bool,
}

impl Undefined {
    /// The same behind one more instruction.
    #[must_use]
    pub(super) fn after(self, insn: &Instruction) -> Self {
        let read = self.flags & status_flags(insn.rflags_read()) != 0;
        let undefined = status_flags(insn.rflags_undefined()) | full_rotation(insn);
        let defined = status_flags(insn.rflags_modified()) & !undefined;
        let kept = if may_leave_alone(insn) { self.flags } else { self.flags & !defined };
        Self { flags: kept | undefined, was_read: self.was_read | read | may_be_undefined(insn) }
    }
}

/// OF, after RCL or RCR of 8 or 16 bits all the way round: undefined, as after any rotation by several bits (SDM vol. 2),
/// where the decoder says that nothing changes.
fn full_rotation(insn: &Instruction) -> u64 {
    let rotation = matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    if rotation && insn.op1_kind() == OpKind::Immediate8 && insn.immediate8() & 31 > 1 { OF } else { 0 }
}

/// Whether it may change no flag at all: shifts and repetitions by a count in a register, which may be zero.
fn may_leave_alone(insn: &Instruction) -> bool {
    let by_cl = (1..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i) == Register::CL);
    by_cl || insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// Whether the result may be undefined: that of SHLD and SHRD of 16 bits by more than that (SDM vol. 2).
fn may_be_undefined(insn: &Instruction) -> bool {
    let double = matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let by_immediate = insn.op2_kind() == OpKind::Immediate8;
    double && insn.op1_register().size() == 2 && (!by_immediate || insn.immediate8() & 31 > 16)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};
    use x86::rflags::{AF, PF, SF, ZF};

    use super::*;

    fn run(code: &[u8]) -> Undefined {
        Decoder::new(64, code, DecoderOptions::NONE)
            .iter()
            .fold(Undefined::default(), |undefined, insn| undefined.after(&insn))
    }

    #[test]
    fn undefined_until_defined_again() {
        assert_eq!(run(&[0x31, 0xc0]).flags, AF, "xor eax, eax");
        assert_eq!(run(&[0x31, 0xc0, 0x01, 0xc0]).flags, 0, "xor eax, eax; add eax, eax");
        assert_eq!(run(&[0x0f, 0xaf, 0xc1]).flags, PF | AF | ZF | SF, "imul eax, ecx");
        assert_eq!(run(&[0x0f, 0xaf, 0xc1, 0xd3, 0xe8]).flags, PF | AF | ZF | SF | OF, "imul; shr eax, cl");
        assert_eq!(run(&[0x31, 0xc0, 0xf3, 0xae]).flags, AF, "xor eax, eax; repe scasb");
    }

    #[test]
    fn all_the_way_round() {
        assert_eq!(run(&[0xc0, 0xd0, 18]).flags, OF, "rcl al, 18");
        assert_eq!(run(&[0xc0, 0xd0, 32]).flags, 0, "rcl al, 32");
    }

    #[test]
    fn readers_are_noticed() {
        assert!(run(&[0x31, 0xc0, 0x9c]).was_read, "xor eax, eax; pushf");
        assert!(!run(&[0x31, 0xc0, 0x0f, 0x94, 0xc0]).was_read, "xor eax, eax; sete al");
    }

    #[test]
    fn results_may_be_undefined() {
        assert!(run(&[0x66, 0x0f, 0xa4, 0xc3, 17]).was_read, "shld bx, ax, 17");
        assert!(!run(&[0x66, 0x0f, 0xa4, 0xc3, 16]).was_read, "shld bx, ax, 16");
        assert!(run(&[0x66, 0x0f, 0xad, 0xc3]).was_read, "shrd bx, ax, cl");
        assert!(!run(&[0x0f, 0xad, 0xc3]).was_read, "shrd ebx, eax, cl");
    }
}
