//! From a request and a host to a processor that can be offered.
//!
//! What an engine executes in software can be offered anywhere; what it hands to the host's processor (x87 and
//! vector arithmetic) only where the host has it, and enabled it. A model is never trimmed silently: if the host
//! cannot carry it, that is an error which names what is missing. Only the default chooses for itself, between v3
//! and v2.
//!
//! The signature of a named model is fixed per vendor, since guests pick work-arounds and libraries by it. For
//! Intel's they are Westmere and Haswell without TSX, the first to be v2 and v3; for AMD's, Zen 3.

use super::feature::{Executor, Feature, FeatureSet, Models, Register};
use super::request::{BaseModel, CpuRequest, Vendor};
use crate::bits;
use crate::control::xcr0;

/// The widest physical address that is offered: 64 TiB, enough for any guest and within every server's reach.
const MAX_PHYS_BITS: u8 = 46;

/// The host's CPUID as this crate, which does no I/O, is shown it.
#[derive(Clone, Copy)]
pub struct HostCpuid<'a> {
    query: &'a dyn Fn(u32, u32) -> [u32; 4],
    xcr0: u64,
}

impl<'a> HostCpuid<'a> {
    /// A host whose CPUID is `query(leaf, subleaf)` (EAX, EBX, ECX, EDX) and whose operating system enabled `xcr0`
    /// (zero if it did not enable XSAVE).
    pub const fn new(query: &'a dyn Fn(u32, u32) -> [u32; 4], xcr0: u64) -> Self {
        Self { query, xcr0 }
    }

    /// A leaf, or zeros where the host has none (real processors answer with another leaf's data).
    fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let [highest, ..] = (self.query)(leaf & 0x8000_0000, 0);
        if leaf <= highest { (self.query)(leaf, subleaf) } else { [0; 4] }
    }

    /// The host's vendor.
    pub fn vendor(&self) -> Vendor {
        let [_, b, c, d] = self.leaf(0, 0);
        let mut name = [0; 12];
        for (to, from) in name.chunks_exact_mut(4).zip([b, d, c]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        Vendor::of(name)
    }

    /// Family, model and stepping.
    pub fn signature(&self) -> Signature {
        Signature(self.leaf(1, 0)[0])
    }

    /// The width of a physical address (36 where CPUID does not say, 32 to 52 where it does: SDM vol. 3, 4.1.4).
    pub fn phys_bits(&self) -> u8 {
        match bits::low8(self.leaf(0x8000_0008, 0)[0].into()) {
            0 => 36,
            n => n.clamp(32, 52),
        }
    }

    /// The features of the table that the host has and its operating system lets programs use.
    pub fn features(&self) -> FeatureSet {
        let has = |f: &Feature| {
            let p = f.position();
            let [a, b, c, d] = self.leaf(p.leaf, p.subleaf);
            let word = match p.register {
                Register::Eax => a,
                Register::Ebx => b,
                Register::Ecx => c,
                Register::Edx => d,
            };
            word >> p.bit & 1 != 0
        };
        let mut set: FeatureSet = Feature::all().filter(has).collect();
        let avx_state = xcr0::SSE | xcr0::AVX;
        if self.xcr0 & avx_state != avx_state {
            set.remove_with_dependents(Feature::Avx);
        }
        set
    }

    /// What can be offered here: all that engines do themselves, and what they can have the host do.
    fn offerable(&self) -> FeatureSet {
        let host = self.features();
        let mut set: FeatureSet = Feature::all().collect();
        for f in Feature::all() {
            if f.executor() != Executor::Engine && !host.has(f) {
                set.remove_with_dependents(f);
            }
        }
        set
    }
}

impl core::fmt::Debug for HostCpuid<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "HostCpuid({:?}, {})", self.signature(), self.features())
    }
}

/// Family, model and stepping, as EAX of leaf 1 has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature(pub u32);

impl Signature {
    const fn named(vendor: Vendor, base: BaseModel) -> Self {
        Self(match (vendor, base) {
            (Vendor::Amd, _) => 0x00a0_0f11,
            (_, BaseModel::V2) => 0x0002_06c1,
            _ => 0x0003_06c4,
        })
    }
}

/// A processor that can be offered on the host it was resolved for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    base: BaseModel,
    features: FeatureSet,
    vendor: Vendor,
    signature: Signature,
    phys_bits: u8,
}

/// Why a processor cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// The model is more than the host has.
    #[error(
        "this host's processor lacks {missing}, which CPU model {model} has; choose a lower model or remove them"
    )]
    HostLacks {
        /// The model's name.
        model: &'static str,
        /// What is missing.
        missing: FeatureSet,
    },
    /// A feature that was added is more than the host has.
    #[error("CPU feature '{feature}' cannot be offered: this host's processor lacks {missing}")]
    Unavailable {
        /// What was added.
        feature: &'static str,
        /// What it needs and the host lacks (itself, mostly).
        missing: FeatureSet,
    },
    /// A feature that was added needs one that was removed.
    #[error("CPU feature '{feature}' cannot be offered without '{removed}', which is removed")]
    Contradiction {
        /// What was added.
        feature: &'static str,
        /// What was removed.
        removed: &'static str,
    },
}

impl CpuModel {
    /// The processor that `request` means on `host`.
    ///
    /// # Errors
    /// If the host cannot carry it, or the request contradicts itself.
    pub fn resolve(request: &CpuRequest, host: &HostCpuid<'_>) -> Result<Self, CpuModelError> {
        let base = request.base;
        let offerable = host.offerable();
        let mut features = match base {
            BaseModel::Max | BaseModel::Host => {
                offerable.iter().filter(|f| f.models() != Models::Asked).collect()
            }
            _ => named_features(base),
        };
        for &feature in &request.add {
            let mut brought = FeatureSet::EMPTY;
            brought.insert_with_needs(feature);
            let missing = brought.without(offerable);
            if !missing.is_empty() {
                return Err(CpuModelError::Unavailable { feature: feature.name(), missing });
            }
            features.insert_with_needs(feature);
        }
        for &removed in &request.remove {
            features.remove_with_dependents(removed);
            if let Some(lost) = request.add.iter().find(|&&f| !features.has(f)) {
                return Err(CpuModelError::Contradiction { feature: lost.name(), removed: removed.name() });
            }
        }
        for f in Feature::all().filter(|f| f.executor() == Executor::Statement && offerable.has(*f)) {
            features.insert(f);
        }
        let missing = features.without(offerable);
        if !missing.is_empty() {
            return Err(CpuModelError::HostLacks { model: base.name(), missing });
        }
        let host_vendor = host.vendor();
        let vendor = request.vendor.unwrap_or(host_vendor);
        let signature = match base {
            BaseModel::Host if vendor == host_vendor => host.signature(),
            _ => Signature::named(vendor, base),
        };
        Ok(Self { base, features, vendor, signature, phys_bits: host.phys_bits().min(MAX_PHYS_BITS) })
    }

    /// The model it was resolved from.
    pub const fn base(&self) -> BaseModel {
        self.base
    }

    /// Its features.
    pub const fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// The vendor that CPUID names.
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Family, model and stepping.
    pub const fn signature(&self) -> Signature {
        self.signature
    }

    /// The width of a physical address.
    pub const fn phys_bits(&self) -> u8 {
        self.phys_bits
    }
}

/// The features of a named model, whatever the host.
fn named_features(base: BaseModel) -> FeatureSet {
    let v3 = base != BaseModel::V2;
    Feature::all()
        .filter(|f| f.executor() != Executor::Statement)
        .filter(|f| match f.models() {
            Models::V1 | Models::V2 | Models::Every => true,
            Models::V3 => v3,
            Models::Host | Models::Asked => false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with the given table features, and an operating system that enabled what `xcr0` says.
    fn query(features: FeatureSet, vendor: [u8; 12], phys: u32) -> impl Fn(u32, u32) -> [u32; 4] {
        move |leaf, sub| {
            let word = |r| features.word(leaf, sub, r);
            let mut out = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx].map(word);
            let ascii =
                |i: usize| u32::from_le_bytes([vendor[i], vendor[i + 1], vendor[i + 2], vendor[i + 3]]);
            match leaf {
                0 => out = [0x16, ascii(0), ascii(8), ascii(4)],
                1 => out[0] = 0xc06f2,
                0x8000_0000 => out[0] = 0x8000_0008,
                0x8000_0008 => out[0] = phys,
                _ => {}
            }
            out
        }
    }

    fn resolve_on(features: FeatureSet, xcr0: u64, request: &str) -> Result<CpuModel, CpuModelError> {
        let q = query(features, *b"GenuineIntel", 48);
        CpuModel::resolve(&request.parse().unwrap(), &HostCpuid::new(&q, xcr0))
    }

    fn everything() -> FeatureSet {
        Feature::all().collect()
    }

    /// psABI, table 3.1 "Micro-Architecture Levels" (OSFXSR, SCE and OSXSAVE as the features they stand for).
    #[test]
    fn levels_are_the_abi_s() {
        let level = |m: Models| -> Vec<&str> {
            let mut v: Vec<_> = Feature::all().filter(|f| f.models() == m).map(Feature::name).collect();
            v.sort_unstable();
            v
        };
        // `lm` is no line of the ABI's table but what x86-64 means.
        assert_eq!(level(Models::V1), ["cmov", "cx8", "fpu", "fxsr", "lm", "mmx", "sse", "sse2", "syscall"]);
        assert_eq!(level(Models::V2), ["cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"]);
        assert_eq!(level(Models::V3), ["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"]);
        assert!(named_features(BaseModel::V3).has(Feature::Xsave));
    }

    #[test]
    fn named_models_do_not_depend_on_the_host() {
        let rich = resolve_on(everything(), 7, "v3").unwrap();
        let bare: FeatureSet =
            named_features(BaseModel::V3).iter().filter(|f| f.executor() == Executor::Host).collect();
        let poor = resolve_on(bare, 7, "v3").unwrap();
        let mut statements = rich.features().without(*poor.features()).iter();
        assert!(statements.all(|f| f.executor() == Executor::Statement));
        assert_eq!(rich.signature(), poor.signature());
        assert!(poor.features().has(Feature::Pcid) && !rich.features().has(Feature::Aes));
        assert_eq!(rich.phys_bits(), 46);
    }

    #[test]
    fn the_default_is_what_the_host_has() {
        let default = |features, xcr0| {
            let q = query(features, *b"GenuineIntel", 39);
            CpuModel::resolve(&CpuRequest::default(), &HostCpuid::new(&q, xcr0)).unwrap()
        };
        let model = default(everything(), 7);
        assert!(model.base() == BaseModel::Max && model.features().has(Feature::Aes));
        let without = default(everything(), 3);
        assert!(!without.features().has(Feature::Avx), "the host's system has not enabled it");
        let named = "v3".parse().unwrap();
        let q = query(everything(), *b"GenuineIntel", 39);
        let missing = CpuModel::resolve(&named, &HostCpuid::new(&q, 3)).unwrap_err();
        assert!(matches!(missing, CpuModelError::HostLacks { model: "v3", .. }));
    }

    #[test]
    fn vector_features_are_bounded_by_the_host_and_others_not() {
        let mut host = everything();
        for f in [Feature::Aes, Feature::Umip, Feature::Pdpe1gb, Feature::Adx] {
            host.remove(f);
        }
        let m = resolve_on(host, 7, "host").unwrap();
        assert!(!m.features().has(Feature::Aes) && !m.features().has(Feature::Monitor));
        assert!(m.features().has(Feature::Umip) && m.features().has(Feature::Adx));
        assert_eq!(m.signature(), Signature(0xc06f2));
        let says = resolve_on(host, 7, "v3,+aes").unwrap_err().to_string();
        assert_eq!(says, "CPU feature 'aes' cannot be offered: this host's processor lacks aes");
        let says = resolve_on(host, 3, "v2,+fma").unwrap_err().to_string();
        assert_eq!(says, "CPU feature 'fma' cannot be offered: this host's processor lacks fma, avx");
    }

    #[test]
    fn adding_brings_needs_and_removing_takes_dependents() {
        let m = resolve_on(everything(), 7, "v2,+fma").unwrap();
        assert!(m.features().has(Feature::Avx) && !m.features().has(Feature::Avx2));
        let m = resolve_on(everything(), 7, "v3,-avx").unwrap();
        assert!(!m.features().has(Feature::Avx2) && m.features().has(Feature::Bmi2));
        let says = resolve_on(everything(), 7, "v3,+aes,-sse2").unwrap_err().to_string();
        assert_eq!(says, "CPU feature 'aes' cannot be offered without 'sse2', which is removed");
        let m = resolve_on(everything(), 7, "v3,+monitor").unwrap();
        assert!(m.features().has(Feature::Monitor));
    }

    #[test]
    fn another_vendor_has_another_signature() {
        let m = resolve_on(everything(), 7, "host,vendor=amd").unwrap();
        assert_eq!((m.vendor(), m.signature()), (Vendor::Amd, Signature(0x00a0_0f11)));
        assert_eq!(resolve_on(everything(), 7, "v2").unwrap().vendor(), Vendor::Intel);
    }

    #[test]
    fn leaves_beyond_the_host_s_last_are_not_believed() {
        // An old processor answers an unknown leaf with its last one's data (SDM vol. 2A, CPUID).
        let q = |leaf: u32, _| if leaf == 0 { [1, 0, 0, 0] } else { [1, !0, !0, !0] };
        let host = HostCpuid::new(&q, 7);
        assert!(!host.features().has(Feature::Avx2) && host.features().has(Feature::Sse42));
        assert_eq!(host.phys_bits(), 36);
    }
}
