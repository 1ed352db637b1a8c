//! IPIs, INIT and start-up, ExtINT, the timer.

use super::*;

const INTERRUPT: Option<PendingEvent> = Some(PendingEvent::Interrupt);

#[test]
fn shorthands() {
    let b = Bench::running(3);
    let one = VcpuIndex(1);
    b.write(one, ICR, 0x4_4041);
    assert_eq!(b.reached(PendingEvent::Interrupt), [1]);
    b.write(one, ICR, 0xc_4041);
    assert_eq!(b.reached(PendingEvent::Interrupt), [0, 1, 2]);
    b.write(one, ICR, 0x8_4051);
    assert_eq!(b.reached(PendingEvent::Interrupt), [0, 1, 2]);
    assert_eq!(b.fabric.acknowledge(one), Some(0x51));
    b.write(one, ICR, 0xc_4400);
    assert_eq!(b.reached(PendingEvent::Nmi), [0, 2]);
}

#[test]
fn addressed_ipis_in_both_modes() {
    let b = Bench::running(3);
    b.write(BOOT, ICR_HIGH, 0x0200_0000);
    b.write(BOOT, ICR, 0x4041);
    assert_eq!(b.reached(PendingEvent::Interrupt), [2]);
    assert_eq!((b.read(BOOT, ICR), b.read(BOOT, ICR_HIGH)), (0x4041, 0x0200_0000));
    b.x2apic(BOOT);
    b.wrmsr(BOOT, 0x830, 0x0000_0001_0000_4041);
    assert_eq!(b.reached(PendingEvent::Interrupt), [1, 2]);
    b.wrmsr(BOOT, 0x83f, 0x77);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x77));
    b.wrmsr(BOOT, 0x830, 0xffff_ffff_0000_4400);
    assert_eq!(b.reached(PendingEvent::Nmi), [0, 1, 2]);
}

#[test]
fn processors_start_by_init_and_startup() {
    let b = Bench::cold(2);
    let ap = VcpuIndex(1);
    assert_eq!((b.pending(0), b.pending(1)), (None, None));
    b.send(Destination::Physical(1), DeliveryMode::Nmi, 0);
    assert_eq!(b.pending(1), None, "an NMI does not reach a waiting processor");
    b.write(BOOT, ICR_HIGH, 0x0100_0000);
    b.write(BOOT, ICR, 0x0000_c500);
    assert_eq!((b.pending(1), b.woken()), (Some(PendingEvent::Init), vec![1]));
    b.write(BOOT, ICR, 0x0000_8500);
    b.write(BOOT, ICR, 0x0000_4699);
    assert_eq!(b.pending(1), Some(PendingEvent::Init));
    b.fabric.take(ap, PendingEvent::Init);
    assert_eq!(b.pending(1), Some(PendingEvent::Startup(0x99)), "came before INIT was acted on");
    b.fabric.take(ap, PendingEvent::Startup(0x99));
    b.write(BOOT, ICR, 0x0000_4698);
    assert_eq!(b.pending(1), None, "a running processor ignores start-up");
    assert_eq!(b.read(ap, SVR), 0xff);
}

#[test]
fn init_resets_the_apic_but_not_its_mode() {
    let b = Bench::running(2);
    let ap = VcpuIndex(1);
    b.x2apic(ap);
    b.wrmsr(ap, 0x808, 0x20);
    b.fixed(ap, 0x41);
    b.send(Destination::Physical(1), DeliveryMode::Init, 0);
    b.fabric.take(ap, PendingEvent::Init);
    assert_eq!(b.pending(1), None);
    assert_eq!(b.fabric.read_msr(ap, 0x808), MsrOutcome::Done(0));
    assert_eq!(b.fabric.read_msr(ap, 0x1b), MsrOutcome::Done(0xfee0_0c00));
    b.send(Destination::Physical(0), DeliveryMode::Init, 0);
    b.fabric.take(BOOT, PendingEvent::Init);
    assert!(
        !b.send(Destination::Physical(0), DeliveryMode::Startup, 8),
        "the boot processor restarts by itself"
    );
}

#[test]
fn extint_comes_through_lint0() {
    let b = Bench::cold(2);
    let intr = b.fabric.intr_line();
    intr.set(true);
    assert_eq!((b.woken(), b.pending(0), b.pending(1)), (vec![0], INTERRUPT, None));
    b.fabric.set_cr8(BOOT, 15);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x30), "the task priority does not matter");
    b.write(BOOT, LVT_LINT0, 0x1_0700);
    assert_eq!(b.pending(0), None);
    b.woken();
    b.write(BOOT, LVT_LINT0, 0x700);
    assert_eq!((b.pending(0), b.woken()), (INTERRUPT, vec![0]));
    b.wrmsr(BOOT, 0x1b, 0xfee0_0000);
    assert_eq!(b.pending(0), INTERRUPT, "straight to the processor where the APIC is disabled");
    intr.set(false);
    assert_eq!(b.pending(0), None);
}

#[test]
fn lint0_as_an_ordinary_source_counts_edges() {
    let b = Bench::running(1);
    let intr = b.fabric.intr_line();
    b.write(BOOT, LVT_LINT0, 0x41);
    intr.set(true);
    intr.set(true);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0x41));
    b.write(BOOT, EOI, 0);
    assert_eq!(b.fabric.acknowledge(BOOT), None);
    b.write(BOOT, LVT_LINT0, 0x400);
    intr.pulse();
    assert_eq!(b.pending(0), None, "was high");
    intr.pulse();
    assert_eq!(b.pending(0), Some(PendingEvent::Nmi));
}

#[test]
fn the_timer_counts_and_interrupts() {
    let b = Bench::running(1);
    b.write(BOOT, DIVIDE, 0xb);
    b.write(BOOT, LVT_TIMER, 0x2_00ec);
    b.write(BOOT, INITIAL, 1_000_000);
    assert_eq!(b.alarms[0].alarm(), Some(GuestTime(1_000_000)));
    b.clock.step(400_000);
    assert_eq!(b.read(BOOT, CURRENT), 600_000);
    let now = b.clock.step(600_000);
    b.fabric.advance(BOOT, now);
    assert_eq!((b.fabric.acknowledge(BOOT), b.alarms[0].alarm()), (Some(0xec), Some(GuestTime(2_000_000))));
    b.write(BOOT, EOI, 0);
    b.clock.step(1_000_000);
    assert_eq!(b.read(BOOT, CURRENT), 1_000_000, "looking at it is enough");
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0xec));
    b.write(BOOT, INITIAL, 0);
    assert_eq!((b.alarms[0].alarm(), b.read(BOOT, CURRENT)), (None, 0));
}

#[test]
fn a_masked_timer_counts_in_silence() {
    let b = Bench::running(1);
    b.write(BOOT, LVT_TIMER, 0x1_00ec);
    b.write(BOOT, INITIAL, 1000);
    let now = b.clock.step(5000);
    b.fabric.advance(BOOT, now);
    assert_eq!((b.pending(0), b.read(BOOT, CURRENT)), (None, 0));
}

#[test]
fn tsc_deadlines() {
    let b = Bench::running(1);
    let deadline = |tsc| b.wrmsr(BOOT, 0x6e0, tsc);
    deadline(3000);
    assert_eq!(b.fabric.read_msr(BOOT, 0x6e0), MsrOutcome::Done(0), "ignored in other modes");
    b.write(BOOT, LVT_TIMER, 0x4_00ec);
    deadline(3001);
    assert_eq!(b.fabric.read_msr(BOOT, 0x6e0), MsrOutcome::Done(3001));
    assert_eq!(b.alarms[0].alarm(), Some(GuestTime(1001)));
    let now = b.clock.step(1001);
    b.fabric.advance(BOOT, now);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0xec));
    assert_eq!(b.fabric.read_msr(BOOT, 0x6e0), MsrOutcome::Done(0));
    b.write(BOOT, EOI, 0);
    deadline(1);
    assert_eq!(b.fabric.acknowledge(BOOT), Some(0xec), "a deadline in the past fires at once");
    deadline(1_000_000);
    deadline(0);
    assert_eq!(b.alarms[0].alarm(), None);
}

#[test]
fn an_alarm_that_came_early_is_set_again() {
    let b = Bench::running(1);
    b.write(BOOT, INITIAL, 1000);
    let alarm = b.alarms[0].clone();
    assert_eq!(alarm.alarm(), Some(GuestTime(2000)));
    Alarm::set(&alarm, None);
    b.fabric.advance(BOOT, GuestTime(1));
    assert_eq!(alarm.alarm(), Some(GuestTime(2000)));
}
