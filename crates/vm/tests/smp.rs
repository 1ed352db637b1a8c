//! Tiny guests with two CPUs: how the second one is started, and what it may do to the machine.

mod common;

use common::*;
use iced_x86::code_asm::*;
use spec::{CpuCount, EngineChoice};
use vm::{Automatic, BootImages, Builder, OnReset, Stopped};

/// The page at which the second CPU starts, and where its code goes.
const PAGE: u32 = 8;
/// A word that the second CPU counts in.
const COUNT: u32 = 0x9000;
/// The first local APIC's interrupt command register, and its upper half.
const ICR: u32 = 0xfee0_0300;
const ICR_TO: u32 = 0xfee0_0310;

/// Puts the second CPU's code, 16-bit and in real mode, where it starts.
fn place(
    a: &mut CodeAssembler,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut second = CodeAssembler::new(16)?;
    write(&mut second)?;
    let code = second.assemble(0)?;
    for (at, byte) in (PAGE << 12..).zip(code) {
        a.mov(byte_ptr(at), u32::from(byte))?;
    }
    Ok(())
}

/// INIT and a start-up IPI to the second CPU, with nothing between them (SDM vol. 3, 9.4.4.1).
fn start_second(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for command in [0x4500, 0x4600 | PAGE] {
        a.mov(dword_ptr(ICR_TO), 1 << 24)?;
        a.mov(dword_ptr(ICR), command)?;
    }
    Ok(())
}

/// A machine of two CPUs, about to be built.
fn two(engine: EngineChoice, kernel: Vec<u8>) -> (Builder, Screen) {
    let screen = Screen::default();
    let mut spec = spec();
    (spec.cpus, spec.engine) = (CpuCount::new(2).unwrap(), engine);
    let images = BootImages { kernel: kernel.into(), initrds: Vec::new() };
    (Builder::new(&spec, images).serial(0, Box::new(screen.clone())), screen)
}

fn engines() -> Vec<EngineChoice> {
    match vm::automatic() {
        Automatic::Bt => vec![EngineChoice::Interp, EngineChoice::Bt],
        Automatic::Interp(_) => vec![EngineChoice::Interp],
    }
}

/// Starts the second CPU so many times; each time it counts, and halts.
fn starter(times: u32) -> Vec<u8> {
    kernel(|a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        place(a, |a| {
            a.lock().inc(dword_ptr(COUNT))?;
            hang(a)
        })?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        start_second(a)?;
        a.inc(ebx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(COUNT), ebx)?;
        a.jne(wait)?;
        a.cmp(ebx, times)?;
        a.jb(again)?;
        a.mov(eax, ebx)?;
        debug_exit_eax(a)
    })
}

#[test]
fn no_start_is_lost() {
    for engine in engines() {
        let vm = two(engine, starter(3000)).0.build().unwrap().start().unwrap();
        assert!(matches!(end(&vm), Stopped::DebugExit(3000)), "{engine}");
    }
}

#[test]
fn a_triple_fault_is_dumped_whosever_it_is() {
    for engine in engines() {
        let guest = kernel(|a| {
            place(a, |a| {
                // An IDT without entries.
                a.lidt(ptr(COUNT))?;
                a.int3()
            })?;
            start_second(a)?;
            hang(a)
        });
        let (builder, _) = two(engine, guest);
        let vm = builder.on_reset(OnReset::Stop).build().unwrap().start().unwrap();
        let Stopped::TripleFault(dump) = end(&vm) else { panic!("{engine}: not a triple fault") };
        assert!(dump.to_string().starts_with("vCPU 1: real mode"), "{engine}: {dump}");
        assert_eq!(vm.stats().vcpus.len(), 2);
    }
}

#[test]
fn a_reset_by_the_second_cpu_boots_both_again() {
    for engine in engines() {
        let guest = kernel(|a| {
            place(a, |a| {
                print(a, "r")?;
                a.mov(dx, 0xcf9)?;
                a.mov(al, 6)?;
                a.out(dx, al)?;
                hang(a)
            })?;
            start_second(a)?;
            hang(a)
        });
        let (builder, screen) = two(engine, guest);
        let vm = builder.build().unwrap().start().unwrap();
        screen.wait_until(|bytes| bytes.len() >= 5);
        assert!(matches!(vm.stop(), Stopped::Killed));
        assert!(vm.stats().resets >= 4 && screen.bytes().iter().all(|byte| *byte == b'r'), "{engine}");
    }
}
