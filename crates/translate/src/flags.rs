//! What instructions do to the six status flags.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register, RflagsBits};

/// CF, PF, AF, ZF, SF and OF as the decoder names them.
const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// What an instruction does to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// The result depends on them; also if only some are written, since the others stay.
    pub(crate) needs: bool,
    /// It changes at least one.
    pub(crate) changes: bool,
}

/// The effect of executing `insn` as it is.
pub(crate) fn effect(insn: &Instruction) -> Effect {
    let changed = insn.rflags_modified() & STATUS;
    let partly = changed != 0 && (changed != STATUS || may_leave_alone(insn));
    Effect { needs: insn.rflags_read() & STATUS != 0 || partly, changes: changed != 0 }
}

/// Shifts by a count of zero change nothing.
fn may_leave_alone(insn: &Instruction) -> bool {
    use Mnemonic as M;
    if !matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd) {
        return false;
    }
    // Of a count in the instruction the decoder knows whether it is zero.
    let count = insn.op_count().saturating_sub(1);
    insn.op_kind(count) == OpKind::Register && insn.op_register(count) == Register::CL
}

/// Whether the decoder gave up on it.
pub(crate) fn is_invalid(insn: &Instruction) -> bool {
    insn.code() == Code::INVALID
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn of(bytes: &[u8]) -> Effect {
        effect(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn effects() {
        let (writer, reader, partial, none) = (
            Effect { needs: false, changes: true },
            Effect { needs: true, changes: false },
            Effect { needs: true, changes: true },
            Effect { needs: false, changes: false },
        );
        assert_eq!(of(&[0x48, 0x01, 0xd8]), writer, "add rax, rbx");
        assert_eq!(of(&[0x48, 0x11, 0xd8]), partial, "adc rax, rbx");
        assert_eq!(of(&[0xff, 0xc0]), partial, "inc eax");
        assert_eq!(of(&[0x0f, 0x94, 0xc0]), reader, "sete al");
        assert_eq!(of(&[0xc1, 0xe0, 0x05]), writer, "shl eax, 5");
        assert_eq!(of(&[0xc1, 0xe0, 0x20]), none, "shl eax, 32");
        assert_eq!(of(&[0xd3, 0xe0]), partial, "shl eax, cl");
        assert_eq!(of(&[0xc1, 0xc0, 0x05]), partial, "rol eax, 5");
        assert_eq!(of(&[0x48, 0x89, 0xd8]), none, "mov rax, rbx");
        assert_eq!(of(&[0x66, 0x0f, 0x2f, 0xc1]), writer, "comisd xmm0, xmm1");
    }
}
