//! Which processor feature an instruction needs.

use iced_x86::{CodeSize, CpuidFeature, Instruction, Mnemonic};
use x86::cpuid::{Feature, FeatureSet};

/// Whether the CPU model has everything that the instruction needs.
pub(crate) fn offered(insn: &Instruction, features: &FeatureSet) -> bool {
    // Two encodings that older processors execute as BSR and BSF: the prefix is ignored, nothing faults.
    if matches!(insn.mnemonic(), Mnemonic::Lzcnt | Mnemonic::Tzcnt) {
        return true;
    }
    // The decoder knows no feature for these in 64-bit mode.
    if matches!(insn.mnemonic(), Mnemonic::Lahf | Mnemonic::Sahf) && insn.code_size() == CodeSize::Code64 {
        return features.has(Feature::LahfLm);
    }
    // Hypercalls come with a hypervisor, not with virtualization of the processor's own.
    if matches!(insn.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall) {
        return features.has(Feature::Hypervisor);
    }
    insn.cpuid_features().iter().all(|&need| has(need, features))
}

fn has(need: CpuidFeature, features: &FeatureSet) -> bool {
    use CpuidFeature as C;
    let feature = match need {
        // The base set up to the Pentium Pro comes with x86-64, as do the hints that execute as NOP elsewhere.
        C::INTEL8086
        | C::INTEL8086_ONLY
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::FPU287
        | C::FPU387
        | C::SMM
        | C::X64
        | C::PAUSE
        | C::MULTIBYTENOP
        | C::RDPMC
        | C::CPUID
        // Without CET its markers are no-operations; what is not falls through to #UD in the handler table.
        | C::CET_IBT
        | C::CET_SS => return true,
        C::FPU => Feature::Fpu,
        C::CLFSH => Feature::Clflush,
        C::CLFLUSHOPT => Feature::Clflushopt,
        C::CLWB => Feature::Clwb,
        C::CMOV => Feature::Cmov,
        C::CX8 => Feature::Cx8,
        C::CMPXCHG16B => Feature::Cx16,
        C::MSR => Feature::Msr,
        C::SEP => Feature::Sep,
        C::SYSCALL => Feature::Syscall,
        C::TSC => Feature::Tsc,
        C::RDTSCP => Feature::Rdtscp,
        C::MMX => Feature::Mmx,
        C::FXSR => Feature::Fxsr,
        C::SSE => Feature::Sse,
        C::SSE2 => Feature::Sse2,
        C::SSE3 => Feature::Sse3,
        C::SSSE3 => Feature::Ssse3,
        C::SSE4_1 => Feature::Sse41,
        C::SSE4_2 => Feature::Sse42,
        C::POPCNT => Feature::Popcnt,
        C::AVX => Feature::Avx,
        C::AVX2 => Feature::Avx2,
        C::FMA => Feature::Fma,
        C::F16C => Feature::F16c,
        C::AES => Feature::Aes,
        C::PCLMULQDQ => Feature::Pclmulqdq,
        C::SHA => Feature::Sha,
        C::BMI1 => Feature::Bmi1,
        C::BMI2 => Feature::Bmi2,
        C::LZCNT => Feature::Lzcnt,
        C::ADX => Feature::Adx,
        C::MOVBE => Feature::Movbe,
        C::XSAVE => Feature::Xsave,
        C::XSAVEOPT => Feature::Xsaveopt,
        C::XSAVEC => Feature::Xsavec,
        C::RDRAND => Feature::Rdrand,
        C::RDSEED => Feature::Rdseed,
        C::RDPID => Feature::Rdpid,
        C::FSGSBASE => Feature::Fsgsbase,
        C::INVPCID => Feature::Invpcid,
        C::SMAP => Feature::Smap,
        C::MONITOR => Feature::Monitor,
        C::PREFETCHW => Feature::Prefetchw,
        _ => return false,
    };
    features.has(feature)
}
