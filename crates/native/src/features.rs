//! Which of the instruction sets that thunks may use this processor (and its operating system) offers.

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature};

/// What is known of an instruction's set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// The host executes it.
    Here,
    /// It is one for thunks, but this host lacks it.
    Absent,
    /// It is not one for thunks.
    Foreign,
}

/// Whether the set that `code` belongs to is one for thunks, and here.
pub(crate) fn offer(code: Code) -> Offer {
    static SETS: OnceLock<Vec<(CpuidFeature, bool)>> = OnceLock::new();
    let sets = SETS.get_or_init(detect);
    let mut offer = if code.cpuid_features().is_empty() { Offer::Foreign } else { Offer::Here };
    for needed in code.cpuid_features() {
        match sets.iter().find(|(set, _)| set == needed) {
            None => return Offer::Foreign,
            Some((_, false)) => offer = Offer::Absent,
            Some((_, true)) => {}
        }
    }
    offer
}

/// Everything up to SSE2 is part of x86-64 itself (SDM vol. 1, 3.1).
fn detect() -> Vec<(CpuidFeature, bool)> {
    use CpuidFeature as F;
    vec![
        (F::FPU, true),
        (F::FPU287, true),
        (F::FPU387, true),
        (F::CMOV, true),
        (F::MMX, true),
        (F::SSE, true),
        (F::SSE2, true),
        (F::SSE3, is_x86_feature_detected!("sse3")),
        (F::SSSE3, is_x86_feature_detected!("ssse3")),
        (F::SSE4_1, is_x86_feature_detected!("sse4.1")),
        (F::SSE4_2, is_x86_feature_detected!("sse4.2")),
        (F::AES, is_x86_feature_detected!("aes")),
        (F::PCLMULQDQ, is_x86_feature_detected!("pclmulqdq")),
        (F::SHA, is_x86_feature_detected!("sha")),
        (F::GFNI, is_x86_feature_detected!("gfni")),
        (F::AVX, is_x86_feature_detected!("avx")),
        (F::AVX2, is_x86_feature_detected!("avx2")),
        (F::FMA, is_x86_feature_detected!("fma")),
        (F::F16C, is_x86_feature_detected!("f16c")),
        (F::VAES, is_x86_feature_detected!("vaes")),
        (F::VPCLMULQDQ, is_x86_feature_detected!("vpclmulqdq")),
    ]
}
