//! Taking chains, serving them, giving them back.

use std::collections::VecDeque;
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

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, queue: u16) -> Self {
        Self { shared, queue }
    }

    /// Serves the queue, or all of a device that is served by one thread, until the device is dropped. To be called on a
    /// thread of its own.
    pub fn live(&self) {
        match self.shared.service.pump() {
            None => {
                while self.wait() {
                    self.step();
                }
            }
            Some(pump) => {
                while self.shared.lock().phase != Phase::Ended {
                    if !pump.turn(&Queues(&self.shared)) {
                        pump.wait();
                    }
                }
            }
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
            let ready = kicked && state.serves(self.queue);
            let closed_for = self.shared.service.closed_for();
            if ready && closed_for.is_zero() {
                return true;
            }
            if ready {
                // Whoever pauses, resets or drops the device does not wait for that.
                let waited = self.shared.work.wait_timeout(state, closed_for);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Serves one batch, or moves once what can be moved; false if there was nothing to do.
    pub fn step(&self) -> bool {
        let queues = Queues(&self.shared);
        if let Some(pump) = self.shared.service.pump() {
            return pump.turn(&queues);
        }
        if !self.shared.service.closed_for().is_zero() {
            return false;
        }
        let mut batch = queues.take(self.queue, BATCH);
        if batch.is_empty() {
            return false;
        }
        // Whoever pauses or resets the device waits for one request, not for a batch.
        while queues.may_serve(self.queue)
            && self.shared.service.closed_for().is_zero()
            && let Some(chain) = batch.next()
        {
            let request = Request {
                queue: self.queue,
                features: batch.features(),
                memory: queues.memory(),
                chain: &chain,
            };
            let answer = self.shared.service.serve(&request);
            batch.answer(chain.ticket, answer);
        }
        true
    }
}

/// A device's queues, for the thread that serves them.
pub struct Queues<'a>(&'a Shared);

impl<'a> Queues<'a> {
    /// Where buffers are.
    pub fn memory(&self) -> &'a GuestMemory {
        &self.0.memory
    }

    /// What was negotiated.
    pub fn features(&self) -> u64 {
        self.0.lock().registers.driver_features
    }

    /// Whether nobody wants the device quiet, and the queue is of use.
    fn may_serve(&self, queue: u16) -> bool {
        self.0.lock().serves(queue)
    }

    /// Whether a driver has set the device up and wants something of it.
    pub fn is_driven(&self) -> bool {
        self.0.lock().serves(0)
    }

    /// Says to the driver that the device's configuration has changed. It has, before this.
    pub fn config_changed(&self) {
        self.0.lock().config_changed();
    }

    /// How many times the device was reset. What a device knows from before, its driver does not know any more.
    pub fn resets(&self) -> u64 {
        self.0.lock().resets
    }

    /// Takes chains from a queue, `most` at most; none while the device is paused, being reset, or in need of it. When there
    /// are fewer than that, the driver will notify of the next one.
    pub fn take(&self, queue: u16, most: usize) -> Batch<'a> {
        let mut batch = Batch {
            shared: self.0,
            queue,
            features: 0,
            chains: VecDeque::new(),
            more: false,
            count: 0,
            answers: Vec::new(),
        };
        batch.take_more(most);
        batch
    }

    /// Takes chains with what the guest sends to `far`, `most` at most and as long as that is open, and gives each back when
    /// `send` has dealt with it. True if there may be more, for which it is open.
    pub fn drain<F: ?Sized>(
        &self,
        queue: u16,
        most: usize,
        far: &mut F,
        is_open: impl Fn(&F) -> bool,
        mut send: impl FnMut(&mut F, &Chain) -> Result<(), Malformed>,
    ) -> bool {
        if !is_open(far) {
            return false;
        }
        let mut batch = self.take(queue, most);
        while is_open(far)
            && let Some(chain) = batch.next()
        {
            let sent = send(far, &chain);
            batch.answer(chain.ticket, sent.map(|()| 0));
        }
        batch.has_more() && is_open(far)
    }
}

/// Chains that are out. Dropping it gives those back that have been answered, with one interrupt, and makes the others, which
/// are the last, available again. That also happens if serving one panics: a reset or a pause must not wait for ever.
pub struct Batch<'a> {
    shared: &'a Shared,
    queue: u16,
    features: u64,
    chains: VecDeque<Chain>,
    more: bool,
    /// How many are out.
    count: usize,
    answers: Vec<Answer>,
}

/// Chains taken from a queue.
struct Taken {
    /// What was negotiated.
    features: u64,
    chains: Vec<Chain>,
    /// There may be more of which the driver will not notify.
    more: bool,
}

/// A served chain.
type Answer = (Ticket, Result<u32, Malformed>);

impl Batch<'_> {
    /// The features that were negotiated when the chains were taken.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether there is no chain to serve.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether the queue may have more of which the driver will not notify.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Takes `most` more at most.
    pub fn take_more(&mut self, most: usize) {
        let taken = self.shared.lock().take(self.queue, &self.shared.memory, most);
        self.count += taken.chains.len();
        self.chains.extend(taken.chains);
        (self.features, self.more) = (taken.features, taken.more);
    }

    /// The next chain, which is to be answered.
    #[expect(clippy::should_implement_trait, reason = "more may come after none")]
    pub fn next(&mut self) -> Option<Chain> {
        self.chains.pop_front()
    }

    /// Has a chain back unanswered, the last that was given out first.
    pub fn put_back(&mut self, chain: Chain) {
        self.chains.push_front(chain);
    }

    /// Answers a chain: so many bytes have been written to the beginning of its writable buffers.
    pub fn answer(&mut self, ticket: Ticket, answer: Result<u32, Malformed>) {
        self.answers.push((ticket, answer));
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let mut state = self.shared.lock();
        // What was not answered, because serving it panicked, is lost.
        let lost = std::thread::panicking();
        let back: Vec<Ticket> = self.chains.iter().map(|chain| chain.ticket).collect();
        state.give(self.queue, &self.shared.memory, self.count, &self.answers, &back, lost);
        // A reset that has waited for these.
        state.finish_reset(&*self.shared.service);
        if state.out() == 0 {
            self.shared.quiet.notify_all();
        }
    }
}

impl State {
    /// Takes chains, if any may be taken.
    fn take(&mut self, number: u16, memory: &GuestMemory, most: usize) -> Taken {
        let nothing = Taken { features: self.registers.driver_features, chains: Vec::new(), more: false };
        if !self.serves(number) {
            return nothing;
        }
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return nothing };
        let Some(ring) = &mut queue.ring else { return nothing };
        let mut chains = Vec::new();
        let mut fill = || -> Result<bool, QueueError> {
            ring.ignore(memory)?;
            while chains.len() < most {
                match ring.pop(memory)? {
                    Some(chain) => chains.push(chain),
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
                return nothing;
            }
        }
        queue.out += u32::try_from(chains.len()).unwrap_or(0);
        Taken { chains, more: queue.kicked, ..nothing }
    }

    /// Ends that `count` chains are out: some are given back, the others put back, unless the driver has taken the ring away
    /// meanwhile.
    fn give(
        &mut self,
        number: u16,
        memory: &GuestMemory,
        count: usize,
        answers: &[Answer],
        back: &[Ticket],
        lost: bool,
    ) {
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return };
        queue.out = queue.out.saturating_sub(u32::try_from(count).unwrap_or(0));
        if self.resetting {
            return;
        }
        let failed = self.registers.status & super::function::status::NEEDS_RESET != 0;
        let Some(ring) = queue.ring.as_mut().filter(|_| !failed) else { return };
        for ticket in back.iter().rev() {
            ring.put_back(*ticket);
            queue.kicked = true;
        }
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
