//! Acceptance, priorities, ends, destinations.

use super::*;

#[test]
fn the_highest_class_above_the_processors_goes_first() {
    let b = Bench::running(1);
    assert_eq!(b.pending(0), None);
    for vector in [0x31, 0x45, 0x41] {
        b.fixed(BOOT, vector);
    }
    assert_eq!(b.woken(), [0], "one wake for what is pending already");
    assert_eq!(b.pending(0), Some(PendingEvent::Interrupt));
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x45));
    assert_eq!((b.read(BOOT, PPR), b.pending(0)), (0x40, None), "0x41 is of the same class");
    b.fixed(BOOT, 0x50);
    assert_eq!(b.woken(), [0]);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x50));
    assert_eq!(b.read(BOOT, ISR + 0x20), 1 << 5 | 1 << 16);
    b.write(BOOT, EOI, 0);
    b.write(BOOT, EOI, 0);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x41));
    b.write(BOOT, EOI, 0);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x31));
    assert_eq!(b.fabric.acknowledge(BOOT), None);
    b.write(BOOT, EOI, 0);
    b.write(BOOT, EOI, 0);
    assert_eq!(b.read(BOOT, PPR), 0);
}

#[test]
fn an_acknowledge_that_leaves_something_wakes_again() {
    let b = Bench::running(1);
    b.fixed(BOOT, 0x41);
    b.fixed(BOOT, 0x51);
    b.fixed(BOOT, 0x61);
    b.woken();
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x61));
    assert_eq!((b.woken(), b.pending(0)), (vec![], None));
    b.write(BOOT, EOI, 0);
    assert_eq!(b.woken(), [0], "the EOI lets the next one through");
    b.fabric.set_cr8(BOOT, 15);
    b.fabric.set_cr8(BOOT, 0);
    assert_eq!(b.woken(), [0]);
}

#[test]
fn task_priority_and_cr8_are_one() {
    let b = Bench::running(1);
    b.fabric.set_cr8(BOOT, 5);
    assert_eq!((b.read(BOOT, TPR), b.read(BOOT, PPR)), (0x50, 0x50));
    b.fixed(BOOT, 0x5f);
    assert_eq!((b.pending(0), b.fabric.acknowledge(BOOT)), (None, None));
    b.write(BOOT, TPR, 0x4f);
    assert_eq!((b.fabric.cr8(BOOT), b.pending(0)), (4, Some(PendingEvent::Interrupt)));
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x5f));
    assert_eq!(b.read(BOOT, PPR), 0x50);
}

#[test]
fn the_end_of_a_level_interrupt_is_announced() {
    let b = Bench::running(1);
    let level = Message {
        destination: Destination::Broadcast,
        mode: DeliveryMode::Fixed,
        vector: 0x61,
        trigger: Trigger::Level,
    };
    assert!(b.fabric.deliver(&level));
    assert_eq!((b.read(BOOT, IRR + 0x30), b.read(BOOT, TMR + 0x30)), (2, 2));
    b.fabric.acknowledge(BOOT);
    b.write(BOOT, EOI, 0);
    b.fixed(BOOT, 0x61);
    b.fabric.acknowledge(BOOT);
    b.write(BOOT, EOI, 0);
    assert_eq!(*b.behind.0.lock().unwrap(), [0x61], "the edge is not");
}

#[test]
fn destinations() {
    let b = Bench::running(4);
    let reach = |destination| {
        b.send(destination, DeliveryMode::Nmi, 0);
        let reached = b.reached(PendingEvent::Nmi);
        for vcpu in &reached {
            b.fabric.take(VcpuIndex(*vcpu), PendingEvent::Nmi);
        }
        reached
    };
    assert_eq!(reach(Destination::Physical(2)), [2]);
    assert_eq!(reach(Destination::Physical(9)), [0; 0]);
    assert_eq!(reach(Destination::Broadcast), [0, 1, 2, 3]);
    assert_eq!(reach(Destination::Logical(1)), [0; 0], "no logical IDs yet");
    for vcpu in 0..4 {
        b.write(VcpuIndex(vcpu), LDR, 0x0100_0000 << vcpu);
    }
    assert_eq!(reach(Destination::Logical(0b1010)), [1, 3]);
    for (vcpu, ldr) in [(0, 0x11), (1, 0x12), (2, 0x21), (3, 0x28)] {
        b.write(VcpuIndex(vcpu), DFR, 0x0fff_ffff);
        b.write(VcpuIndex(vcpu), LDR, ldr << 24);
    }
    assert_eq!(reach(Destination::Logical(0x13)), [0, 1]);
    assert_eq!(reach(Destination::Logical(0x29)), [2, 3]);
    for vcpu in 0..4 {
        b.x2apic(VcpuIndex(vcpu));
    }
    assert_eq!(reach(Destination::Logical(0b0110)), [1, 2]);
    assert_eq!(reach(Destination::Logical(0x1_0006)), [0; 0], "another cluster");
}

#[test]
fn a_17th_vcpu_is_in_the_second_cluster() {
    let b = Bench::running(18);
    for vcpu in b.fabric.vcpus() {
        b.x2apic(vcpu);
    }
    assert_eq!(b.fabric.read_msr(VcpuIndex(17), 0x80d), MsrOutcome::Done(0x1_0002));
    b.send(Destination::Logical(0x1_0003), DeliveryMode::Nmi, 0);
    assert_eq!(b.reached(PendingEvent::Nmi), [16, 17]);
}

#[test]
fn the_lowest_priority_is_chosen_and_equals_take_turns() {
    let b = Bench::running(3);
    b.fabric.set_cr8(VcpuIndex(1), 2);
    b.fabric.set_cr8(VcpuIndex(2), 2);
    let any = Destination::Broadcast;
    assert!(b.send(any, DeliveryMode::LowestPriority, 0x41));
    assert_eq!(b.reached(PendingEvent::Interrupt), [0]);
    b.fabric.acknowledge(BOOT);
    assert!(b.send(any, DeliveryMode::LowestPriority, 0x51));
    assert!(b.send(any, DeliveryMode::LowestPriority, 0x61));
    assert!(b.send(any, DeliveryMode::LowestPriority, 0x71));
    assert_eq!(b.reached(PendingEvent::Interrupt), [1, 2], "CPU 0 serves class 4");
    for vcpu in 0..3 {
        b.write(VcpuIndex(vcpu), SVR, 0xff);
    }
    assert!(!b.send(any, DeliveryMode::LowestPriority, 0x41), "nobody accepts");
}

#[test]
fn a_disabled_apic_takes_no_interrupts() {
    let b = Bench::running(1);
    b.fixed(BOOT, 0x41);
    b.write(BOOT, SVR, 0xff);
    assert!(!b.send(Destination::Physical(0), DeliveryMode::Fixed, 0x51));
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x41), "what is held stays");
    assert!(b.send(Destination::Physical(0), DeliveryMode::Nmi, 0));
    assert_eq!(b.pending(0), Some(PendingEvent::Nmi));
    assert_eq!(b.read(BOOT, LVT_ERROR) & 0x1_0000, 0x1_0000);
    b.write(BOOT, LVT_ERROR, 0x55);
    assert_eq!(b.read(BOOT, LVT_ERROR), 0x1_0055, "cannot be unmasked");
}

#[test]
fn illegal_vectors_are_errors_that_interrupt() {
    let b = Bench::running(2);
    b.write(BOOT, LVT_ERROR, 0xe5);
    assert!(!b.send(Destination::Physical(0), DeliveryMode::Fixed, 15));
    assert_eq!(b.read(BOOT, ESR), 0, "shown after a write");
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0xe5));
    b.write(BOOT, EOI, 0);
    b.write(BOOT, ICR_HIGH, 0x0100_0000);
    b.write(BOOT, ICR, 0x400f);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0xe5));
    b.write(BOOT, ESR, 0);
    assert_eq!(b.read(BOOT, ESR), 0x60);
    b.write(BOOT, 0x3f8 & !15, 0);
    b.write(BOOT, 0x30, 0);
    assert_eq!(b.read(BOOT, 0x40), 0);
    b.write(BOOT, ESR, 0);
    assert_eq!(b.read(BOOT, ESR), 0x80);
    b.write(BOOT, LVT_ERROR, 0x05);
    assert_eq!(b.read(BOOT, 0x40), 0);
    b.write(BOOT, ESR, 0);
    assert_eq!(b.read(BOOT, ESR), 0xc0, "the error entry's own vector is illegal");
}

#[test]
fn a_paravirtual_eoi_is_offered_and_taken_up() {
    let b = Bench::running(1);
    let word = || b.memory.0.lock().unwrap()[4];
    assert_eq!(b.fabric.write_msr(BOOT, 0x4b56_4d04, 0x2001), MsrOutcome::Fault, "no memory there");
    assert_eq!(b.fabric.write_msr(BOOT, 0x4b56_4d04, 0x1006), MsrOutcome::Fault, "reserved bit");
    b.wrmsr(BOOT, 0x4b56_4d04, 0x1005);
    b.fixed(BOOT, 0x41);
    b.fabric.acknowledge(BOOT);
    assert_eq!(word(), 1);
    b.memory.0.lock().unwrap()[4] = 0;
    assert_eq!(b.read(BOOT, ISR + 0x20), 0, "the guest has ended it");

    b.fixed(BOOT, 0x41);
    b.fabric.acknowledge(BOOT);
    b.woken();
    b.fixed(BOOT, 0x42);
    assert_eq!((b.woken(), word()), (vec![0], 1), "only the vCPU may settle");
    assert_eq!((b.pending(0), word()), (None, 0), "withdrawn: a real EOI must come");
    b.write(BOOT, EOI, 0);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x42));
    assert_eq!(word(), 1);
    b.fixed(BOOT, 0x43);
    b.memory.0.lock().unwrap()[4] = 0;
    assert_eq!(b.pending(0), Some(PendingEvent::Interrupt), "the EOI made room");
    assert_eq!((b.fabric.acknowledge(BOOT), word()), (Some(0x43), 1));
    b.write(BOOT, EOI, 0);
    assert_eq!(word(), 0, "an EOI by register voids the offer");
}

#[test]
fn level_and_nested_interrupts_are_not_offered() {
    let b = Bench::running(1);
    b.wrmsr(BOOT, 0x4b56_4d04, 0x1001);
    b.fabric.msi(0xfee0_0000, 0xc041);
    b.fabric.acknowledge(BOOT);
    assert_eq!(b.memory.0.lock().unwrap()[0], 0);
    b.fixed(BOOT, 0x51);
    b.fabric.acknowledge(BOOT);
    assert_eq!(b.memory.0.lock().unwrap()[0], 0);
}
