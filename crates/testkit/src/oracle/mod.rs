//! The oracle: random instructions on an engine and on the processor itself, and what differs.
//!
//! A run is a seed and a number of cases. Case *n* is made from seed and *n* alone: a form from the decoder's table
//! ([`forms`]), operands, an encoding, registers and memory ([`build`]). The processor executes it in a forked child
//! ([`child`]), the engine on a vCPU in user mode ([`guest`]); everything the case can see is compared afterwards, except
//! what the manual leaves undefined ([`undefined`]).

mod adjust;
pub mod build;
pub mod case;
pub mod child;
mod compare;
pub mod forms;
pub mod guest;
mod handlers;
pub mod random;
pub mod sequence;
pub mod undefined;
pub mod vendor;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use engine::{Engine, EngineError};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use x86::cpuid::{CpuModel, CpuModelError, CpuRequest, CpuidTable, HostCpuid};

use build::World;
use case::{DATA_AT, IMAGE_BYTES, INT3, Image, Input, Output};
use child::{BATCH, Child};
use compare::Ending;
use forms::Form;
use guest::{Guest, Lost};
use random::Random;
use vendor::Host;

/// The oracle cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The host refused the child process.
    #[error("cannot start the process that executes cases")]
    Child(#[from] std::io::Error),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The host has no usable processor model.
    #[error(transparent)]
    Model(#[from] CpuModelError),
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed of the run.
    pub seed: u64,
    /// The first case.
    pub first: u64,
    /// How many cases.
    pub cases: u64,
    /// Only forms whose name contains this.
    pub only: Option<String>,
}

/// The cases of one mnemonic that differ.
#[derive(Clone, Debug)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// The first one, with what makes it again.
    pub example: String,
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases executed on both sides.
    pub cases: u64,
    /// Forms in the table.
    pub forms: usize,
    /// Forms that were never tried.
    pub untried: Vec<Form>,
    /// Differences, by form.
    pub mismatches: BTreeMap<String, Group>,
    /// What the engine's vCPUs have counted together.
    pub counters: BTreeMap<Cow<'static, str>, u64>,
}

impl Report {
    /// Adds another run's findings.
    pub fn merge(&mut self, other: Self) {
        self.cases += other.cases;
        self.forms = self.forms.max(other.forms);
        self.untried.retain(|code| other.untried.contains(code));
        other.counters.into_iter().for_each(|(name, value)| *self.counters.entry(name).or_default() += value);
        for (form, group) in other.mismatches {
            match self.mismatches.entry(form) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(group);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    entry.get_mut().count += group.count;
                }
            }
        }
    }

    /// The number of cases that differ.
    pub fn mismatch_count(&self) -> u64 {
        self.mismatches.values().map(|group| group.count).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<_> = self.mismatches.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        for (form, group) in groups {
            writeln!(f, "{:8}  {form}: {}", group.count, group.example)?;
        }
        let (cases, forms, tried) = (self.cases, self.forms, self.forms - self.untried.len());
        write!(f, "{cases} cases of {tried} of {forms} forms, {} mismatches", self.mismatch_count())
    }
}

/// The CPU model that cases run on: everything that can be offered on this host.
///
/// # Errors
/// If there is none.
pub fn host_model() -> Result<CpuidTable, CpuModelError> {
    let query = |leaf, subleaf| host::cpu::cpuid(leaf, subleaf);
    let request = CpuRequest { base: x86::cpuid::BaseModel::Host, ..CpuRequest::default() };
    let model = CpuModel::resolve(&request, &HostCpuid::new(&query, host::cpu::xgetbv0()))?;
    Ok(CpuidTable::new(model, host::time::tsc_khz(), 1))
}

/// Runs cases on `engine` and on the processor.
///
/// # Errors
/// If one of them cannot be set up.
pub fn run(engine: &dyn Engine, options: &Options) -> Result<Report, OracleError> {
    let cpuid = Arc::new(host_model()?);
    let forms: Vec<Form> = forms::table(&cpuid)
        .into_iter()
        .filter(|form| options.only.as_ref().is_none_or(|only| form.to_string().contains(only)))
        .collect();
    let host = Host::of(&cpuid);
    let world = World { fs_base: child::fs_base(), gs_base: child::GS_BASE, host };
    let mut session = Session {
        guest: Guest::new(engine, &cpuid, &world)?,
        child: Child::new()?,
        report: Report { forms: forms.len(), ..Report::default() },
        seen: vec![false; forms.len()],
        seed: options.seed,
    };
    let mut next = options.first;
    let end = options.first.saturating_add(options.cases);
    while next < end && !forms.is_empty() {
        // A batch begins where a case number is a multiple of its size, so that a case keeps its background.
        let stop = end.min((next / BATCH as u64 + 1) * BATCH as u64);
        session.batch(next..stop, &forms, &world)?;
        next = stop;
    }
    let untried = forms.iter().zip(&session.seen).filter(|(_, seen)| !**seen);
    session.report.untried = untried.map(|(&form, _)| form).collect();
    session.report.counters = session.guest.counters();
    Ok(session.report)
}

/// What memory is before a case sets its own; the same for a batch.
pub(crate) fn background(seed: u64, case: u64) -> Image {
    let mut random = Random::new(!seed, case / BATCH as u64);
    let mut image = [INT3; IMAGE_BYTES];
    for lane in image[DATA_AT..].as_chunks_mut::<8>().0 {
        *lane = random.lane().to_le_bytes();
    }
    image
}

struct Session {
    guest: Guest,
    child: Child,
    report: Report,
    seen: Vec<bool>,
    seed: u64,
}

/// A case, made: its number and what it executes.
struct Made {
    number: u64,
    instruction: Instruction,
}

impl Session {
    fn batch(
        &mut self,
        numbers: std::ops::Range<u64>,
        forms: &[Form],
        world: &World,
    ) -> Result<(), OracleError> {
        let made = self.make(numbers, forms, world);
        if let Err(died) = self.child.run() {
            let culprit = &made[died.at.min(made.len() - 1)];
            let input = self.child.batch().inputs[died.at.min(made.len() - 1)];
            self.note(culprit, &input, " the child process died or hung;");
            self.child = Child::new()?;
            return Ok(());
        }
        let background = self.child.batch().background;
        self.guest.set_background(&background);
        let mut output = Box::new(Output::EMPTY);
        for (index, case) in made.iter().enumerate() {
            let batch = self.child.batch();
            let (input, expected) = (&batch.inputs[index], &batch.outputs[index]);
            let result = self.guest.run(input, &mut output);
            let difference = match result {
                Ok(()) => {
                    let ending = Ending::of(world.host, &case.instruction, input, expected);
                    compare::differences(&ending, expected, &output)
                }
                Err(Lost::Hung) => Some(" the engine hung;".to_owned()),
                Err(Lost::Astray) => Some(" the engine went astray;".to_owned()),
            };
            self.report.cases += 1;
            if let Some(text) = difference {
                let input = *input;
                self.note(case, &input, &text);
            }
        }
        Ok(())
    }

    /// Fills the batch.
    fn make(&mut self, numbers: std::ops::Range<u64>, forms: &[Form], world: &World) -> Vec<Made> {
        let batch = self.child.batch();
        batch.background = background(self.seed, numbers.start);
        let mut made = Vec::with_capacity(BATCH);
        for number in numbers {
            let mut random = Random::new(self.seed, number);
            // Some choices have no encoding; a few attempts find one for every form.
            for _ in 0..64 {
                let index = random.below(forms.len() as u64) as usize;
                if let Some(input) = build::build(&mut random, forms[index], world) {
                    self.seen[index] = true;
                    batch.inputs[made.len()] = input;
                    let rip = input.registers.rip;
                    let instruction =
                        Decoder::with_ip(input.bits, input.code(), rip, DecoderOptions::NONE).decode();
                    made.push(Made { number, instruction });
                    break;
                }
            }
        }
        batch.count = made.len();
        made
    }

    fn note(&mut self, case: &Made, input: &Input, text: &str) {
        let group =
            self.report.mismatches.entry(format!("{:?}", case.instruction.code())).or_insert_with(|| {
                let bytes: Vec<String> = input.code().iter().map(|byte| format!("{byte:02x}")).collect();
                let (seed, number) = (self.seed, case.number);
                let example = format!(
                    "seed {seed} case {number}: {} ({}):{text}{}",
                    bytes.join(" "),
                    case.instruction,
                    operands(&case.instruction, input)
                );
                Group { count: 0, example }
            });
        group.count += 1;
    }
}

/// The registers that an instruction names, before it.
fn operands(instruction: &Instruction, input: &Input) -> String {
    use iced_x86::InstructionInfoFactory;
    let r = &input.registers;
    let mut factory = InstructionInfoFactory::new();
    let mut text = format!(" before: rflags={:#x}", r.rflags);
    for used in factory.info(instruction).used_registers() {
        let register = used.register().full_register();
        let n = register.number();
        text += &if register.is_gpr64() {
            format!(" {register:?}={:#x}", r.gpr[n])
        } else if register.is_vector_register() {
            format!(" {register:?}={:x?} mxcsr={:#x}", r.ymm[n & 15], r.mxcsr)
        } else if register.is_st() || register.is_mm() {
            format!(" {register:?}={:#x} fcw={:#x} fsw={:#x} ftw={:#x}", r.st[n], r.fcw, r.fsw, r.ftw)
        } else {
            continue;
        };
    }
    text
}
