//! The table, leaf by leaf.

use super::*;
use crate::cpuid::{CpuRequest, HostCpuid};

fn table(request: &str, tsc_khz: u64, vcpus: u32) -> CpuidTable {
    // A host that has every bit there is.
    let query = |leaf: u32, _| match leaf {
        0 => [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        0x8000_0000 => [0x8000_0021, 0, 0, 0],
        0x8000_0008 => [0x3034, 0, 0, 0],
        _ => [!0; 4],
    };
    let request: CpuRequest = request.parse().unwrap();
    CpuidTable::new(CpuModel::resolve(&request, &HostCpuid::new(&query, 7)).unwrap(), tsc_khz, vcpus)
}

fn ask(t: &CpuidTable, leaf: u32, sub: u32) -> [u32; 4] {
    t.query(leaf, sub, Dynamic { apic_id: 2, osxsave: true, xcr0: 7 })
}

#[test]
fn identification() {
    let t = table("v3", 2_300_000, 4);
    assert_eq!(ask(&t, 0, 0), [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let [eax, ebx, ecx, edx] = ask(&t, 1, 0);
    assert_eq!((eax, ebx), (0x306c4, 2 << 24 | 4 << 16 | 8 << 8));
    assert_ne!(ecx & 1 << 31, 0, "hypervisor");
    assert_eq!(ecx >> 27 & 1, 1, "OSXSAVE follows CR4");
    assert_eq!(t.query(1, 0, Dynamic::default())[2] >> 27 & 1, 0);
    assert_eq!(edx >> 28 & 1, 1, "HTT with several processors");
    assert_eq!(ask(&table("v3", 1, 1), 1, 0)[3] >> 28 & 1, 0);
    let brand: Vec<u8> =
        (0x8000_0002..=0x8000_0004).flat_map(|l| ask(&t, l, 0)).flat_map(u32::to_le_bytes).collect();
    assert_eq!(String::from_utf8(brand).unwrap().trim_end_matches('\0'), "Umbra virtual CPU (v3)");
}

#[test]
fn feature_bits_are_exactly_the_model_s() {
    let (intel, amd) = (table("v3", 2_300_000, 1), table("v3,vendor=amd", 2_300_000, 1));
    for f in Feature::all() {
        let p = f.position();
        // Leaves of AMD's own.
        let t = if p.leaf > 0x8000_0008 { &amd } else { &intel };
        let [a, b, c, d] = ask(t, p.leaf, p.subleaf);
        let word = match p.register {
            Register::Eax => a,
            Register::Ebx => b,
            Register::Ecx => c,
            Register::Edx => d,
        };
        assert_eq!(word >> p.bit & 1 != 0, t.has(f), "{}", f.name());
    }
    assert_eq!(ask(&intel, 7, 1), [0; 4]);
}

#[test]
fn missing_leaves_answer_as_the_vendor_s_processors_do() {
    let intel = table("v3", 2_300_000, 1);
    let highest = ask(&intel, 0x16, 0);
    for leaf in [0x17, 0x1234, 0x7fff_ffff, 0x8000_0009, !0] {
        assert_eq!(ask(&intel, leaf, 0), highest, "{leaf:#x}");
    }
    assert_eq!(ask(&intel, 3, 0), [0; 4]);
    let amd = table("v3,vendor=amd", 2_300_000, 1);
    assert_eq!(ask(&amd, 0x17, 0), [0; 4]);
    assert_eq!(ask(&amd, 0x8000_0009, 0), [0; 4]);
}

#[test]
fn xsave_area() {
    let t = table("v3", 2_300_000, 1);
    assert_eq!(ask(&t, 0xd, 0), [7, 832, 832, 0]);
    let sse_only = Dynamic { xcr0: 3, ..Dynamic::default() };
    assert_eq!(t.query(0xd, 0, sse_only), [7, 576, 832, 0]);
    assert_eq!(t.query(0xd, 1, sse_only), [7, 576, 0, 0], "XSAVEOPT, XSAVEC, XGETBV1; no XSAVES");
    assert_eq!(ask(&t, 0xd, 2), [256, 576, 0, 0]);
    assert_eq!(ask(&t, 0xd, 3), [0; 4]);
    let v2 = table("v2", 2_300_000, 1);
    assert_eq!((ask(&v2, 0xd, 0), v2.xcr0_supported()), ([3, 576, 576, 0], 3));
    assert_eq!(ask(&v2, 0xd, 2), [0; 4]);
    let none = table("v2,-xsave", 2_300_000, 1);
    assert_eq!((ask(&none, 0xd, 0), ask(&none, 0xd, 1), none.xcr0_supported()), ([0; 4], [0; 4], 0));
    assert_eq!(ask(&none, 1, 0)[2] >> 27 & 1, 0, "no OSXSAVE without XSAVE");
}

#[test]
fn topology_has_one_thread_per_core() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8), (256, 8), (257, 9)] {
        let t = table("v3", 2_300_000, vcpus);
        assert_eq!(ask(&t, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(ask(&t, 0xb, 1), [bits, vcpus, 0x201, 2]);
        assert_eq!(ask(&t, 0xb, 2), [0, 0, 2, 2]);
    }
}

#[test]
fn caches_are_consistent() {
    let t = table("v3", 2_300_000, 4);
    let size = |sub| {
        let [_, ebx, ecx, _] = ask(&t, 4, sub);
        ((ebx >> 22) + 1) * ((ebx & 0xfff) + 1) * (ecx + 1)
    };
    assert_eq!([size(0), size(1), size(2), size(3)], [32 << 10, 32 << 10, 1 << 20, 32 << 20]);
    assert_eq!(ask(&t, 4, 3)[0] >> 14 & 0xfff, 3, "the last level is shared by four");
    assert_eq!(ask(&t, 4, 4), [0; 4]);
    let amd = table("v3,vendor=amd", 2_300_000, 4);
    assert_eq!(ask(&amd, 4, 0), [0; 4]);
    assert_eq!(ask(&amd, 0x8000_0005, 0)[2], 32 << 24 | 8 << 16 | 1 << 8 | 64);
    assert_eq!(ask(&amd, 0x8000_0006, 0)[2] >> 16, 1024);
}

#[test]
fn frequencies_need_no_calibration() {
    for khz in [1_000_000, 1_999_999, 2_299_998, 2_300_000, 3_187_201, 4_294_967, 5_700_123] {
        let t = table("v3", khz, 1);
        let [den, num, crystal, _] = ask(&t, 0x15, 0);
        assert_eq!(crystal, 1_000_000_000);
        // As Linux does it, in 32 bits; above 4.29 GHz its product cannot be had exactly.
        if khz <= 4_294_967 {
            let linux = (crystal / 1000).checked_mul(num).unwrap() / den;
            assert!(u64::from(linux).abs_diff(khz) <= 1 + khz / 1_000_000, "{khz}: {linux}");
        }
        assert_eq!(ask(&t, 0x4000_0010, 0)[..2], [t.tsc_khz(), 1_000_000]);
        assert_eq!(u64::from(ask(&t, 0x16, 0)[0]), khz / 1000);
    }
}

#[test]
fn kvm_leaves_go_with_the_hypervisor_bit() {
    let t = table("v3", 2_300_000, 1);
    assert_eq!(ask(&t, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(ask(&t, 0x4000_0001, 0)[0], 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 24);
    assert_eq!(ask(&t, 0x4000_0100, 0), [0; 4]);
    let hidden = table("v3,-hypervisor", 2_300_000, 1);
    assert_eq!(ask(&hidden, 0x4000_0000, 0), ask(&hidden, 0x16, 0));
}

#[test]
fn monitor_is_there_when_asked_for() {
    assert_eq!(ask(&table("v3", 1, 1), 5, 0), [0; 4]);
    assert_eq!(ask(&table("v3,+monitor", 1, 1), 5, 0), [64, 64, 3, 0x10]);
}

#[test]
fn addresses_and_amd_s_repeated_bits() {
    let t = table("v3", 2_300_000, 4);
    assert_eq!(ask(&t, 0x8000_0008, 0), [46 | 48 << 8, 0, 0, 0]);
    let amd = table("v3,vendor=amd", 2_300_000, 4);
    assert_eq!(ask(&amd, 0x8000_0008, 0)[2], 2 << 12 | 3);
    let [_, _, ecx, edx] = ask(&amd, 0x8000_0001, 0);
    assert_eq!((ecx >> 1 & 1, edx & 1), (1, 1));
}

/// Found by fuzzing: neither an absurd number of vCPUs nor a host that tells nonsense of itself is the end.
#[test]
fn odd_machines_and_hosts_are_described_all_the_same() {
    for leaf in [1, 4, 0xb, 0x8000_0008] {
        for sub in 0..5 {
            ask(&table("v3", u64::MAX, u32::MAX), leaf, sub);
            ask(&table("v3,vendor=amd", 0, u32::MAX), leaf, sub);
        }
    }
    let narrow = |leaf: u32, _| if leaf == 0x8000_0008 { [5, 0, 0, 0] } else { [!0; 4] };
    assert_eq!(HostCpuid::new(&narrow, 7).phys_bits(), 32);
}
