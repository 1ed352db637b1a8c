//! `cargo xtask bench latency`: how soon an engine attends to what it is kicked for, whatever the guest executes.
//!
//! The guest's code never ends and never asks for anything. Another thread kicks the vCPU again and again, at times that nothing
//! else depends on; what counts is the time from the kick to the return of `Vcpu::run`. The host's scheduler has
//! its share in the worst of it: on a machine with other things to do a thread that could run sometimes waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use testkit::engines;
use testkit::flat::{CODE, DATA, FlatGuest};
use testkit::oracle::host_model;
use testkit::oracle::random::Random;

/// Measure how soon an engine attends to an interrupt, under code that never pauses
#[derive(Debug, Args)]
pub(super) struct LatencyArgs {
    /// The engines
    #[arg(long, value_delimiter = ',', value_name = "ENGINE,…", default_value = "interp,bt,bt-direct")]
    engines: Vec<String>,
    /// Kicks under each code
    #[arg(long, default_value_t = 1000)]
    kicks: usize,
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What the guest does for ever.
const BODIES: [(&str, Body); 9] = [
    ("nothing", |_| Ok(())),
    ("straight-line", |a| (0..3000).try_for_each(|_| a.add(rax, rbx))),
    ("loop", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 0x4000_0000)?;
        a.set_label(&mut top)?;
        a.add(rax, ptr(rdi + 8))?;
        a.dec(ecx)?;
        a.jnz(top)
    }),
    ("vector-loop", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 0x4000_0000)?;
        a.set_label(&mut top)?;
        a.movdqu(xmm0, ptr(rdi))?;
        a.paddd(xmm1, xmm0)?;
        a.sub(ecx, 1)?;
        a.jnz(top)
    }),
    ("division", |a| {
        (0..200).try_for_each(|_| {
            a.mov(rax, -1_i64)?;
            a.cqo()?;
            a.idiv(rbx)
        })
    }),
    ("x87", |a| (0..100).try_for_each(|_| a.fsin())),
    ("calls", |a| {
        let (mut function, mut over) = (a.create_label(), a.create_label());
        a.call(function)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    }),
    ("rep-movsb", |a| {
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 0x10_0000)?;
        a.mov(ecx, 0x10_0000)?;
        a.rep().movsb()
    }),
    ("rep-scasb", |a| {
        a.mov(rdi, DATA)?;
        a.mov(ecx, 0x20_0000)?;
        a.mov(eax, 1)?;
        a.repne().scasb()
    }),
];

fn assemble(body: Body) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rdi, DATA)?;
    a.mov(rbx, 3_u64)?;
    // A reset leaves its exceptions unmasked.
    a.fninit()?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    body(&mut a)?;
    a.jmp(top)?;
    a.assemble(CODE)
}

/// From each kick to where the vCPU has left the guest's code.
fn measure(guest: &mut FlatGuest, kicks: usize) -> Result<Vec<Duration>> {
    let (kick, done) = (guest.kick_handle(), AtomicBool::new(false));
    let (answer, answers) = mpsc::channel::<Instant>();
    std::thread::scope(|scope| {
        let done = &done;
        let kicker = scope.spawn(move || {
            let mut random = Random::new(1, 0);
            let waits = (0..kicks).map(|_| {
                std::thread::sleep(Duration::from_micros(200 + random.bits() % 1000));
                let asked = Instant::now();
                kick.leave();
                answers.recv().map(|left| left.saturating_duration_since(asked))
            });
            let waits = waits.collect::<Result<Vec<_>, _>>();
            done.store(true, Ordering::Release);
            kick.leave();
            waits
        });
        while !done.load(Ordering::Acquire) {
            if !guest.run_until_kicked() {
                drop(answer);
                bail!("code that never ends has ended");
            }
            let left = Instant::now();
            // The last time nobody listens any more.
            let _ = answer.send(left);
        }
        let waits = kicker.join().map_err(|_| anyhow!("the thread that kicks has panicked"))?;
        Ok(waits?)
    })
}

/// Measures and prints a line for each code.
pub(super) fn task(args: &LatencyArgs) -> Result<()> {
    ensure!(args.kicks > 0, "a measurement needs kicks");
    let cpuid = Arc::new(host_model()?);
    println!("µs from a kick to the end of `run`: median, 99 of 100, worst\n");
    println!("{:<16}{}", "", args.engines.iter().map(|name| format!("{name:>28}")).collect::<String>());
    for (name, body) in BODIES {
        let code = assemble(body)?;
        let mut line = format!("{name:<16}");
        for engine in &args.engines {
            let engine = engines::by_name(engine).map_err(|problem| anyhow!(problem))?;
            // At CPL 3, where one engine executes it directly.
            let mut guest = FlatGuest::of_user(&*engine, cpuid.clone(), &code)?;
            let mut waits = measure(&mut guest, args.kicks)?;
            waits.sort();
            let at =
                |share: usize| waits[(waits.len() * share / 100).min(waits.len() - 1)].as_secs_f64() * 1e6;
            line += &format!("{:>10.1}{:>8.1}{:>10.1}", at(50), at(99), at(100));
        }
        println!("{line}");
    }
    Ok(())
}
