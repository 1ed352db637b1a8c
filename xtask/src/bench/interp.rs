//! `cargo xtask bench interp`: guest instructions a second of an engine, on loops of one kind each.
//!
//! Each loop runs for a while on the smallest guest; what counts is the engine's own count of instructions over the
//! time on this host's clock, the median of several rounds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use testkit::flat::{CODE, DATA, FlatGuest};
use testkit::oracle::host_model;

/// Arguments of the measurement.
#[derive(Debug, Args)]
pub(super) struct InterpArgs {
    /// Seconds for each round of each loop
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The loops: a name, and the code that repeats.
const LOOPS: [(&str, Body); 6] = [
    ("register", |a| {
        a.add(rax, rbx)?;
        a.xor(rdx, rax)?;
        a.lea(rsi, ptr(rax + rdx * 2 + 5))?;
        a.shr(rsi, 3)?;
        a.sub(rbx, rsi)?;
        a.mov(r8, rbx)?;
        a.imul_2(r8, rsi)
    }),
    ("memory", |a| {
        a.mov(rax, ptr(rdi + 8))?;
        a.add(rax, 1)?;
        a.mov(ptr(rdi + 8), rax)?;
        a.add(qword_ptr(rdi + 64), 3)?;
        a.cmp(dword_ptr(rdi + 128), 0)
    }),
    ("call", |a| {
        let mut function = a.create_label();
        let mut over = a.create_label();
        a.call(function)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.pop(rbp)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    }),
    ("branch", |a| {
        let mut skip = a.create_label();
        a.add(eax, 0x1357_9bdf)?;
        a.test(eax, 0x10)?;
        a.jz(skip)?;
        a.inc(rdx)?;
        a.set_label(&mut skip)?;
        a.nop()
    }),
    ("vector", |a| {
        a.movdqu(xmm0, ptr(rdi))?;
        a.paddd(xmm0, xmm1)?;
        a.mulps(xmm2, xmm3)?;
        a.movdqu(ptr(rdi + 32), xmm0)
    }),
    ("string", |a| {
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 0x8000)?;
        a.mov(ecx, 0x1000)?;
        a.rep().movsb()?;
        a.mov(rdi, DATA)
    }),
];

fn assemble(body: Body) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rdi, DATA)?;
    a.mov(rbx, 0x1234_5678_9abcu64)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    body(&mut a)?;
    a.dec(rcx)?;
    a.jmp(top)?;
    a.assemble(CODE)
}

fn round(code: &[u8], seconds: f64) -> Result<f64> {
    let cpuid = Arc::new(host_model()?);
    let mut guest = FlatGuest::new(&interp::Interp, cpuid, code)?;
    let start = Instant::now();
    let halted = guest.run_for(Duration::from_secs_f64(seconds));
    let elapsed = start.elapsed().as_secs_f64();
    ensure!(!halted, "a loop that should not end has ended");
    let instructions = guest.stats().instructions.context("the engine counts no instructions")?;
    Ok(instructions as f64 / elapsed / 1e6)
}

/// Runs the loops and prints a line each.
pub(super) fn task(args: &InterpArgs) -> Result<()> {
    ensure!(args.rounds > 0 && args.seconds > 0.0, "a benchmark needs rounds and time");
    println!("{:<10} {:>24}", "loop", "million instructions/s");
    for (name, body) in LOOPS {
        let code = assemble(body)?;
        let mut rates = (0..args.rounds).map(|_| round(&code, args.seconds)).collect::<Result<Vec<_>>>()?;
        rates.sort_by(f64::total_cmp);
        println!("{name:<10} {:>24.0}", rates[rates.len() / 2]);
    }
    Ok(())
}
