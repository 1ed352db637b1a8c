//! Litmus tests of the memory model: a few vCPUs on a shared memory, and what they may see of each other.
//!
//! An engine promises its guests what a processor promises: total store order, locked instructions that are atomic, code that
//! can be changed. Each test here is a short program for one to four vCPUs, run for many rounds on any
//! [`engine::Engine`], each vCPU on a thread of its own; the outcomes are counted. An outcome that x86-TSO forbids is a
//! violation. One that it allows although no order of the instructions explains it ("weak": two loads overtook
//! two stores) is good to see: it tells that the test can see something.
//!
//! - [`shape`]: tests in `cases/litmus.txt`, of plain loads, stores, fences and locked instructions; [`model`] knows which
//!   outcomes are legal.
//! - [`code`] and [`patch`]: tests in code: counters and locks, values seen whole; code that changes.
//! - [`program`]: the rounds around a body. [`machine`]: vCPUs and threads.
//!
//! A run that finds nothing proves nothing; more rounds, and more processors of the host, prove more nothing. On a
//! host with one processor, threads meet only where the scheduler changes them, and hardly any violation can
//! be seen ([`Report`] says so).

mod code;
mod machine;
mod model;
mod patch;
mod program;
mod report;
mod shape;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, EngineError};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::MemoryError;
use x86::Gpa;
use x86::cpuid::{CpuModelError, CpuidTable, Feature};

pub use report::{Report, Result as TestResult, Verdict, host_processors};

use code::{Binding, CodeTest, Source};
use machine::Machine;
use model::Model;
use program::{BATCH, Frame, PROCESSORS, place};
use shape::{Observed, Shape, Step, Update};

/// The text of the tests in `cases/litmus.txt`.
const SHAPES: &str = include_str!("../../cases/litmus.txt");

/// A test could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum LitmusError {
    /// The text of the tests is wrong.
    #[error("litmus.txt: {0}")]
    Text(String),
    /// A program cannot be assembled.
    #[error(transparent)]
    Assembler(#[from] IcedError),
    /// The host refused memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine refused a vCPU.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The host has no usable processor model.
    #[error(transparent)]
    Model(#[from] CpuModelError),
    /// vCPUs did not come to their program's end.
    #[error("stuck after {progress} arrivals at barriers: {vcpus}")]
    Stuck {
        /// How far they came.
        progress: u64,
        /// How each of them stopped.
        vcpus: String,
    },
}

/// One test.
pub struct Litmus {
    kind: Kind,
}

enum Kind {
    Shape(Shape),
    Code(CodeTest),
}

/// All tests.
///
/// # Errors
/// If their text is wrong.
pub fn all() -> Result<Vec<Litmus>, LitmusError> {
    let shapes = shape::parse(SHAPES).map_err(LitmusError::Text)?.into_iter().map(Kind::Shape);
    let codes = code::tests().into_iter().map(Kind::Code);
    Ok(shapes.chain(codes).map(|kind| Litmus { kind }).collect())
}

/// Runs all tests for this many rounds each.
///
/// # Errors
/// If the tests are wrong, or the host has no processor model. What goes wrong with a test stands in its result.
pub fn run(engine: &dyn Engine, rounds: u64) -> Result<Report, LitmusError> {
    let results = all()?.iter().map(|test| test.run(engine, rounds)).collect::<Result<_, _>>()?;
    Ok(Report { results })
}

/// What of the outcomes of a test is legal.
enum Law {
    /// The outcomes of the model, and those of them that are weak.
    Model { legal: BTreeSet<model::Outcome>, weak: BTreeSet<model::Outcome> },
    /// What a function says, if it binds.
    Predicate { legal: fn(&[u64]) -> bool, binding: Binding },
}

/// A test in the form in which it is run.
struct Plan {
    programs: Vec<Vec<u8>>,
    observed: Vec<(String, Source)>,
    finals: Vec<u64>,
    law: Law,
}

impl Litmus {
    /// Its name.
    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::Shape(shape) => &shape.name,
            Kind::Code(test) => test.name,
        }
    }

    /// Where it is written what it may do.
    pub fn cite(&self) -> &str {
        match &self.kind {
            Kind::Shape(shape) => &shape.cite,
            Kind::Code(test) => test.cite,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// If it cannot be assembled, or the host has no processor model.
    pub fn run(&self, engine: &dyn Engine, rounds: u64) -> Result<TestResult, LitmusError> {
        self.run_patiently(engine, rounds, machine::PATIENCE)
    }

    /// The same; without progress for `patience`, it hangs.
    fn run_patiently(
        &self,
        engine: &dyn Engine,
        rounds: u64,
        patience: Duration,
    ) -> Result<TestResult, LitmusError> {
        let cpuid = Arc::new(crate::oracle::host_model()?);
        let plan = self.plan()?;
        let mut result = TestResult {
            name: self.name().to_owned(),
            names: plan.observed.iter().map(|(name, _)| name.clone()).collect(),
            processors: plan.programs.len(),
            rounds: 0,
            outcomes: BTreeMap::new(),
            weak: None,
            verdict: Verdict::Ok,
        };
        match plan.run(engine, &cpuid, rounds, patience, &mut result) {
            Ok(()) => plan.judge(&cpuid, &mut result),
            Err(error) => result.verdict = Verdict::Failed(error.to_string()),
        }
        Ok(result)
    }

    fn plan(&self) -> Result<Plan, LitmusError> {
        match &self.kind {
            Kind::Shape(shape) => Plan::of_shape(shape),
            Kind::Code(test) => Plan::of_code(test),
        }
    }
}

impl Plan {
    fn of_shape(shape: &Shape) -> Result<Self, LitmusError> {
        let observed: Vec<_> =
            shape.observed().into_iter().map(|what| (what.to_string(), source(what))).collect();
        let legal = model::outcomes(shape, Model::Tso);
        if let Some(claim) = model::contradiction(shape, &legal) {
            return Err(LitmusError::Text(format!("{}: the model contradicts {claim:?}", shape.name)));
        }
        let strong = model::outcomes(shape, Model::Sc);
        let weak = legal.difference(&strong).cloned().collect();
        let cleared: Vec<u64> = (0..shape::VARIABLES.len()).map(place).collect();
        let body = |a: &mut CodeAssembler, processor: usize| {
            shape.processors[processor].iter().try_for_each(|step| assemble(a, *step))
        };
        Self::new(shape.processors.len(), &body, observed, &cleared, Law::Model { legal, weak })
    }

    fn of_code(test: &CodeTest) -> Result<Self, LitmusError> {
        let observed = test.observed.iter().map(|(name, source)| ((*name).to_owned(), *source)).collect();
        let law = Law::Predicate { legal: test.legal, binding: test.binding };
        Self::new(test.processors, &test.body, observed, &code::CLEARED, law)
    }

    fn new(
        processors: usize,
        body: program::Body<'_>,
        observed: Vec<(String, Source)>,
        cleared: &[u64],
        law: Law,
    ) -> Result<Self, LitmusError> {
        let finals: Vec<u64> = observed
            .iter()
            .filter_map(|(_, source)| match source {
                Source::Final(at) => Some(*at),
                Source::Register(..) => None,
            })
            .collect();
        let frame = Frame { processors, finals: &finals, cleared };
        let programs =
            (0..processors).map(|index| frame.program(index, body)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { programs, observed, finals, law })
    }

    /// Runs batches and counts outcomes.
    fn run(
        &self,
        engine: &dyn Engine,
        cpuid: &Arc<CpuidTable>,
        rounds: u64,
        patience: Duration,
        result: &mut TestResult,
    ) -> Result<(), LitmusError> {
        let mut machine = Machine::new(engine, cpuid, &self.programs, patience)?;
        for (at, bytes) in patch::INITIAL {
            machine.memory().write(Gpa(at), bytes)?;
        }
        while result.rounds < rounds {
            let batch = BATCH.min(rounds - result.rounds);
            machine.batch(batch)?;
            for round in 0..batch {
                *result.outcomes.entry(self.outcome(&machine, round)?).or_insert(0) += 1;
            }
            result.rounds += batch;
        }
        Ok(())
    }

    fn outcome(&self, machine: &Machine, round: u64) -> Result<model::Outcome, LitmusError> {
        let value = |source: &Source| match *source {
            Source::Register(processor, register) => Ok(machine.row(processor, round)?[register]),
            Source::Final(at) => {
                let slot = self.finals.iter().position(|known| *known == at).unwrap_or(0);
                // Recorded at the begin of the next round.
                Ok(machine.row(PROCESSORS, round + 1)?[slot])
            }
        };
        self.observed.iter().map(|(_, source)| value(source)).collect()
    }

    /// Which of the outcomes should not have been.
    fn judge(&self, cpuid: &CpuidTable, result: &mut TestResult) {
        let seen = result.outcomes.keys();
        let illegal = |legal: &dyn Fn(&model::Outcome) -> bool| {
            seen.clone().filter(|outcome| !legal(outcome)).cloned().collect::<Vec<_>>()
        };
        let forbidden = match &self.law {
            Law::Model { legal, weak } => {
                if !weak.is_empty() {
                    result.weak = Some(seen.clone().filter(|outcome| weak.contains(*outcome)).count() != 0);
                }
                illegal(&|outcome| legal.contains(outcome))
            }
            Law::Predicate { legal, .. } => illegal(&|outcome| legal(outcome)),
        };
        let binds = match self.law {
            Law::Model { .. } | Law::Predicate { binding: Binding::Always, .. } => true,
            Law::Predicate { binding: Binding::Avx, .. } => cpuid.has(Feature::Avx),
            Law::Predicate { binding: Binding::Intel, .. } => host::cpu::cpuid(0, 0)[1] == GENUINE,
        };
        result.verdict = match (forbidden.is_empty(), binds) {
            (true, _) => Verdict::Ok,
            (false, true) => Verdict::Forbidden(forbidden),
            (false, false) => Verdict::NotPromised(forbidden),
        };
    }
}

/// "Genu", the first quarter of the vendor's name.
const GENUINE: u32 = u32::from_le_bytes(*b"Genu");

fn source(what: Observed) -> Source {
    match what {
        Observed::Register(processor, register) => Source::Register(processor, register),
        Observed::Final(variable) => Source::Final(place(variable)),
    }
}

/// Writes a step of a shape.
fn assemble(a: &mut CodeAssembler, step: Step) -> Result<(), IcedError> {
    let registers = [r8d, r9d, r10d, r11d];
    let at = |variable| dword_ptr(place(variable));
    match step {
        Step::Store(to, value) => a.mov(at(to), value),
        Step::Load(to, from) => a.mov(registers[to], at(from)),
        Step::Mfence => a.mfence(),
        Step::Cpuid => a.cpuid(),
        Step::Locked(None, to, Update::Add(value)) => a.lock().add(at(to), value),
        Step::Locked(found, to, update) => {
            match update {
                Update::Exchange(value) => {
                    a.mov(eax, value)?;
                    a.xchg(at(to), eax)?;
                }
                Update::Add(value) => {
                    a.mov(eax, value)?;
                    a.lock().xadd(at(to), eax)?;
                }
                Update::Compare { expected, new } => {
                    a.mov(eax, expected)?;
                    a.mov(ecx, new)?;
                    a.lock().cmpxchg(at(to), ecx)?;
                }
            }
            found.map_or(Ok(()), |found| a.mov(registers[found], eax))
        }
    }
}
