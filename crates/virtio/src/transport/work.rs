//! Taking chains, serving them, giving them back.

use std::sync::{Arc, PoisonError};

use memory::GuestMemory;

use super::Shared;
use super::function::{Phase, State};
use crate::queue::{Chain, QueueError, Ticket};
use crate::service::{Malformed, Request};

/// The most chains that are taken at once: what waits behind a slow one is not much.
const BATCH: usize = 32;

/// What becomes of the chains of one queue, one batch after the other.
pub struct Worker {
    shared: Arc<Shared>,
    queue: u16,
}

/// The chains of a batch and what was negotiated when they were taken.
struct Batch {
    features: u64,
    chains: Vec<Chain>,
}

/// A served chain.
type Answer = (Ticket, Result<u32, Malformed>);

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, queue: u16) -> Self {
        Self { shared, queue }
    }

    /// Serves the queue until the device is dropped. To be called on a thread of its own.
    pub fn live(&self) {
        while self.wait() {
            self.step();
        }
    }

    /// Waits for something to do; false if there will not be anything any more.
    fn wait(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            if state.phase == Phase::Ended {
                return false;
            }
            let kicked = state.queues.get(usize::from(self.queue)).is_some_and(|queue| queue.kicked);
            if kicked && state.serves(self.queue) {
                return true;
            }
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Serves one batch; false if there was nothing to serve.
    pub fn step(&self) -> bool {
        let memory = &*self.shared.memory;
        let batch = self.shared.lock().take(self.queue, memory);
        if batch.chains.is_empty() {
            return false;
        }
        let giving = Giving { worker: self, count: batch.chains.len(), answers: Vec::new() };
        let serve = |chain: &Chain| {
            let request = Request { queue: self.queue, features: batch.features, memory, chain };
            (chain.ticket, self.shared.service.serve(&request))
        };
        giving.finish(batch.chains.iter().map(serve));
        true
    }
}

/// Gives a batch back, also if serving it panicked: a reset or a pause must not wait for ever.
struct Giving<'a> {
    worker: &'a Worker,
    count: usize,
    answers: Vec<Answer>,
}

impl Giving<'_> {
    fn finish(mut self, answers: impl Iterator<Item = Answer>) {
        self.answers.extend(answers);
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        let Worker { shared, queue } = self.worker;
        let mut state = shared.lock();
        // What was not answered, because serving it panicked, is lost.
        let lost = std::thread::panicking();
        state.give(*queue, &shared.memory, self.count, &self.answers, lost);
        if state.out() == 0 {
            shared.quiet.notify_all();
        }
    }
}

impl State {
    /// Takes chains, if any may be taken.
    fn take(&mut self, number: u16, memory: &GuestMemory) -> Batch {
        let mut batch = Batch { features: self.registers.driver_features, chains: Vec::new() };
        if !self.serves(number) {
            return batch;
        }
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return batch };
        let Some(ring) = &mut queue.ring else { return batch };
        let mut fill = || -> Result<bool, QueueError> {
            ring.ignore(memory)?;
            while batch.chains.len() < BATCH {
                match ring.pop(memory)? {
                    Some(chain) => batch.chains.push(chain),
                    None if ring.listen(memory)? => return Ok(true),
                    None => return Ok(false),
                }
            }
            Ok(true)
        };
        match fill() {
            Ok(more) => queue.kicked = more,
            Err(_) => {
                self.fail();
                batch.chains.clear();
                return batch;
            }
        }
        queue.out += u32::try_from(batch.chains.len()).unwrap_or(0);
        batch
    }

    /// Gives a batch of `count` chains back, unless the driver has taken the ring away meanwhile.
    fn give(&mut self, number: u16, memory: &GuestMemory, count: usize, answers: &[Answer], lost: bool) {
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return };
        queue.out = queue.out.saturating_sub(u32::try_from(count).unwrap_or(0));
        if self.resetting {
            self.finish_reset();
            return;
        }
        let failed = self.registers.status & super::function::status::NEEDS_RESET != 0;
        let Some(ring) = queue.ring.as_mut().filter(|_| !failed) else { return };
        let mut give = || -> Result<(bool, bool), QueueError> {
            let mut good = !lost;
            for (ticket, answer) in answers {
                match answer {
                    Ok(written) => ring.push(memory, *ticket, *written)?,
                    Err(Malformed) => good = false,
                }
            }
            Ok((good, ring.wants_interrupt(memory)?))
        };
        match give() {
            Ok((good, interrupt)) => {
                if interrupt {
                    self.interrupt_queue(number);
                }
                if !good {
                    self.fail();
                }
            }
            Err(_) => self.fail(),
        }
    }
}
