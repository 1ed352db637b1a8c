//! IA32_APIC_BASE, the x2APIC's register map, reset.

use super::*;
use bus::{Device, Lifecycle};

const FAULT: MsrOutcome<()> = MsrOutcome::Fault;
const DONE: MsrOutcome<()> = MsrOutcome::Done(());
const DISABLED: u64 = 0xfee0_0000;
const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;

#[test]
fn transitions_of_the_mode() {
    let b = Bench::running(1);
    let set = |value| b.fabric.write_msr(BOOT, 0x1b, value);
    assert_eq!(b.fabric.read_msr(BOOT, 0x1b), MsrOutcome::Done(XAPIC | 0x100));
    assert_eq!(set(XAPIC), DONE);
    assert_eq!(b.fabric.read_msr(BOOT, 0x1b), MsrOutcome::Done(XAPIC | 0x100), "the boot flag stays");
    for illegal in [0xfee0_0400, 0xfed0_0800, XAPIC | 1, XAPIC | 1 << 9, XAPIC | 1 << 52] {
        assert_eq!(set(illegal), FAULT, "{illegal:#x}");
    }
    assert_eq!(set(X2APIC), DONE);
    assert_eq!(set(XAPIC), FAULT);
    assert_eq!(set(DISABLED), DONE);
    assert_eq!(set(X2APIC), FAULT);
    assert_eq!(set(XAPIC), DONE);
    assert_eq!(b.read(BOOT, SVR), 0xff, "disabling has reset it");
}

#[test]
fn each_mode_has_its_own_door() {
    let b = Bench::running(1);
    assert_eq!(b.fabric.read_msr(BOOT, 0x802), MsrOutcome::Fault);
    assert_eq!(b.fabric.write_msr(BOOT, 0x80b, 0), FAULT);
    b.write(BOOT, TPR, 0x30);
    b.x2apic(BOOT);
    assert_eq!(b.read(BOOT, TPR), u32::MAX);
    b.write(BOOT, TPR, 0x40);
    assert_eq!(b.fabric.read_msr(BOOT, 0x808), MsrOutcome::Done(0x30));
    assert_eq!(b.fabric.read_msr(BOOT, 0x10), MsrOutcome::Unknown);
    assert_eq!(b.fabric.read_msr(VcpuIndex(7), 0x808), MsrOutcome::Unknown);
}

#[test]
fn the_x2apic_register_map() {
    let b = Bench::running(1);
    b.x2apic(BOOT);
    let readable: Vec<u32> =
        (0x800..0x900).filter(|msr| b.fabric.read_msr(BOOT, *msr) != MsrOutcome::Fault).collect();
    let mut expected = vec![0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f];
    expected.extend(0x810..=0x828);
    expected.extend([0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x839, 0x83e]);
    assert_eq!(readable, expected);
    let writable: Vec<u32> = (0x800..0x900).filter(|msr| b.fabric.write_msr(BOOT, *msr, 0) == DONE).collect();
    let expected =
        [0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e, 0x83f];
    assert_eq!(writable, expected);
}

#[test]
fn reserved_bits_fault_in_x2apic_mode() {
    let b = Bench::running(1);
    b.x2apic(BOOT);
    let cases = [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x1000),
        (0x828, 1),
        (0x830, 0x2000),
        (0x830, 0x1_0000),
        (0x830, 0x10_0000),
        (0x832, 0x800),
        (0x835, 0x2_0000),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ];
    for (msr, value) in cases {
        assert_eq!(b.fabric.write_msr(BOOT, msr, value), FAULT, "{msr:#x} = {value:#x}");
    }
    assert_eq!(b.fabric.write_msr(BOOT, 0x830, 0xffff_ffff_0000_4041), DONE);
}

#[test]
fn accesses_of_other_widths() {
    let b = Bench::running(1);
    b.write(BOOT, SVR, 0x1ab);
    let mut byte = [0];
    b.fabric.mmio_read(BOOT, SVR + 1, &mut byte);
    assert_eq!(byte, [1]);
    let mut eight = [9; 8];
    b.fabric.mmio_read(BOOT, SVR, &mut eight);
    assert_eq!(eight, [0xab, 1, 0, 0, 0, 0, 0, 0]);
    b.fabric.mmio_write(BOOT, SVR, &[0]);
    b.fabric.mmio_write(BOOT, SVR + 4, &[0; 4]);
    assert_eq!(b.read(BOOT, SVR), 0x1ab);
    assert_eq!(b.read(BOOT, 0x30), 0x5_0014);
    b.fabric.mmio_write(BOOT, 0xfff, &[0; 8]);
    b.fabric.mmio_read(BOOT, 0xfff, &mut eight);
}

#[test]
fn power_on_is_virtual_wire_mode_on_the_boot_processor() {
    let b = Bench::running(2);
    b.x2apic(BOOT);
    b.x2apic(VcpuIndex(1));
    b.send(Destination::Broadcast, DeliveryMode::Nmi, 0);
    let mut device = ApicDevice::new(b.fabric.clone());
    device.reset();
    assert!(device.regions().is_empty());
    assert_eq!((b.pending(0), b.pending(1)), (None, None));
    assert_eq!((b.read(BOOT, SVR), b.read(BOOT, LVT_LINT0), b.read(BOOT, 0x360)), (0x1ff, 0x700, 0x400));
    let ap = VcpuIndex(1);
    assert_eq!((b.read(ap, SVR), b.read(ap, LVT_LINT0), b.read(ap, 0x20)), (0xff, 0x1_0000, 0x0100_0000));
}

#[test]
fn features_that_are_not_offered() {
    let (clock, memory) = (ManualClock::default(), Bytes::default());
    let fabric = InterruptFabric::new(FabricSetup {
        features: ApicFeatures { x2apic: false, tsc_deadline: false },
        clock: Arc::new(clock.clone()),
        alarms: vec![Arc::new(clock)],
        tsc: Arc::new(Tsc),
        memory: Arc::new(memory),
        wake: Box::new(|_| {}),
    });
    assert_eq!(fabric.write_msr(BOOT, 0x1b, X2APIC), FAULT);
    assert_eq!(fabric.write_msr(BOOT, 0x6e0, 1), MsrOutcome::Unknown);
    fabric.mmio_write(BOOT, LVT_TIMER, &0x4_00ec_u32.to_le_bytes());
    let mut data = [0; 4];
    fabric.mmio_read(BOOT, LVT_TIMER, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0xec);
}
