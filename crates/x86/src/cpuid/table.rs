//! What the CPUID instruction answers: a model, in a machine with so many processors and such a clock.
//!
//! Feature bits come from the model's set; everything else (caches, topology, sizes, frequencies) is computed here
//! leaf by leaf, from SDM vol. 2A "CPUID" and APM vol. 3 appendix E. Answers depend on the caller only through
//! [`Dynamic`]. A leaf that does not exist answers as the vendor's processors do: Intel's with the data of the
//! highest basic leaf, AMD's with zeros.

use super::feature::{Feature, FeatureSet, Register};
use super::model::CpuModel;
use super::request::Vendor;
use crate::bits::{index, low8};
use crate::control::xcr0;

const HIGHEST_BASIC: u32 = 0x16;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
/// The same for AMD's.
const HIGHEST_EXTENDED_AMD: u32 = 0x8000_0021;
/// The leaves that a hypervisor may define (SDM vol. 2A: 40000000H to 4FFFFFFFH are never a processor's).
const HYPERVISOR: core::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
/// The last of KVM's leaves: frequencies.
const HIGHEST_KVM: u32 = 0x4000_0010;

/// The local APIC timer's input clock: one tick is a nanosecond.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// KVM's paravirtual features (Linux, `Documentation/virt/kvm/x86/cpuid.rst`).
mod kvm {
    pub(super) const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
    const NOP_IO_DELAY: u32 = 1 << 1;
    const CLOCKSOURCE2: u32 = 1 << 3;
    const STEAL_TIME: u32 = 1 << 5;
    const PV_EOI: u32 = 1 << 6;
    const PV_UNHALT: u32 = 1 << 7;
    const PV_TLB_FLUSH: u32 = 1 << 9;
    const CLOCKSOURCE_STABLE: u32 = 1 << 24;
    pub(super) const FEATURES: u32 =
        NOP_IO_DELAY | CLOCKSOURCE2 | STEAL_TIME | PV_EOI | PV_UNHALT | PV_TLB_FLUSH | CLOCKSOURCE_STABLE;
}

/// XSAVE area: legacy region and header, then the upper halves of the YMM registers (SDM vol. 1, 13.4).
const XSAVE_LEGACY: u32 = 512 + 64;
const XSAVE_AVX: u32 = 256;

/// A cache level of the machine that guests are told of. libc chooses its copying methods by the sizes; with these
/// it uses REP MOVSB, which an engine does in bulk, up to several megabytes.
struct Cache {
    level: u32,
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    ways: u32,
    sets: u32,
    shared: bool,
}

impl Cache {
    const fn kib(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }
}

const LINE: u32 = 64;
const L1D: Cache = Cache { level: 1, kind: 1, ways: 8, sets: 64, shared: false };
const L1I: Cache = Cache { level: 1, kind: 2, ways: 8, sets: 64, shared: false };
const L2: Cache = Cache { level: 2, kind: 3, ways: 16, sets: 1024, shared: false };
const L3: Cache = Cache { level: 3, kind: 3, ways: 16, sets: 32768, shared: true };

/// The state of the asking vCPU that shows in CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The (x2)APIC ID.
    pub apic_id: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// The CPUID of every vCPU of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidTable {
    model: CpuModel,
    vcpus: u32,
    tsc_khz: u32,
}

impl CpuidTable {
    /// The model in a machine with `vcpus` processors (one thread per core, one package) whose time stamp counter
    /// runs at `tsc_khz`.
    pub fn new(model: CpuModel, tsc_khz: u64, vcpus: u32) -> Self {
        let tsc_khz = u32::try_from(tsc_khz).unwrap_or(u32::MAX);
        Self { model, vcpus: vcpus.max(1), tsc_khz }
    }

    /// The features that exist.
    #[inline]
    pub const fn features(&self) -> &FeatureSet {
        self.model.features()
    }

    /// Whether a feature exists.
    #[inline(always)]
    pub const fn has(&self, feature: Feature) -> bool {
        self.model.features().has(feature)
    }

    /// The model.
    pub const fn model(&self) -> &CpuModel {
        &self.model
    }

    /// The vendor.
    pub const fn vendor(&self) -> Vendor {
        self.model.vendor()
    }

    /// The width of a physical address.
    pub const fn phys_bits(&self) -> u8 {
        self.model.phys_bits()
    }

    /// The time stamp counter's frequency.
    pub const fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// The XCR0 bits that can be set; zero without XSAVE.
    pub const fn xcr0_supported(&self) -> u64 {
        if self.has(Feature::Avx) {
            xcr0::X87 | xcr0::SSE | xcr0::AVX
        } else if self.has(Feature::Xsave) {
            xcr0::X87 | xcr0::SSE
        } else {
            0
        }
    }

    /// EAX, EBX, ECX and EDX for the inputs EAX and ECX.
    pub fn query(&self, leaf: u32, subleaf: u32, vcpu: Dynamic) -> [u32; 4] {
        let hypervisor = HYPERVISOR.contains(&leaf);
        if hypervisor && self.has(Feature::Hypervisor) {
            return self.kvm_leaf(leaf);
        }
        let exists = match leaf {
            0x8000_0000.. => leaf <= self.highest_extended(),
            _ => leaf <= HIGHEST_BASIC,
        };
        match (exists, self.vendor()) {
            (true, _) => self.leaf(leaf, subleaf, vcpu),
            (false, Vendor::Amd) => [0; 4],
            (false, _) => self.leaf(HIGHEST_BASIC, subleaf, vcpu),
        }
    }

    fn highest_extended(&self) -> u32 {
        if self.vendor() == Vendor::Amd { HIGHEST_EXTENDED_AMD } else { HIGHEST_EXTENDED }
    }

    fn leaf(&self, leaf: u32, subleaf: u32, vcpu: Dynamic) -> [u32; 4] {
        let amd = self.vendor() == Vendor::Amd;
        match leaf {
            0 => self.vendor_leaf(HIGHEST_BASIC),
            1 => self.leaf_1(vcpu),
            // One register's worth of descriptors: "see leaf 4", 64-byte prefetch, and a 64-entry data TLB.
            2 if !amd => [0x0003_ff01, 0xf0, 0, 0],
            4 if !amd => self.cache_leaf(subleaf),
            // Line sizes; ECX: extensions enumerated, interrupts break MWAIT; EDX: one C1 state.
            5 if self.has(Feature::Monitor) => [LINE, LINE, 3, 0x10],
            0xb => self.topology_leaf(subleaf, vcpu),
            0xd if self.has(Feature::Xsave) => self.xsave_leaf(subleaf, vcpu),
            0x15 => self.crystal_leaf(),
            0x16 => {
                let mhz = self.tsc_khz / 1000;
                [mhz, mhz, APIC_BUS_KHZ / 1000, 0]
            }
            0x8000_0000 => {
                let [_, b, c, d] = self.vendor_leaf(0);
                [
                    self.highest_extended(),
                    if amd { b } else { 0 },
                    if amd { c } else { 0 },
                    if amd { d } else { 0 },
                ]
            }
            0x8000_0001 => self.leaf_8000_0001(),
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf - 0x8000_0002),
            // APM vol. 3, E.4.4: size in KiB, ways, lines per tag, line size; reserved on Intel's.
            0x8000_0005 if amd => {
                let l1 = |c: &Cache| c.kib() << 24 | c.ways << 16 | 1 << 8 | LINE;
                [0, 0, l1(&L1D), l1(&L1I)]
            }
            // 16 ways are encoded as 8; AMD's EDX is the third level in units of 512 KiB.
            0x8000_0006 => {
                let l3 = if amd { (L3.kib() / 512) << 18 | 8 << 12 | 1 << 8 | LINE } else { 0 };
                [0, 0, L2.kib() << 16 | 8 << 12 | u32::from(amd) << 8 | LINE, l3]
            }
            0x8000_0008 => {
                let cores = if amd { self.id_bits().min(0xf) << 12 | (self.vcpus - 1).min(0xff) } else { 0 };
                [u32::from(self.phys_bits()) | 48 << 8, 0, cores, 0]
            }
            _ => self.feature_words(leaf, subleaf),
        }
    }

    /// A leaf that holds feature bits and nothing else (6, 7, 80000007H), or nothing at all.
    fn feature_words(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        // Only leaf 7 looks at the subleaf among these.
        let subleaf = if leaf == 7 { subleaf } else { 0 };
        [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx]
            .map(|r| self.features().word(leaf, subleaf, r))
    }

    fn vendor_leaf(&self, highest: u32) -> [u32; 4] {
        let name = self.vendor().name();
        let word = |i: usize| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]);
        [highest, word(0), word(8), word(4)]
    }

    fn leaf_1(&self, vcpu: Dynamic) -> [u32; 4] {
        const OSXSAVE: u32 = 1 << 27;
        const HTT: u32 = 1 << 28;
        let [_, _, mut ecx, mut edx] = self.feature_words(1, 0);
        if vcpu.osxsave && self.has(Feature::Xsave) {
            ecx |= OSXSAVE;
        }
        if self.vcpus > 1 {
            edx |= HTT;
        }
        let clflush = if self.has(Feature::Clflush) { LINE / 8 } else { 0 };
        let ebx = u32::from(low8(vcpu.apic_id.into())) << 24 | self.vcpus.min(0xff) << 16 | clflush << 8;
        [self.model.signature().0, ebx, ecx, edx]
    }

    fn leaf_8000_0001(&self) -> [u32; 4] {
        // AMD repeats these bits of leaf 1's EDX, and has CmpLegacy: the logical processors are cores.
        const REPEATED: u32 = 0x0183_f3ff;
        const CMP_LEGACY: u32 = 1 << 1;
        let [_, _, mut ecx, mut edx] = self.feature_words(0x8000_0001, 0);
        if self.vendor() != Vendor::Amd {
            return [0, 0, ecx, edx];
        }
        edx |= self.features().word(1, 0, Register::Edx) & REPEATED;
        if self.vcpus > 1 {
            ecx |= CMP_LEGACY;
        }
        [self.model.signature().0, 0, ecx, edx]
    }

    fn cache_leaf(&self, subleaf: u32) -> [u32; 4] {
        const SELF_INITIALISING: u32 = 1 << 8;
        let Some(cache) = [L1D, L1I, L2, L3].into_iter().nth(index(subleaf.into())) else { return [0; 4] };
        // APIC IDs, counted in powers of two: of the cores in the package, of the threads that share the cache.
        let ids = 1u32.checked_shl(self.id_bits()).unwrap_or(u32::MAX);
        let sharing = if cache.shared { ids.min(0x1000) } else { 1 };
        [
            (ids.min(0x40) - 1) << 26
                | (sharing - 1) << 14
                | SELF_INITIALISING
                | cache.level << 5
                | cache.kind,
            (cache.ways - 1) << 22 | (LINE - 1),
            cache.sets - 1,
            0,
        ]
    }

    /// The number of APIC ID bits that number the vCPUs.
    fn id_bits(&self) -> u32 {
        (self.vcpus - 1).checked_ilog2().map_or(0, |top| top + 1)
    }

    fn topology_leaf(&self, subleaf: u32, vcpu: Dynamic) -> [u32; 4] {
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let level = subleaf & 0xff;
        match level {
            0 => [0, 1, SMT, vcpu.apic_id],
            1 => [self.id_bits(), self.vcpus.min(0xffff), CORE | level, vcpu.apic_id],
            _ => [0, 0, level, vcpu.apic_id],
        }
    }

    fn xsave_leaf(&self, subleaf: u32, vcpu: Dynamic) -> [u32; 4] {
        let avx = self.has(Feature::Avx);
        // One extended component, directly behind the header: standard and compacted formats have the same sizes.
        let size = |avx: bool| if avx { XSAVE_LEGACY + XSAVE_AVX } else { XSAVE_LEGACY };
        let enabled = size(avx && vcpu.xcr0 & xcr0::AVX != 0);
        match subleaf {
            0 => [crate::bits::low32(self.xcr0_supported()), enabled, size(avx), 0],
            1 => {
                let compacted = if self.has(Feature::Xsavec) { enabled } else { 0 };
                [self.features().word(0xd, 1, Register::Eax), compacted, 0, 0]
            }
            2 if avx => [XSAVE_AVX, XSAVE_LEGACY, 0, 0],
            _ => [0; 4],
        }
    }

    /// TSC frequency = ECX × EBX / EAX. ECX must be the APIC timer's clock, since systems take it for that (SDM
    /// vol. 3, 11.5.4), and Linux computes the product in kilohertz in 32 bits, which bounds EBX: the ratio is the
    /// best one within the bound, a few parts in ten million off at most.
    fn crystal_leaf(&self) -> [u32; 4] {
        let (numerator, denominator) = best_ratio(self.tsc_khz, APIC_BUS_KHZ, u32::MAX / APIC_BUS_KHZ);
        [denominator, numerator, APIC_BUS_KHZ * 1000, 0]
    }

    fn brand_leaf(&self, part: u32) -> [u32; 4] {
        let mut text = [0u8; 48];
        let name = format!("Umbra virtual CPU ({})", self.model.base().name());
        text.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        let mut words = [0; 4];
        let bytes = text.chunks_exact(4).skip(index(u64::from(part)) * 4);
        for (word, chunk) in words.iter_mut().zip(bytes) {
            *word = chunk.iter().rev().fold(0, |w, &b| w << 8 | u32::from(b));
        }
        words
    }

    fn kvm_leaf(&self, leaf: u32) -> [u32; 4] {
        match leaf {
            0x4000_0000 => {
                let [b, c, d] = kvm::SIGNATURE;
                [HIGHEST_KVM, b, c, d]
            }
            0x4000_0001 => [kvm::FEATURES, 0, 0, 0],
            HIGHEST_KVM => [self.tsc_khz, APIC_BUS_KHZ, 0, 0],
            _ => [0; 4],
        }
    }
}

/// The continued fraction of `a / b` cut before its numerator exceeds `limit`.
fn best_ratio(a: u32, b: u32, limit: u32) -> (u32, u32) {
    let (mut a, mut b) = (u64::from(a), u64::from(b));
    let (mut last, mut now) = ((0u64, 1u64), (1u64, 0u64));
    while b != 0 {
        let (quotient, remainder) = (a / b, a % b);
        let next = (quotient * now.0 + last.0, quotient * now.1 + last.1);
        if next.0 > u64::from(limit) {
            break;
        }
        (last, now) = (now, next);
        (a, b) = (b, remainder);
    }
    (crate::bits::low32(now.0), crate::bits::low32(now.1))
}

#[cfg(test)]
mod tests;
