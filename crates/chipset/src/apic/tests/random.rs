//! Random guests: nothing panics, the summary word is never stale, and a machine restored in the middle goes on like
//! the one that was saved.

use super::saved::{SavedApic, SavedApics};
use super::*;
use bus::{Device, Lifecycle};
use proptest::prelude::*;
use state::{Record, StateError};

#[derive(Clone, Debug)]
enum Step {
    Read(u32, u64),
    Write(u32, u64, u32),
    ReadMsr(u32, u32),
    WriteMsr(u32, u32, u64),
    Base(u32, u8),
    Msi(u8, u32),
    Intr(bool),
    Tick(u64),
    Deliver(u32),
    Guest(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cpu = 0..3_u32;
    let register = 0..0x40_u64;
    // Values that look like LVT, ICR and count writes, and others.
    let value =
        prop_oneof![any::<u32>(), 0..0x1000_u32, (0..0x100_u32).prop_map(|v| v | 0x4000), Just(0x1ff)];
    let msr = prop_oneof![0x800..0x840_u32, Just(0x6e0), Just(0x1b), Just(0x4b56_4d04), any::<u32>()];
    let wide =
        prop_oneof![any::<u64>(), 0..0x1000_u64, 0x1000..0x1010_u64, Just(0x4041), Just(1 << 32 | 0x4541)];
    let step = prop_oneof![
        (cpu.clone(), 0..0x1000_u64).prop_map(|(c, o)| Step::Read(c, o)),
        (cpu.clone(), register, value.clone()).prop_map(|(c, r, v)| Step::Write(c, r << 4, v)),
        (cpu.clone(), msr.clone()).prop_map(|(c, m)| Step::ReadMsr(c, m)),
        (cpu.clone(), msr, wide).prop_map(|(c, m, v)| Step::WriteMsr(c, m, v)),
        (cpu.clone(), 0..4_u8).prop_map(|(c, m)| Step::Base(c, m)),
        (any::<u8>(), value).prop_map(|(d, v)| Step::Msi(d, v)),
        any::<bool>().prop_map(Step::Intr),
        (0..1_000_000_u64).prop_map(Step::Tick),
        cpu.prop_map(Step::Deliver),
        (0..16_u8).prop_map(Step::Guest),
    ];
    prop::collection::vec(step, 1..120)
}

/// Carries a step out; what the guest sees of it.
fn apply(b: &Bench, step: &Step) -> String {
    match *step {
        Step::Read(cpu, offset) => format!("{:x}", b.read(VcpuIndex(cpu), offset)),
        Step::Write(cpu, offset, value) => {
            b.write(VcpuIndex(cpu), offset, value);
            String::new()
        }
        Step::ReadMsr(cpu, msr) => format!("{:?}", b.fabric.read_msr(VcpuIndex(cpu), msr)),
        Step::WriteMsr(cpu, msr, value) => format!("{:?}", b.fabric.write_msr(VcpuIndex(cpu), msr, value)),
        Step::Base(cpu, mode) => {
            let base = APIC_BASE | u64::from(mode) << 10;
            format!("{:?}", b.fabric.write_msr(VcpuIndex(cpu), 0x1b, base))
        }
        Step::Msi(destination, data) => {
            b.fabric.msi(APIC_BASE | u64::from(destination) << 12, data);
            String::new()
        }
        Step::Intr(high) => {
            b.fabric.intr_line().set(high);
            String::new()
        }
        Step::Tick(ns) => {
            let now = b.clock.step(ns);
            ApicDevice::new(b.fabric.clone()).advance(now);
            format!("{:?}", b.alarms.iter().map(ManualClock::alarm).collect::<Vec<_>>())
        }
        Step::Deliver(cpu) => {
            let event = b.pending(cpu);
            match event {
                Some(PendingEvent::Interrupt) => {
                    format!("{:?}", b.fabric.acknowledge(VcpuIndex(cpu)).expect("what is pending is there"))
                }
                Some(other) => {
                    b.fabric.take(VcpuIndex(cpu), other);
                    format!("{other:?}")
                }
                None => {
                    assert_eq!(
                        b.fabric.acknowledge(VcpuIndex(cpu)),
                        None,
                        "what is not pending is not there"
                    );
                    String::new()
                }
            }
        }
        Step::Guest(at) => {
            b.memory.0.lock().unwrap()[usize::from(at)] &= !1;
            String::new()
        }
    }
}

proptest! {
    #[test]
    fn a_restored_machine_goes_on_alike(before in steps(), after in steps()) {
        let one = Bench::running(3);
        for step in &before {
            apply(&one, step);
        }
        let saved = ApicDevice::new(one.fabric.clone()).save();
        let two = Bench::cold(3);
        two.clock.step(bus::Clock::now(&one.clock).0);
        *two.memory.0.lock().unwrap() = *one.memory.0.lock().unwrap();
        ApicDevice::new(two.fabric.clone()).restore(&saved).unwrap();
        prop_assert_eq!(&ApicDevice::new(two.fabric.clone()).save(), &saved);
        for step in &after {
            prop_assert_eq!(apply(&one, step), apply(&two, step), "{:?}", step);
        }
        let (a, b) = (ApicDevice::new(one.fabric), ApicDevice::new(two.fabric));
        prop_assert_eq!(a.save(), b.save());
    }
}

/// A record that no machine of ours has written.
fn hostile() -> impl Strategy<Value = SavedApic> {
    let small = (any::<[u8; 4]>(), any::<[u32; 8]>(), any::<[u32; 6]>());
    let large = (any::<[u64; 12]>(), any::<[u64; 4]>(), any::<[bool; 5]>());
    (small, large).prop_map(|((bytes, words, lvt), (vectors, longs, flags))| SavedApic {
        mode: bytes[0] % 3,
        tpr: bytes[1],
        ldr: words[0],
        dfr: words[1],
        svr: words[2],
        esr: words[3],
        errors: words[4],
        icr: longs[0],
        lvt,
        irr: [vectors[0], vectors[1], vectors[2], vectors[3]],
        isr: [vectors[4], vectors[5], vectors[6], vectors[7]],
        tmr: [vectors[8], vectors[9], vectors[10], vectors[11]],
        divide: words[5],
        initial: if flags[0] { 0 } else { words[6] },
        due: flags[1].then_some(GuestTime(longs[1] >> (words[7] & 63))),
        tsc_deadline: longs[2],
        init: flags[2],
        startup: flags[3].then_some(bytes[2]),
        nmi: flags[4],
        waiting: bytes[3] & 1 != 0,
        pv_eoi_msr: longs[3] & 0xf | 0x1000,
        pv_eoi_offered: bytes[3] & 2 != 0,
    })
}

proptest! {
    #[test]
    fn a_hostile_record_does_no_harm(
        apics in prop::collection::vec(hostile(), 3),
        intr in any::<bool>(),
        after in steps(),
    ) {
        let bench = Bench::cold(3);
        let record = Record::encode(&SavedApics { apics, intr, turn: u32::MAX });
        ApicDevice::new(bench.fabric.clone()).restore(&record).unwrap();
        for step in &after {
            apply(&bench, step);
        }
    }
}

#[test]
fn a_record_of_another_machine_is_refused() {
    let saved = ApicDevice::new(Bench::cold(2).fabric).save();
    let error = ApicDevice::new(Bench::cold(1).fabric).restore(&saved).unwrap_err();
    assert!(matches!(error, StateError::Damaged { name: "local-apics", .. }), "{error}");
}
