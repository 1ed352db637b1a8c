//! Random instructions on the translator and the interpreter in lockstep: no processor to compare with is needed, so any
//! stretch of code will do.
//!
//! A case is a few forms from the oracle's table ([`crate::oracle::forms`]), each built with operands of its own, one after
//! the other. The registers are those that the first was built with; the operands in memory of the others lie wherever that
//! leads, which is a case too.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_bt::{Closeness, Counts, Lockstep};
use iced_x86::{Decoder, DecoderOptions};

use crate::oracle::build::{World, build};
use crate::oracle::case::{INT3, Input, Output};
use crate::oracle::forms::{self, Form};
use crate::oracle::guest::Guest;
use crate::oracle::random::Random;
use crate::oracle::vendor::Host;
use crate::oracle::{OracleError, background, child, host_model};

/// Instructions in a case at the most.
const LENGTH: u64 = 8;
/// Cases on one background.
const BATCH: u64 = 64;
/// MXCSR with all exceptions masked: with others vector instructions are left to the interpreter.
const MASKED: u32 = 0x1f80;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// What was compared.
    pub counts: Counts,
    /// The first difference of each first instruction, and how many there are.
    pub differences: BTreeMap<String, (u64, String)>,
}

/// Runs so many cases.
///
/// # Errors
/// If the engine cannot be set up.
pub fn run(closeness: Closeness, seed: u64, cases: u64) -> Result<Report, OracleError> {
    let cpuid = Arc::new(host_model()?);
    let mut forms = forms::table(&cpuid);
    forms.retain(|form| form.bits == 64);
    let world = World { fs_base: 0x7000_0000_1000, gs_base: child::GS_BASE, host: Host::of(&cpuid) };
    let mut report = Report::default();
    let mut engine = Lockstep::new(closeness);
    let mut guest = Guest::new(&engine, &cpuid, &world)?;
    let mut output = Box::new(Output::EMPTY);
    for number in 0..cases {
        let mut random = Random::new(seed, number);
        if number % BATCH == 0 {
            guest.set_background(&background(seed, number));
        }
        let Some(input) = case(&mut random, &forms, &world) else { continue };
        // Whether it comes to an end does not matter here.
        let _ = guest.run(&input, &mut output);
        if let Some(text) = engine.ledger().differences().pop() {
            let first = Decoder::new(64, input.code(), DecoderOptions::NONE).decode();
            let text = format!("seed {seed} case {number}\n{text}");
            report.differences.entry(format!("{:?}", first.code())).or_insert((0, text)).0 += 1;
            report.counts = sum(report.counts, engine.ledger().counts());
            engine = Lockstep::new(closeness);
            guest = Guest::new(&engine, &cpuid, &world)?;
            guest.set_background(&background(seed, number));
        }
    }
    report.counts = sum(report.counts, engine.ledger().counts());
    Ok(report)
}

/// A few instructions; nothing if a choice has no encoding.
fn case(random: &mut Random, forms: &[Form], world: &World) -> Option<Input> {
    let some = |random: &mut Random| {
        (0..64).find_map(|_| {
            let form = random.pick(forms);
            build(random, form, world)
        })
    };
    let mut input = some(random)?;
    let mut code = input.code().to_vec();
    for _ in 0..random.below(LENGTH) {
        code.extend_from_slice(some(random)?.code());
    }
    code.push(INT3);
    if !input.set_code(&code) {
        return None;
    }
    if !random.one_in(4) {
        input.registers.mxcsr |= MASKED;
    }
    Some(input)
}

fn sum(a: Counts, b: Counts) -> Counts {
    Counts {
        blocks: a.blocks + b.blocks,
        instructions: a.instructions + b.instructions,
        left: a.left + b.left,
        repeated: a.repeated + b.repeated,
        unclear: a.unclear + b.unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_differences(closeness: Closeness, seed: u64, cases: u64) {
        let report = run(closeness, seed, cases).unwrap();
        for (form, (count, text)) in &report.differences {
            println!("{form}: {count} times, first\n{text}");
        }
        println!("{:?}", report.counts);
        assert!(report.differences.is_empty());
        assert!(report.counts.blocks > cases / 2, "{:?}", report.counts);
        assert!(report.counts.repeated != 0, "{:?}", report.counts);
    }

    #[test]
    fn single_blocks_agree_with_the_interpreter() {
        no_differences(Closeness::default(), 1, cases(20_000));
    }

    #[test]
    fn chains_agree_with_the_interpreter() {
        no_differences(Closeness { chained: true, ..Closeness::default() }, 2, cases(20_000));
    }

    #[test]
    fn blocks_that_check_themselves_agree_with_the_interpreter() {
        no_differences(Closeness { checking: true, ..Closeness::default() }, 3, cases(20_000));
    }

    /// More on demand: `UMBRA_LOCKSTEP_CASES=1000000`.
    fn cases(usually: u64) -> u64 {
        std::env::var("UMBRA_LOCKSTEP_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
    }
}
