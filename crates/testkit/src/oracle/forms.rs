//! Which instruction forms are tried: every one in the decoder's table that the CPU model offers and that means the
//! same inside and outside the guest, in 64-bit mode and in 32- and 16-bit compatibility mode.

use std::fmt;

use iced_x86::{Code, CpuidFeature, DecoderOptions, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};
use x86::cpuid::{CpuidTable, Feature};

/// An instruction in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The decoder's name for it.
    pub code: Code,
    /// 64, 32 or 16.
    pub bits: u32,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.code, self.bits)
    }
}

/// All forms for the model.
pub fn table(cpuid: &CpuidTable) -> Vec<Form> {
    let form = |code| [64, 32, 16].map(|bits| Form { code, bits });
    Code::values().flat_map(form).filter(|form| is_tried(form, cpuid)).collect()
}

fn is_tried(form: &Form, cpuid: &CpuidTable) -> bool {
    let code = form.code;
    let description = code.op_code();
    let decodes = match form.bits {
        64 => description.mode64() && description.intel_decoder64(),
        32 => description.mode32() && description.intel_decoder32(),
        _ => description.mode16() && description.intel_decoder16(),
    };
    decodes
        && description.is_instruction()
        && description.decoder_option() == DecoderOptions::NONE
        && !description.fwait()
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|&feature| offered(feature, cpuid))
        && match code.flow_control() {
            FlowControl::Next
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::Exception => true,
            FlowControl::Interrupt => code.mnemonic() == Mnemonic::Into,
            FlowControl::XbeginXabortXend => false,
        }
        && description.op_kinds().iter().all(|&kind| is_buildable(kind))
        && !code.is_jmp_far_indirect()
        && !code.is_call_far_indirect()
        && !loads_segment(code)
        && !is_excluded(code.mnemonic())
}

fn offered(feature: CpuidFeature, cpuid: &CpuidTable) -> bool {
    use CpuidFeature as C;
    let needed = match feature {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::FPU
        | C::FPU287
        | C::FPU387
        | C::X64
        | C::CMOV
        | C::CX8
        | C::MMX
        | C::SSE
        | C::SSE2
        | C::FXSR
        | C::MSR
        | C::CLFSH
        | C::PAUSE
        | C::MULTIBYTENOP => return true,
        C::SSE3 => Feature::Sse3,
        C::SSSE3 => Feature::Ssse3,
        C::SSE4_1 => Feature::Sse41,
        C::SSE4_2 => Feature::Sse42,
        C::POPCNT => Feature::Popcnt,
        C::AES => Feature::Aes,
        C::PCLMULQDQ => Feature::Pclmulqdq,
        C::SHA => Feature::Sha,
        C::AVX => Feature::Avx,
        C::AVX2 => Feature::Avx2,
        C::FMA => Feature::Fma,
        C::F16C => Feature::F16c,
        C::BMI1 => Feature::Bmi1,
        C::BMI2 => Feature::Bmi2,
        C::LZCNT => Feature::Lzcnt,
        C::ADX => Feature::Adx,
        C::MOVBE => Feature::Movbe,
        C::CMPXCHG16B => Feature::Cx16,
        C::XSAVE => Feature::Xsave,
        C::XSAVEOPT => Feature::Xsaveopt,
        C::XSAVEC => Feature::Xsavec,
        C::PREFETCHW => Feature::Prefetchw,
        C::CLFLUSHOPT => Feature::Clflushopt,
        C::CLWB => Feature::Clwb,
        C::FSGSBASE => Feature::Fsgsbase,
        _ => return false,
    };
    cpuid.has(needed)
}

/// Operands that `build` knows to make.
fn is_buildable(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::mem_offs
            | K::mem
            | K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::r8_reg
            | K::r8_opcode
            | K::r16_reg
            | K::r16_rm
            | K::r16_opcode
            | K::r32_reg
            | K::r32_rm
            | K::r32_opcode
            | K::r32_vvvv
            | K::r64_reg
            | K::r64_rm
            | K::r64_opcode
            | K::r64_vvvv
            | K::seg_reg
            | K::mm_reg
            | K::mm_rm
            | K::xmm_reg
            | K::xmm_rm
            | K::xmm_vvvv
            | K::xmm_is4
            | K::ymm_reg
            | K::ymm_rm
            | K::ymm_vvvv
            | K::ymm_is4
            | K::fs
            | K::gs
            | K::al
            | K::cl
            | K::ax
            | K::dx
            | K::eax
            | K::rax
            | K::st0
            | K::sti_opcode
            | K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64
            | K::seg_rSI
            | K::es_rDI
            | K::seg_rDI
            | K::seg_rBX_al
            | K::br64_1
            | K::br64_4
            | K::br32_1
            | K::br32_4
            | K::br16_1
            | K::br16_2
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::cr_reg
            | K::dr_reg
    )
}

/// Loading a segment register would outlive the case in the child.
fn loads_segment(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let segment =
        matches!(code.op_code().op_kind(0), K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs);
    segment && matches!(code.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        || matches!(
            code.mnemonic(),
            Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss
        )
}

/// What cannot mean the same here and there: it shows or changes the operating system's own state, time, chance or the
/// processor's identity.
fn is_excluded(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        // The kernel's tables and settings.
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw
        | M::Rdpmc | M::Xgetbv | M::Xsetbv
        // The kernel itself.
        | M::Syscall | M::Sysenter | M::Sysret | M::Sysretq | M::Sysexit | M::Sysexitq | M::Int | M::Int1 | M::Int3
        // Far transfers, which change segments.
        | M::Retf | M::Iret | M::Iretd | M::Iretq
        // Bases that the child needs.
        | M::Wrfsbase | M::Wrgsbase
        // Identity, time, chance.
        | M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpid | M::Rdrand | M::Rdseed
        // Undocumented or dropped.
        | M::Umov | M::Monitor | M::Mwait
    )
}
