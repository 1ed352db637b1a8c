//! Which instructions may be copied, and what a copy has to mind.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::facts::Facts;
use crate::host::Gpr;

/// Registers that an instruction uses without naming them: only RAX and RCX need care, the others that occur are at
/// home in themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Implicit {
    rax: Option<(bool, bool)>,
    rcx: Option<(bool, bool)>,
}

impl Implicit {
    pub(crate) fn uses(self, register: Gpr) -> bool {
        self.list().any(|(guest, ..)| guest == register)
    }

    /// As a number below 64.
    pub(crate) fn number(self) -> u8 {
        let bits = |usage: Option<(bool, bool)>| {
            usage.map_or(0, |(read, written)| 4 | u8::from(read) << 1 | u8::from(written))
        };
        bits(self.rax) << 3 | bits(self.rcx)
    }

    /// That of a number.
    pub(crate) fn numbered(number: u8) -> Self {
        let usage = |bits: u8| (bits & 4 != 0).then_some((bits & 2 != 0, bits & 1 != 0));
        Self { rax: usage(number >> 3), rcx: usage(number) }
    }

    /// Register, whether it is read, whether it is written.
    pub(crate) fn list(self) -> impl Iterator<Item = (Gpr, bool, bool)> {
        let of =
            |register, usage: Option<(bool, bool)>| usage.map(|(read, written)| (register, read, written));
        [of(Gpr::RAX, self.rax), of(Gpr::RCX, self.rcx)].into_iter().flatten()
    }
}

const READ: Option<(bool, bool)> = Some((true, false));
const BOTH: Option<(bool, bool)> = Some((true, true));
const WRITTEN: Option<(bool, bool)> = Some((false, true));

/// The implicit registers of an instruction that may be copied; `None` if it may not.
pub(crate) fn implicit(insn: &Instruction) -> Option<Implicit> {
    // With a register as the bit's number the operand in memory may be anywhere: see `special`.
    let anywhere = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register;
    Facts::of(insn).implicit().filter(|_| !anywhere)
}

/// The same for a kind of instructions: depends on nothing but the code.
pub(crate) fn look_up(insn: &Instruction) -> Option<Implicit> {
    use Mnemonic as M;
    let none = Implicit::default();
    let rax = |usage| Implicit { rax: usage, rcx: None };
    Some(match insn.mnemonic() {
        M::Cbw | M::Cwde | M::Cdqe => rax(BOTH),
        M::Cwd | M::Cdq | M::Cqo | M::Sahf => rax(READ),
        M::Lahf | M::Cmpxchg => rax(BOTH),
        M::Mul => rax(BOTH),
        M::Imul if insn.op_count() == 1 => rax(BOTH),
        M::Pcmpistri | M::Vpcmpistri => Implicit { rax: None, rcx: WRITTEN },
        M::Pcmpestrm | M::Vpcmpestrm | M::Pcmpestrm64 | M::Vpcmpestrm64 => rax(READ),
        M::Pcmpestri | M::Vpcmpestri | M::Pcmpestri64 | M::Vpcmpestri64 => {
            Implicit { rax: READ, rcx: WRITTEN }
        }
        _ if is_plain_integer(insn) || is_plain_vector(insn) => none,
        _ => return None,
    })
}

fn is_plain_integer(insn: &Instruction) -> bool {
    use Mnemonic as M;
    if insn.encoding() != EncodingKind::Legacy && insn.encoding() != EncodingKind::VEX {
        return false;
    }
    let known = matches!(
        insn.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movbe
            | M::Movnti
            | M::Xchg
            | M::Xadd
            | M::Bswap
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Imul
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Mulx
            | M::Adcx
            | M::Adox
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Rdrand
            | M::Rdseed
            | M::Lfence
            | M::Mfence
            | M::Sfence
    ) || is_conditional(insn.mnemonic());
    known && (0..insn.op_count()).all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i).is_gpr())
}

fn is_conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}

/// Whether it is a vector instruction of SSE to AVX2 that only computes.
pub(crate) fn is_plain_vector(insn: &Instruction) -> bool {
    use CpuidFeature as C;
    use Mnemonic as M;
    let family = insn.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            C::SSE
                | C::SSE2
                | C::SSE3
                | C::SSSE3
                | C::SSE4_1
                | C::SSE4_2
                | C::AVX
                | C::AVX2
                | C::FMA
                | C::F16C
                | C::AES
                | C::PCLMULQDQ
                | C::SHA
        )
    });
    let special = matches!(
        insn.mnemonic(),
        M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Pause
            | M::Clflush
            | M::Movnti
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
    );
    let registers = (0..insn.op_count()).all(|i| {
        let register = insn.op_register(i);
        insn.op_kind(i) != OpKind::Register || register.is_gpr() || register.is_xmm() || register.is_ymm()
    });
    let encoding = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    family
        && !special
        && registers
        && encoding
        && !insn.memory_index().is_vector_register()
        && !insn.cpuid_features().is_empty()
}

/// Whether it belongs to AVX: needs the upper halves.
pub(crate) fn is_vex_vector(insn: &Instruction) -> bool {
    insn.encoding() == EncodingKind::VEX && is_plain_vector(insn)
}

/// Whether operand `i` is CL as the count of a shift, which no other register can be.
pub(crate) fn count_register(insn: &Instruction, i: u32) -> bool {
    use Mnemonic as M;
    i + 1 == insn.op_count()
        && insn.op_register(i) == Register::CL
        && matches!(
            insn.mnemonic(),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
        )
}

/// Whether it has an operand in memory.
pub(crate) fn names_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// The displacement of its memory operand, if 32 bits hold it, sign-extended.
pub(crate) fn displacement(insn: &Instruction) -> Option<i32> {
    i32::try_from(insn.memory_displacement64().cast_signed()).ok()
}

/// Address bits that must be clear: #GP otherwise.
pub(crate) fn alignment_mask(insn: &Instruction) -> Option<u8> {
    instruction::required_alignment(insn).checked_sub(1).filter(|&mask| mask != 0)
}

/// The same instruction without the short encodings that work on the accumulator or on an absolute address only, and
/// those of 32-bit code that 64-bit code has other uses for.
pub(crate) fn without_accumulator(insn: &Instruction) -> Instruction {
    let mut general = *insn;
    let code = general_code(insn.code());
    if code != insn.code() {
        general.set_code(code);
    }
    general
}

macro_rules! accumulator_forms {
    ($code:expr; $($short:ident => $long:ident,)*) => {
        match $code {
            $(Code::$short => Code::$long,)*
            other => other,
        }
    };
}

fn general_code(code: Code) -> Code {
    accumulator_forms! { code;
        Add_AL_imm8 => Add_rm8_imm8, Add_AX_imm16 => Add_rm16_imm16,
        Add_EAX_imm32 => Add_rm32_imm32, Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8, Or_AX_imm16 => Or_rm16_imm16,
        Or_EAX_imm32 => Or_rm32_imm32, Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8, Adc_AX_imm16 => Adc_rm16_imm16,
        Adc_EAX_imm32 => Adc_rm32_imm32, Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8, Sbb_AX_imm16 => Sbb_rm16_imm16,
        Sbb_EAX_imm32 => Sbb_rm32_imm32, Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8, And_AX_imm16 => And_rm16_imm16,
        And_EAX_imm32 => And_rm32_imm32, And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8, Sub_AX_imm16 => Sub_rm16_imm16,
        Sub_EAX_imm32 => Sub_rm32_imm32, Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8, Xor_AX_imm16 => Xor_rm16_imm16,
        Xor_EAX_imm32 => Xor_rm32_imm32, Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8, Cmp_AX_imm16 => Cmp_rm16_imm16,
        Cmp_EAX_imm32 => Cmp_rm32_imm32, Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8, Test_AX_imm16 => Test_rm16_imm16,
        Test_EAX_imm32 => Test_rm32_imm32, Test_RAX_imm32 => Test_rm64_imm32,
        Inc_r16 => Inc_rm16, Inc_r32 => Inc_rm32, Dec_r16 => Dec_rm16, Dec_r32 => Dec_rm32,
        Xchg_r16_AX => Xchg_rm16_r16, Xchg_r32_EAX => Xchg_rm32_r32, Xchg_r64_RAX => Xchg_rm64_r64,
        Mov_AL_moffs8 => Mov_r8_rm8, Mov_AX_moffs16 => Mov_r16_rm16,
        Mov_EAX_moffs32 => Mov_r32_rm32, Mov_RAX_moffs64 => Mov_r64_rm64,
        Mov_moffs8_AL => Mov_rm8_r8, Mov_moffs16_AX => Mov_rm16_r16,
        Mov_moffs32_EAX => Mov_rm32_r32, Mov_moffs64_RAX => Mov_rm64_r64,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::InstructionInfoFactory;

    use super::*;

    #[test]
    fn a_number_stands_for_them() {
        for number in 0..64 {
            let known = Implicit::numbered(number);
            assert_eq!(Implicit::numbered(known.number()), known);
        }
    }

    /// RAX and RCX as the instruction uses them without naming them, by the decoder's account.
    fn unnamed(insn: &Instruction) -> Vec<Gpr> {
        let mut factory = InstructionInfoFactory::new();
        let named = |register| {
            (0..insn.op_count()).any(|i| {
                insn.op_kind(i) == OpKind::Register && Gpr::of(insn.op_register(i)) == Some(register)
            })
        };
        let mut found = Vec::new();
        for used in factory.info(insn).used_registers() {
            if let Some(register @ (Gpr::RAX | Gpr::RCX)) = Gpr::of(used.register())
                && !named(register)
                && !found.contains(&register)
            {
                found.push(register);
            }
        }
        found
    }

    #[test]
    fn every_unnamed_register_is_known() {
        for code in Code::values().filter(|code| code.op_code().is_instruction() && code.op_code().mode64()) {
            let mut insn = Instruction::default();
            insn.set_code(code);
            for operand in 0..code.op_code().op_count() {
                use iced_x86::OpCodeOperandKind as K;
                let register = match code.op_code().op_kind(operand) {
                    K::al => Register::AL,
                    K::ax => Register::AX,
                    K::cl => Register::CL,
                    K::eax => Register::EAX,
                    K::rax => Register::RAX,
                    kind if format!("{kind:?}").starts_with("imm") => continue,
                    kind if format!("{kind:?}").contains("mm_") => Register::XMM1,
                    _ => Register::RBX,
                };
                insn.set_op_kind(operand, OpKind::Register);
                insn.set_op_register(operand, register);
            }
            let Some(known) = look_up(&insn) else { continue };
            let missing: Vec<_> = unnamed(&insn).into_iter().filter(|&used| !known.uses(used)).collect();
            assert!(missing.is_empty(), "{code:?}: {missing:?}");
        }
    }
}
