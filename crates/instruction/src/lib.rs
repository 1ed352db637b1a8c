//! What is known of instructions beyond what the decoder tells: facts that whoever executes, translates or checks them
//! has to agree on.

use iced_x86::{EncodingKind, Instruction, Mnemonic, RflagsBits};
use x86::rflags::{AF, CF, OF, PF, SF, ZF};

/// The alignment in bytes, a power of two, that the memory operand of an MMX, SSE or AVX instruction must have, 1 if any
/// will do: all of the operand for the VEX moves that say so, 16 for whole legacy operands unless the instruction is an
/// exception. #GP(0) otherwise (SDM vol. 1, 10.4.1.1; vol. 2, 2.4 and 2.7, and the instructions' own pages).
pub fn required_alignment(insn: &Instruction) -> u8 {
    use Mnemonic as M;
    let bytes = insn.memory_size().size();
    let mnemonic = insn.mnemonic();
    let strict = if insn.encoding() == EncodingKind::VEX {
        matches!(
            mnemonic,
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
        )
    } else {
        let unaligned_move = matches!(mnemonic, M::Movups | M::Movupd | M::Movdqu | M::Lddqu);
        bytes == 16 && !unaligned_move && !compares_text(mnemonic)
    };
    match bytes {
        16 if strict => 16,
        32 if strict => 32,
        _ => 1,
    }
}

/// The comparisons of SSE4.2, whose operands are strings and begin anywhere.
const fn compares_text(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpestri64 | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm
    )
}

/// The status flags among the decoder's ([`RflagsBits`]), as RFLAGS has them.
pub fn status_flags(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn alignment(bytes: &[u8]) -> u8 {
        required_alignment(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn whole_legacy_operands_are_aligned() {
        assert_eq!(alignment(&[0x0f, 0x28, 0x00]), 16, "movaps xmm0, [rax]");
        assert_eq!(alignment(&[0x0f, 0x58, 0x00]), 16, "addps xmm0, [rax]");
        assert_eq!(alignment(&[0x66, 0x0f, 0x2d, 0x00]), 16, "cvtpd2pi mm0, [rax]");
        assert_eq!(alignment(&[0x0f, 0x10, 0x00]), 1, "movups xmm0, [rax]");
        assert_eq!(alignment(&[0xf3, 0x0f, 0x58, 0x00]), 1, "addss xmm0, [rax]");
        assert_eq!(alignment(&[0x66, 0x0f, 0x3a, 0x63, 0x00, 0]), 1, "pcmpistri xmm0, [rax], 0");
    }

    #[test]
    fn only_aligned_vex_moves_are() {
        assert_eq!(alignment(&[0xc5, 0xfc, 0x28, 0x00]), 32, "vmovaps ymm0, [rax]");
        assert_eq!(alignment(&[0xc5, 0xf9, 0x6f, 0x00]), 16, "vmovdqa xmm0, [rax]");
        assert_eq!(alignment(&[0xc5, 0xfc, 0x58, 0x00]), 1, "vaddps ymm0, ymm0, [rax]");
    }

    #[test]
    fn other_flags_are_left_out() {
        assert_eq!(status_flags(RflagsBits::CF | RflagsBits::DF | RflagsBits::OF), CF | OF);
    }
}
