//! Whole VMs with tiny guests: what a guest does to its machine, and what the world does to the VM.

mod common;

use std::time::Duration;

use common::*;
use iced_x86::code_asm::*;
use vm::{State, Stopped, VmError};

#[test]
fn hello_and_power_off() {
    let (vm, screen) = start(kernel(|a| {
        print(a, "hello\n")?;
        power_off(a)
    }));
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(screen.text(), "hello\n");
    assert_eq!(vm.state(), State::Stopped);
    let stats = vm.stats();
    assert!(stats.vcpus[0].common.instructions > Some(20) && stats.ram_bytes > 15 << 20, "{stats:?}");
    assert!(stats.ram_resident_bytes < 4 << 20, "RAM comes into being on first touch: {stats:?}");
}

#[test]
fn debug_exit_carries_a_value() {
    let (vm, _) = start(kernel(|a| {
        a.mov(eax, 0x1234_5678)?;
        debug_exit_eax(a)
    }));
    assert!(matches!(end(&vm), Stopped::DebugExit(0x1234_5678)));
}

/// Counts ten interrupts of the PIT in HLT.
fn ten_ticks(hz: u32) -> Vec<u8> {
    kernel(|a| {
        let (mut idle, mut main) = (a.create_label(), a.create_label());
        a.xor(ecx, ecx)?;
        // The handler's address is the return address.
        a.call(main)?;
        a.inc(ecx)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iretd()?;
        a.set_label(&mut main)?;
        a.pop(ebx)?;
        tables_and_pit(a, hz)?;
        a.sti()?;
        a.set_label(&mut idle)?;
        a.hlt()?;
        a.cmp(ecx, 10)?;
        a.jb(idle)?;
        a.mov(eax, ecx)?;
        debug_exit_eax(a)
    })
}

#[test]
fn a_timer_wakes_a_halted_guest() {
    let (vm, _) = start(ten_ticks(100));
    assert!(matches!(end(&vm), Stopped::DebugExit(10)));
    let ns = vm.stats().guest_time_ns;
    assert!(ns >= 90_000_000, "ten ticks at 100 Hz took {ns} ns");
}

#[test]
fn a_triple_fault_is_dumped() {
    let (vm, _) = start(kernel(|a| {
        a.mov(dword_ptr(STACK), 0)?;
        a.mov(word_ptr(STACK + 4), 0)?;
        a.lidt(ptr(STACK))?;
        a.push(0x0bad_cafe)?;
        a.mov(esi, 0x5eed)?;
        a.ud2()
    }));
    let Stopped::TripleFault(dump) = end(&vm) else { panic!("not a triple fault") };
    let text = dump.to_string();
    assert!(text.contains("32-bit protected mode") && text.contains("RSI=0000000000005eed"), "{text}");
    assert!(text.contains("ud2") && text.contains("0badcafe"), "{text}");
}

/// Says "r", then asks for a reset by writing `value` to `port`.
fn resetter(port: u32, value: u32) -> Vec<u8> {
    kernel(|a| {
        print(a, "r")?;
        a.mov(dx, port)?;
        a.mov(al, value)?;
        a.out(dx, al)?;
        hang(a)
    })
}

/// The reset register and the keyboard controller's pulse.
const RESETS: [(u32, u32); 2] = [(0xcf9, 6), (0x64, 0xfe)];

#[test]
fn a_reset_may_stop_the_vm() {
    for (port, value) in RESETS {
        let (vm, screen) = start(resetter(port, value));
        assert!(matches!(end(&vm), Stopped::Reset), "port {port:#x}");
        assert_eq!(screen.text(), "r");
    }
}

#[test]
fn a_reset_boots_again() {
    for (port, value) in RESETS {
        let (builder, screen) = builder(resetter(port, value));
        let vm = builder.build().unwrap().start().unwrap();
        screen.wait_until(|bytes| bytes.len() >= 4);
        assert!(matches!(vm.stop(), Stopped::Killed));
        assert!(vm.stats().resets >= 3);
        assert!(screen.bytes().iter().all(|byte| *byte == b'r'));
    }
}

/// Says ">", then sends back every byte until 'q', which powers off.
fn echo() -> Vec<u8> {
    kernel(|a| {
        let (mut again, mut quit) = (a.create_label(), a.create_label());
        // Enable the FIFOs.
        a.mov(dx, 0x3fa)?;
        a.mov(al, 1)?;
        a.out(dx, al)?;
        print(a, ">")?;
        a.set_label(&mut again)?;
        get_al(a)?;
        a.cmp(al, u32::from(b'q'))?;
        a.je(quit)?;
        put_al(a)?;
        a.jmp(again)?;
        a.set_label(&mut quit)?;
        power_off(a)
    })
}

#[test]
fn input_is_never_lost() {
    let (vm, screen) = start(echo());
    screen.wait_until(|bytes| bytes == b">");
    let text: Vec<u8> = (0..150_000u32).map(|n| b'a' + (n.wrapping_mul(2_654_435_761) >> 28) as u8).collect();
    let text: Vec<u8> = text.into_iter().filter(|byte| *byte != b'q').collect();
    let input = vm.serial_input(0).unwrap();
    for piece in text.chunks(7777) {
        assert!(input.send(piece));
    }
    assert!(input.send(b"q"));
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert!(screen.bytes()[1..] == text, "{} of {} bytes came back", screen.bytes().len(), text.len());
    assert!(!input.send(b"too late"));
    assert!(vm.serial_input(1).is_none() && vm.serial_input(9).is_none());
}

#[test]
fn a_paused_vm_stands_still() {
    let (vm, screen) = start(echo());
    let input = vm.serial_input(0).unwrap();
    screen.wait_until(|bytes| bytes == b">");
    assert!(input.send(b"x"));
    screen.wait_until(|bytes| bytes == b">x");
    vm.pause().unwrap();
    vm.pause().unwrap();
    assert_eq!(vm.state(), State::Paused);
    let before = vm.stats();
    assert!(input.send(b"yq"));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(vm.stats(), before, "neither time nor instructions pass");
    assert_eq!(screen.text(), ">x");
    vm.resume().unwrap();
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(screen.text(), ">xy");
    assert!(matches!(vm.pause(), Err(VmError::Stopped)));
}

#[test]
fn the_tsc_leaves_a_pause_out() {
    // A guest that says "." for each turn of a loop, and leaves if the TSC jumps by more than half a second. It looks at
    // the upper half only: ticks of 2^26, some 30 ms.
    let half_second = u32::try_from((host::time::tsc_khz() * 500) >> 26).unwrap();
    let (vm, screen) = start(kernel(|a| {
        let mut again = a.create_label();
        let time_in_ebx = |a: &mut CodeAssembler| {
            a.rdtsc()?;
            a.shrd(eax, edx, 26)?;
            a.mov(ebx, eax)
        };
        time_in_ebx(a)?;
        a.set_label(&mut again)?;
        a.mov(esi, ebx)?;
        a.mov(al, u32::from(b'.'))?;
        put_al(a)?;
        time_in_ebx(a)?;
        a.mov(eax, ebx)?;
        a.sub(eax, esi)?;
        a.cmp(eax, half_second)?;
        a.jbe(again)?;
        debug_exit_eax(a)
    }));
    screen.wait_until(|bytes| !bytes.is_empty());
    vm.pause().unwrap();
    let said = screen.bytes().len();
    std::thread::sleep(Duration::from_millis(600));
    vm.resume().unwrap();
    screen.wait_until(|bytes| bytes.len() > said + 100);
    assert!(matches!(vm.stop(), Stopped::Killed));
}

#[test]
fn any_guest_can_be_stopped() {
    let spin = kernel(|a| {
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.jmp(forever)
    });
    for image in [spin, kernel(hang)] {
        let (vm, _) = start(image.clone());
        std::thread::sleep(Duration::from_millis(10));
        assert!(vm.wait_timeout(Duration::ZERO).is_none());
        assert!(matches!(vm.stop(), Stopped::Killed));
        assert!(matches!(vm.stop(), Stopped::Killed), "twice is once");
        let (vm, _) = start(image);
        drop(vm);
    }
}

#[test]
fn the_power_button_reaches_the_guest() {
    let (vm, screen) = start(kernel(|a| {
        let mut wait = a.create_label();
        print(a, "ready")?;
        // PM1_STS.PWRBTN_STS (ACPI 6.5, 4.8.3.1.1).
        a.mov(dx, 0x600)?;
        a.set_label(&mut wait)?;
        a.in_(ax, dx)?;
        a.test(ax, 0x100)?;
        a.jz(wait)?;
        power_off(a)
    }));
    screen.wait_until(|bytes| bytes == b"ready");
    vm.press_power_button();
    assert!(matches!(end(&vm), Stopped::PowerOff));
}

#[test]
fn a_saved_vm_goes_on_elsewhere() {
    let image = kernel(|a| {
        // Something to remember: in a register, in memory, and in a device (COM1's scratch register).
        a.mov(esi, 0x11)?;
        a.mov(byte_ptr(0x20_0000), 0x22)?;
        a.mov(dx, 0x3ff)?;
        a.mov(al, 0x33)?;
        a.out(dx, al)?;
        print(a, "saved")?;
        get_al(a)?;
        a.movzx(ebx, al)?;
        a.mov(dx, 0x3ff)?;
        a.in_(al, dx)?;
        a.movzx(eax, al)?;
        a.shl(ebx, 24)?;
        a.or(eax, ebx)?;
        a.mov(bl, byte_ptr(0x20_0000))?;
        a.mov(ah, bl)?;
        a.shl(esi, 16)?;
        a.or(eax, esi)?;
        debug_exit_eax(a)
    });
    let (vm, screen) = start(image.clone());
    screen.wait_until(|bytes| bytes == b"saved");
    assert!(matches!(vm.save(), Err(VmError::NotPaused)));
    vm.pause().unwrap();
    let records = vm.save().unwrap();
    assert_eq!(vm.save().unwrap(), records, "saving changes nothing");
    let time = vm.stats().guest_time_ns;
    vm.stop();

    let (builder, screen) = builder(image);
    let vm = builder.restore(&records).unwrap().start().unwrap();
    assert!(vm.stats().guest_time_ns >= time);
    assert!(vm.serial_input(0).unwrap().send(&[0x44]));
    assert!(matches!(end(&vm), Stopped::DebugExit(0x4411_2233)));
    assert_eq!(screen.text(), "");
}

/// The signals that Linux has blocked for this process's threads of this name, signal 1 in bit 0.
fn blocked_signals(name: &str) -> Vec<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let named = tasks
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let mask = |task: std::path::PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    named.filter_map(mask).collect()
}

#[test]
fn no_signal_from_elsewhere_reaches_a_vcpu() {
    let (vm, screen) = start(kernel(|a| {
        print(a, "here")?;
        hang(a)
    }));
    screen.wait_until(|bytes| bytes == b"here");
    let masks = blocked_signals("vcpu0");
    assert!(!masks.is_empty());
    for mask in masks {
        // HUP, INT, QUIT, USR1, ALRM, TERM, CHLD, PROF, WINCH; but not ILL, BUS, FPE, SEGV, which code raises.
        for signal in [1, 2, 3, 10, 14, 15, 17, 27, 28] {
            assert!(mask >> (signal - 1) & 1 == 1, "signal {signal} in {mask:#x}");
        }
        for signal in [4, 7, 8, 11] {
            assert!(mask >> (signal - 1) & 1 == 0, "signal {signal} in {mask:#x}");
        }
    }
    vm.stop();
}
