//! The oracle for sequences: up to sixteen items with branches, loops, calls, faults that are gone on after, and stores into
//! the running code.
//!
//! What a single instruction cannot show is what an engine makes of instructions together: blocks and how they are chained,
//! flags that are computed late or not at all, registers that live elsewhere for a while, returns that are predicted,
//! code that changes, and exact state in the middle of it all when something faults. Sequences are made from the single
//! oracle's instructions ([`plain`]) and joined by control flow ([`control`]) and stores into code ([`rewrite`]) in such a
//! way that they end, and that nothing which the manual leaves undefined is ever read ([`flags`]).
//!
//! A sequence that differs is made shorter while it still does ([`shrink`]), each time on a guest of its own. One that does
//! not differ alone needed what the engine remembered of the cases before; then the report says from where to repeat.

mod control;
mod flags;
mod generate;
mod ledger;
mod plain;
mod program;
mod rewrite;
mod shrink;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use engine::Engine;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use x86::cpuid::CpuidTable;
use x86::exception::{pf, vector};

use self::generate::{Forms, Made};
use self::program::{Encoded, Program};
use super::build::World;
use super::case::{INT3, Image, Input, Output, image_at};
use super::child::{BATCH, Child};
use super::compare::{self, Ending};
use super::guest::{self, Guest, Lost};
use super::{Group, Options, OracleError, Report, background, child, forms, host_model, vendor};

/// Failures that are made shorter; there may be many of one cause.
const SHRUNK: u64 = 16;

/// Runs sequences on `engine` and on the processor.
///
/// # Errors
/// If one of them cannot be set up.
pub fn run(engine: &dyn Engine, options: &Options) -> Result<Report, OracleError> {
    let cpuid = Arc::new(host_model()?);
    let forms = Forms::new(&forms::table(&cpuid), options.only.as_ref());
    let host = vendor::Host::of(&cpuid);
    let world = World { fs_base: child::fs_base(), gs_base: child::GS_BASE, host };
    let mut session = Session {
        engine,
        guest: Guest::new(engine, &cpuid, &world)?,
        child: Child::new()?,
        report: Report { forms: forms.all.len(), ..Report::default() },
        seen: vec![false; forms.all.len()],
        seed: options.seed,
        cpuid,
        world,
        forms: &forms,
    };
    let mut next = options.first;
    let end = options.first.saturating_add(options.cases);
    while next < end && !forms.all.is_empty() {
        // As for single instructions, a batch begins at a multiple of its size.
        let stop = end.min((next / BATCH as u64 + 1) * BATCH as u64);
        session.batch(next..stop)?;
        next = stop;
    }
    let untried = forms.all.iter().zip(&session.seen).filter(|(_, seen)| !**seen);
    session.report.untried = untried.map(|(&form, _)| form).collect();
    session.report.counters = session.guest.counters();
    Ok(session.report)
}

struct Session<'a> {
    engine: &'a dyn Engine,
    cpuid: Arc<CpuidTable>,
    world: World,
    forms: &'a Forms,
    guest: Guest,
    child: Child,
    report: Report,
    seen: Vec<bool>,
    seed: u64,
}

impl Session<'_> {
    fn batch(&mut self, numbers: Range<u64>) -> Result<(), OracleError> {
        let image = background(self.seed, numbers.start);
        let made: Vec<(u64, Made)> = numbers
            .clone()
            .filter_map(|number| {
                generate::make(self.seed, number, self.forms, &self.world).map(|made| (number, made))
            })
            .collect();
        for (index, (_, made)) in made.iter().enumerate() {
            self.child.batch().inputs[index] = made.encoded.input;
            made.used.iter().for_each(|&form| self.seen[form] = true);
        }
        let batch = self.child.batch();
        batch.count = made.len();
        batch.background = image;
        let done = match self.child.run() {
            Ok(()) => made.len(),
            Err(died) => {
                let (number, made) = &made[died.at.min(made.len() - 1)];
                self.note("the processor", *number, &made.program, " the child process died or hung;");
                died.at
            }
        };
        self.guest.set_background(&image);
        let mut output = Box::new(Output::EMPTY);
        let mut failures = Vec::new();
        for (index, (_, made)) in made[..done].iter().enumerate() {
            let result = self.guest.run(&made.encoded.input, &mut output);
            let expected = &self.child.batch().outputs[index];
            let host = self.world.host;
            let difference =
                difference(&made.program, &made.encoded, host, &image, expected, result, &output);
            failures.extend(difference.map(|text| (index, text)));
            self.report.cases += 1;
        }
        if done < made.len() {
            self.child = Child::new()?;
        }
        for (index, text) in failures {
            let (number, made) = &made[index];
            self.investigate(*number, made, &text, numbers.start, &image)?;
        }
        Ok(())
    }

    /// Makes a failure short and notes it.
    fn investigate(
        &mut self,
        number: u64,
        made: &Made,
        text: &str,
        first: u64,
        image: &Image,
    ) -> Result<(), OracleError> {
        if self.report.mismatch_count() >= SHRUNK {
            self.note("not made shorter", number, &made.program, text);
            return Ok(());
        }
        let Some(alone) = self.alone(&made.program, image)? else {
            let cases = number + 1 - first;
            let text = format!("{text} not alone, but with --first {first} --cases {cases};");
            self.note("not alone", number, &made.program, &text);
            return Ok(());
        };
        let mut trouble = None;
        let short = shrink::shrink(&made.program, |program| match self.alone(program, image) {
            Ok(difference) => difference.is_some(),
            Err(error) => {
                trouble = Some(error);
                false
            }
        });
        if let Some(error) = trouble {
            return Err(error);
        }
        let text = self.alone(&short, image)?.unwrap_or(alone);
        self.note(&summary(&short), number, &short, &text);
        Ok(())
    }

    /// What differs if the program is the only one that a guest has ever executed.
    fn alone(&mut self, program: &Program, image: &Image) -> Result<Option<String>, OracleError> {
        let Some(encoded) = program.encode() else { return Ok(None) };
        let batch = self.child.batch();
        (batch.count, batch.inputs[0], batch.background) = (1, encoded.input, *image);
        if self.child.run().is_err() {
            self.child = Child::new()?;
            return Ok(None);
        }
        let mut guest = Guest::new(self.engine, &self.cpuid, &self.world)?;
        guest.set_background(image);
        let mut output = Box::new(Output::EMPTY);
        let result = guest.run(&encoded.input, &mut output);
        let expected = &self.child.batch().outputs[0];
        Ok(difference(program, &encoded, self.world.host, image, expected, result, &output))
    }

    fn note(&mut self, key: &str, number: u64, program: &Program, text: &str) {
        let seed = self.seed;
        let group = self.report.mismatches.entry(key.to_owned()).or_insert_with(|| {
            let input = program.encode().map_or(Input::EMPTY, |encoded| encoded.input);
            let listing = shrink::describe(program, &input);
            Group { count: 0, example: format!("seed {seed} case {number}:{text}{listing}") }
        });
        group.count += 1;
    }
}

/// What differs between the processor and the engine.
fn difference(
    program: &Program,
    encoded: &Encoded,
    host: vendor::Host,
    background: &Image,
    cpu: &Output,
    result: Result<(), Lost>,
    engine: &Output,
) -> Option<String> {
    match result {
        Err(Lost::Hung) => return Some(" the engine hung;".to_owned()),
        Err(Lost::Astray) => return Some(" the engine went astray;".to_owned()),
        Ok(()) => {}
    }
    let rip = cpu.registers.rip;
    if (rip, cpu.vector) != (engine.registers.rip, engine.vector)
        && refuses_components(encoded, background, engine)
    {
        return None;
    }
    let breakpoint = cpu.vector == u32::from(vector::BP);
    let fetch = cpu.vector == u32::from(vector::PF) && cpu.error & pf::FETCH != 0;
    let completed = breakpoint || fetch;
    let nothing = Instruction::with(Code::Nopd);
    let instruction = if completed { nothing } else { instruction_at(encoded, cpu, rip) };
    let ended = if breakpoint { rip.wrapping_sub(1) } else { rip };
    let ending = Ending {
        host,
        bits: program.bits,
        instruction: &instruction,
        completed,
        undefined: if cpu.registers.rflags == engine.registers.rflags {
            0
        } else {
            program.undefined_at(encoded, ended)
        },
        loose: false,
        alone: false,
        target: None,
    };
    compare::differences(&ending, cpu, engine)
}

/// The instruction that the processor stopped at, in the code as it is at the end.
fn instruction_at(encoded: &Encoded, cpu: &Output, rip: u64) -> Instruction {
    let mut image = [INT3; super::case::CODE_BYTES];
    let (at, code) = (encoded.input.code_at(), encoded.input.code());
    let len = code.len().min(image.len() - at);
    image[at..at + len].copy_from_slice(&code[..len]);
    for (at, byte) in image.iter_mut().enumerate() {
        *byte = cpu.byte(at).unwrap_or(*byte);
    }
    let Some(at) = image_at(rip).filter(|at| *at < image.len()) else { return Instruction::new() };
    Decoder::with_ip(encoded.input.bits, &image[at..], rip, DecoderOptions::NONE).decode()
}

/// Whether the engine ended with an XRSTOR that it refused for components which the guest has not enabled: #GP (SDM vol. 2,
/// XRSTOR). The host's system, whose XCR0 is not ours to choose, may have enabled more.
fn refuses_components(encoded: &Encoded, background: &Image, engine: &Output) -> bool {
    /// Bit of XCOMP_BV that is none of a component's (SDM vol. 1, 13.4.2).
    const COMPACTED: u64 = 1 << 63;
    let registers = &engine.registers;
    let instruction = instruction_at(encoded, engine, registers.rip);
    if engine.vector != u32::from(vector::GP)
        || !matches!(instruction.mnemonic(), Mnemonic::Xrstor | Mnemonic::Xrstor64)
    {
        return false;
    }
    let register = |name: Register, _, _| match name {
        Register::FS | Register::GS => None,
        _ if name.is_segment_register() => Some(0),
        _ => {
            let value = registers.gpr.get(name.full_register().number())?;
            Some(value & x86::bits::mask_of(u32::try_from(name.size()).ok()?))
        }
    };
    let Some(image) = instruction.virtual_address(0, 0, register) else { return false };
    let word = |address: u64| {
        let bytes = std::array::from_fn(|index| {
            let at = image_at(address.wrapping_add(index as u64));
            at.and_then(|at| engine.byte(at).or_else(|| background.get(at).copied())).unwrap_or(0)
        });
        u64::from_le_bytes(bytes)
    };
    let [present, layout] = [512, 520].map(|field| word(image.wrapping_add(field)));
    (present | layout & !COMPACTED) & !guest::XCR0 != 0
}

/// The instructions that are left, as a name for the failure.
fn summary(program: &Program) -> String {
    let steps = program.steps.iter().filter(|step| !step.dropped && step.group != 0);
    let names: BTreeSet<String> = steps
        .flat_map(|step| step.variants(program.bits))
        .flatten()
        .map(|instruction| format!("{:?}", instruction.code()))
        .collect();
    let names: Vec<String> = names.into_iter().take(6).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(" ") }
}
