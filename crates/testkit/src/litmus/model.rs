//! x86-TSO as an abstract machine: which outcomes a test may have.
//!
//! The machine of Owens, Sarkar and Sewell (2009), section 3.2: processors share one memory; each has a queue of stores
//! in front of it. A load takes the newest store to its place from its own queue, else the memory; the oldest store of a queue
//! may go to memory at any time; MFENCE waits for an empty queue. A locked instruction holds the lock of the whole
//! memory from its begin to its end and leaves only with an empty queue: nobody else does anything that could be seen
//! meanwhile, so here it is one step of a processor whose queue is empty. CPUID, which serializes, waits as MFENCE does.
//!
//! Without the queues it is the machine of sequential consistency. Tests are so small that all their runs can be walked.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::shape::{Claim, Observed, REGISTERS, Shape, Step, VARIABLES, Variable};

/// The values of [`Shape::observed`], in its order.
pub(super) type Outcome = Vec<u64>;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// Total store order.
    Tso,
    /// Sequential consistency.
    Sc,
}

/// All outcomes that a test can have.
pub(super) fn outcomes(shape: &Shape, model: Model) -> BTreeSet<Outcome> {
    let observed = shape.observed();
    let start = State {
        memory: [0; VARIABLES.len()],
        processors: vec![Processor::default(); shape.processors.len()],
    };
    let mut seen = HashSet::new();
    let mut found = BTreeSet::new();
    let mut left = vec![start];
    while let Some(state) = left.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        let before = left.len();
        for (index, steps) in shape.processors.iter().enumerate() {
            left.extend(state.drain(index));
            left.extend(state.step(index, steps, model));
        }
        if left.len() == before {
            found.insert(observed.iter().map(|what| state.value(*what)).collect());
        }
    }
    found
}

/// The claim of a test's source that these outcomes contradict, if any.
pub(super) fn contradiction<'a>(shape: &'a Shape, outcomes: &BTreeSet<Outcome>) -> Option<&'a Claim> {
    let observed = shape.observed();
    let fits = |outcome: &Outcome, claim: &Claim| {
        observed.iter().zip(outcome).all(|(what, value)| {
            claim.outcome.iter().all(|(other, wanted)| what != other || u64::from(*wanted) == *value)
        })
    };
    shape.claims.iter().find(|claim| outcomes.iter().any(|outcome| fits(outcome, claim)) != claim.allowed)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    memory: [u32; VARIABLES.len()],
    processors: Vec<Processor>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Processor {
    /// Steps done.
    done: usize,
    registers: [u32; REGISTERS],
    /// Stores on their way, the oldest first.
    queue: VecDeque<(Variable, u32)>,
}

impl State {
    /// After the oldest store of a queue has gone to memory.
    fn drain(&self, index: usize) -> Option<Self> {
        let mut next = self.clone();
        let (at, value) = next.processors[index].queue.pop_front()?;
        next.memory[at] = value;
        Some(next)
    }

    /// After the next step of a processor, if it can be done now.
    fn step(&self, index: usize, steps: &[Step], model: Model) -> Option<Self> {
        let mut next = self.clone();
        let processor = &mut next.processors[index];
        let step = *steps.get(processor.done)?;
        processor.done += 1;
        match step {
            Step::Store(at, value) if model == Model::Sc => next.memory[at] = value,
            Step::Store(at, value) => processor.queue.push_back((at, value)),
            Step::Load(to, at) => {
                let own = processor.queue.iter().rev().find(|(queued, _)| *queued == at);
                processor.registers[to] = own.map_or(next.memory[at], |(_, value)| *value);
            }
            // All others wait until the queue is empty.
            _ if !processor.queue.is_empty() => return None,
            Step::Mfence | Step::Cpuid => {}
            Step::Locked(to, at, update) => {
                let found = next.memory[at];
                next.memory[at] = update.apply(found);
                if let Some(to) = to {
                    processor.registers[to] = found;
                }
            }
        }
        Some(next)
    }

    fn value(&self, what: Observed) -> u64 {
        u64::from(match what {
            Observed::Register(processor, register) => self.processors[processor].registers[register],
            Observed::Final(variable) => self.memory[variable],
        })
    }
}
