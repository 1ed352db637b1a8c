//! From a sequence that fails to a short one that still does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iced_x86::{Mnemonic, OpKind};

use super::super::case::{DATA, Input};
use super::program::{Body, Op, Program};

/// How long it is tried; an attempt at what hangs takes some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Drops what the failure does not need. `fails` says whether a program still fails.
pub(super) fn shrink(program: &Program, mut fails: impl FnMut(&Program) -> bool) -> Program {
    let start = Instant::now();
    let mut best = program.clone();
    while let Some(next) =
        smaller(&best).into_iter().take_while(|_| start.elapsed() < PATIENCE).find(|next| fails(next))
    {
        best = next;
    }
    best
}

/// What might do instead, the boldest first.
fn smaller(program: &Program) -> Vec<Program> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Program)| {
        let mut next = program.clone();
        change(&mut next);
        // Ways have changed, and so what may be undefined where.
        next.steps.iter_mut().for_each(|step| step.washed = false);
        next.wash_flags();
        all.push(next);
    };
    let groups: BTreeSet<_> =
        program.steps.iter().filter(|step| !step.dropped && step.group != 0).map(|step| step.group).collect();
    let groups: Vec<_> = groups.into_iter().collect();
    for size in [groups.len() / 2, groups.len() / 4, 1].into_iter().filter(|size| *size > 0) {
        for part in groups.chunks(size) {
            with(&|next| {
                let gone = next.steps.iter_mut().filter(|step| part.contains(&step.group));
                gone.for_each(|step| step.dropped = true);
            });
        }
    }
    for turns in [1, 2, program.turns / 2] {
        if turns < program.turns && turns > 0 {
            with(&|next| next.turns = turns);
        }
    }
    for resumes in [0, 1, program.resumes / 2] {
        if resumes < program.resumes {
            with(&|next| next.resumes = resumes);
        }
    }
    for index in 0..program.memory.len() {
        with(&|next| {
            next.memory.remove(index);
        });
    }
    for (step, number) in loads(program) {
        with(&|next| {
            if let Body::Ops(ops) = &mut next.steps[step].body {
                ops.remove(number);
            }
        });
    }
    all
}

/// Moves of constants that are parts of steps: by step, by number in it.
fn loads(program: &Program) -> Vec<(usize, usize)> {
    let is_load =
        |op: &Op| op.instruction.mnemonic() == Mnemonic::Mov && op.instruction.op_kind(1) != OpKind::Register;
    let mut found = Vec::new();
    for (index, step) in program.steps.iter().enumerate().filter(|(_, step)| !step.dropped && step.group != 0)
    {
        if let Body::Ops(ops) = &step.body
            && ops.len() > 1
        {
            found.extend(
                ops.iter().enumerate().filter(|(_, op)| is_load(op)).map(|(number, _)| (index, number)),
            );
        }
    }
    found
}

/// The case in text: code with addresses, and what it begins with where that is not what every case has.
pub(super) fn describe(program: &Program, input: &Input) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let _ = write!(
        text,
        "\n    {} bits, {} turns, goes on after {} faults at {:#x}\n   ",
        program.bits, program.turns, program.resumes, input.resume_at
    );
    for (n, value) in input.registers.gpr.iter().enumerate().take(if program.bits == 64 { 16 } else { 8 }) {
        let _ = write!(text, " {}={value:#x}", super::super::compare::GPR[n]);
    }
    let _ = write!(text, " rflags={:#x} mxcsr={:#x}", input.registers.rflags, input.registers.mxcsr);
    let _ = write!(text, " fcw={:#x} fsw={:#x}", input.registers.fcw, input.registers.fsw);
    let Some(encoded) = program.encode() else { return text };
    for &(address, step, number) in &encoded.addresses {
        let step = &program.steps[step];
        if step.washed && number == 0 {
            let _ = write!(text, "\n            {}", program.wash());
        }
        let at = (address - program.start) as usize;
        let mut decoder = iced_x86::Decoder::with_ip(
            program.bits,
            &input.code()[at..],
            address,
            iced_x86::DecoderOptions::NONE,
        );
        match &step.body {
            Body::Ops(_) => {
                let _ = write!(text, "\n  {address:x}  {}", decoder.decode());
            }
            Body::Slot(before, after) => {
                let _ =
                    write!(text, "\n  {address:x}  {} / {}", listed(program, before), listed(program, after));
            }
        }
    }
    for (address, bytes) in input.pieces().map(|(at, bytes)| (super::super::case::address_of(at), bytes)) {
        let shown: Vec<String> = bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        let area = if address < DATA + 0x1000_0000 { "data" } else { "stack" };
        let _ = write!(text, "\n    {area} {address:x}: {}", shown.join(" "));
    }
    text
}

fn listed(program: &Program, bytes: &[u8]) -> String {
    let decoder = iced_x86::Decoder::new(program.bits, bytes, iced_x86::DecoderOptions::NONE);
    decoder.into_iter().map(|instruction| instruction.to_string()).collect::<Vec<_>>().join("; ")
}
