//! The controller's saved form. Commands are never part of it: a paused controller has none out, and what a driver has
//! submitted and nobody has taken is in guest memory.

use bus::pci::EndpointState;
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::NAME;
use crate::controller::{ADMIN, Controller};
use crate::events::Events;
use crate::features::Features;
use crate::log::Logs;
use crate::queue::{Completion, Ring, Submission};
use crate::registers::Registers;

#[derive(Serialize, Deserialize)]
struct NvmeState {
    /// The disk's size: a record of another disk in this place is refused.
    sectors: u64,
    endpoint: EndpointState,
    registers: Registers,
    submissions: Vec<Option<SavedSubmission>>,
    completions: Vec<Option<SavedCompletion>>,
    features: Features,
    events: Events,
    logs: Logs,
}

#[derive(Serialize, Deserialize)]
struct SavedSubmission {
    ring: Ring,
    head: u16,
    tail: u16,
    completion: u16,
}

#[derive(Serialize, Deserialize)]
struct SavedCompletion {
    ring: Ring,
    head: u16,
    tail: u16,
    phase: bool,
    vector: Option<u16>,
}

impl Saved for NvmeState {
    const NAME: &'static str = NAME;
    const VERSION: u16 = 1;
}

fn damaged(reason: &str) -> StateError {
    StateError::Damaged { name: NAME, reason: reason.to_owned() }
}

impl Controller {
    pub(crate) fn save(&self) -> Record {
        let submission = |queue: &Submission| SavedSubmission {
            ring: queue.ring,
            head: queue.head,
            tail: queue.tail,
            completion: queue.completion,
        };
        let completion = |queue: &Completion| SavedCompletion {
            ring: queue.ring,
            head: queue.head,
            tail: queue.tail,
            phase: queue.phase,
            vector: queue.vector,
        };
        Record::encode(&NvmeState {
            sectors: self.disk.sectors,
            endpoint: self.endpoint.save(),
            registers: self.registers,
            submissions: self.submissions.iter().map(|queue| queue.as_ref().map(submission)).collect(),
            completions: self.completions.iter().map(|queue| queue.as_ref().map(completion)).collect(),
            features: self.features.clone(),
            events: self.events.clone(),
            logs: self.logs.clone(),
        })
    }

    pub(crate) fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let saved: NvmeState = record.decode()?;
        let counts = (saved.submissions.len(), saved.completions.len());
        if saved.sectors != self.disk.sectors || counts != (self.submissions.len(), self.completions.len()) {
            return Err(damaged("it is another disk's"));
        }
        let possible = saved.registers.is_possible()
            && saved.features.is_possible()
            && saved.events.is_possible()
            && saved.logs.is_possible();
        if !possible {
            return Err(damaged("it holds what a controller cannot"));
        }
        let (submissions, completions) = self.checked_queues(&saved)?;
        self.endpoint.check(NAME, &saved.endpoint)?;
        self.registers = saved.registers;
        (self.submissions, self.completions) = (submissions, completions);
        (self.features, self.events, self.logs) = (saved.features, saved.events, saved.logs);
        (self.resetting, self.flushing) = (false, false);
        let waits = self.waits();
        self.endpoint.restore(NAME, saved.endpoint, waits)
    }

    fn checked_queues(&self, saved: &NvmeState) -> Result<Queues, StateError> {
        let has = |queue: u16| matches!(saved.completions.get(usize::from(queue)), Some(Some(_)));
        let submission = |queue: &SavedSubmission| {
            let SavedSubmission { ring, head, tail, completion } = *queue;
            let possible = ring.is_possible() && ring.has(head) && ring.has(tail) && has(completion);
            let queue = Submission { head, tail, ..Submission::new(ring, completion) };
            possible.then_some(queue).ok_or_else(|| damaged("a submission queue that cannot be"))
        };
        let vectors = self.endpoint.vectors();
        let completion = |queue: &SavedCompletion| {
            let SavedCompletion { ring, head, tail, phase, vector } = *queue;
            let vector_exists = vector.is_none_or(|vector| vector < vectors);
            let possible = ring.is_possible() && ring.has(head) && ring.has(tail) && vector_exists;
            let queue = Completion { head, tail, phase, ..Completion::new(ring, vector) };
            possible.then_some(queue).ok_or_else(|| damaged("a completion queue that cannot be"))
        };
        // A controller that is ready has its admin queues, and one that is not has none.
        let admin = |exists: bool| exists == saved.registers.is_ready();
        let first = (saved.submissions.first(), saved.completions.first());
        let paired = match first {
            (Some(Some(submission)), Some(Some(_))) => admin(true) && submission.completion == ADMIN,
            (Some(None), Some(None)) => admin(false),
            _ => false,
        };
        if !paired {
            return Err(damaged("no pair of admin queues"));
        }
        let submissions = saved.submissions.iter().map(|queue| queue.as_ref().map(submission).transpose());
        let completions = saved.completions.iter().map(|queue| queue.as_ref().map(completion).transpose());
        Ok((submissions.collect::<Result<_, _>>()?, completions.collect::<Result<_, _>>()?))
    }
}

type Queues = (Vec<Option<Submission>>, Vec<Option<Completion>>);
