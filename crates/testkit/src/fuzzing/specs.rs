//! Everything that is typed by a person or told by a host: sizes, names, `--cpu`, and what CPUID makes of it.
//!
//! What was understood and is shown again must be understood the same way.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Mutex;

use arbitrary::{Result, Unstructured};
use spec::{ByteSize, CpuCount, DiskSpec, EngineChoice, MemorySize, Name, NetSpec, PortSpec, VolumeSpec};
use x86::cpuid::{CpuModel, CpuRequest, CpuidTable, Dynamic, Executor, Feature, HostCpuid};

use crate::oracle::random::Random;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn parse<T: FromStr + Display + PartialEq>(text: &str) -> Option<T>
where
    T::Err: Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            assert!(shown.parse::<T>().is_ok_and(|again| again == value), "{text:?} shown as {shown:?}");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let seed: u32 = u.arbitrary()?;
    let rest = u.take_rest();
    let text = String::from_utf8_lossy(rest);
    if let Some(size) = parse::<MemorySize>(&text) {
        assert!(size.bytes().is_multiple_of(4096) && size.bytes() <= MemorySize::MAX.bytes());
        firmware_map(size.bytes());
    }
    parse::<ByteSize>(&text);
    parse::<CpuCount>(&text);
    parse::<Name>(&text);
    parse::<EngineChoice>(&text);
    parse::<DiskSpec>(&text);
    parse::<NetSpec>(&text);
    parse::<PortSpec>(&text);
    parse::<VolumeSpec>(&text);
    let request = parse::<CpuRequest>(&text).unwrap_or_default();
    processor(&request, &mut Random::new(seed.into(), 4));
    Ok(())
}

/// The memory map of that much RAM ascends.
fn firmware_map(bytes: u64) {
    let regions = firmware::MemoryMap::new(bytes).regions();
    assert!(regions.is_sorted_by(|a, b| a.end <= b.start));
}

/// Resolves a request on this host, and on one that says anything of itself.
fn processor(request: &CpuRequest, random: &mut Random) {
    let answers: Vec<[u32; 4]> = (0..64).map(|_| [(); 4].map(|()| random.bits() as u32)).collect();
    let odd = |leaf: u32, subleaf: u32| match leaf {
        // The number of leaves is what makes the others be asked for.
        0 | 0x8000_0000 => [leaf | 0x20, answers[0][1], answers[0][2], answers[0][3]],
        _ => answers[(leaf.wrapping_mul(7).wrapping_add(subleaf) % 64) as usize],
    };
    let (khz, count) = (random.bits(), random.bits() as u32);
    for host in [
        HostCpuid::new(&this_host, host::cpu::xgetbv0()),
        HostCpuid::new(&odd, random.bits()),
        HostCpuid::new(&|_, _| [u32::MAX; 4], u64::MAX),
        HostCpuid::new(&|_, _| [0; 4], 0),
    ] {
        match CpuModel::resolve(request, &host) {
            Ok(model) => {
                let table = CpuidTable::new(model, khz, count);
                assert!((32..=52).contains(&table.phys_bits()), "{}", table.phys_bits());
                let native = |feature: &Feature| feature.executor() != Executor::Engine;
                let carried = |feature| !table.has(feature) || host.features().has(feature);
                assert!(Feature::all().filter(native).all(carried));
                query(&table, random);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// CPUID of this host, asked once: the instruction is slow in a virtual machine.
fn this_host(leaf: u32, subleaf: u32) -> [u32; 4] {
    static ANSWERS: Mutex<BTreeMap<(u32, u32), [u32; 4]>> = Mutex::new(BTreeMap::new());
    let mut answers = super::board::lock(&ANSWERS);
    *answers.entry((leaf, subleaf)).or_insert_with(|| host::cpu::cpuid(leaf, subleaf))
}

fn query(table: &CpuidTable, random: &mut Random) {
    let dynamic = Dynamic { apic_id: random.bits() as u32, osxsave: random.one_in(2), xcr0: random.bits() };
    for leaf in (0..0x30).chain(0x4000_0000..0x4000_0020).chain(0x8000_0000..0x8000_0030) {
        for subleaf in [0, 1, 2, 31, u32::MAX] {
            table.query(leaf, subleaf, dynamic);
        }
    }
    table.query(random.bits() as u32, random.bits() as u32, dynamic);
}
