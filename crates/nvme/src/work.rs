//! Taking commands, serving them, giving completions.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use crate::Shared;
use crate::command::Command;
use crate::controller::{ADMIN, Answer, Phase};
use crate::io::Server;

/// The most commands that are taken at once: what waits behind a slow one is not much.
const BATCH: u16 = 32;

/// What becomes of the commands of one submission queue, one batch after the other.
pub struct Worker {
    shared: Arc<Shared>,
    queue: u16,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, queue: u16) -> Self {
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
            let Some(work) = self.shared.work.get(usize::from(self.queue)) else { return false };
            let closed_for = self.shared.volume.closed_for();
            state = match state.has_work(self.queue) {
                true if self.queue == ADMIN || closed_for.is_zero() => return true,
                // Whoever pauses, resets or drops the device does not wait for that.
                true => work.wait_timeout(state, closed_for).unwrap_or_else(PoisonError::into_inner).0,
                false => work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Serves one batch; false if there was nothing to do.
    pub fn step(&self) -> bool {
        if self.queue == ADMIN { self.administer() } else { self.serve() }
    }

    /// Admin commands, and the end of a shutdown.
    fn administer(&self) -> bool {
        let mut state = self.shared.lock();
        if !state.wants_flush() {
            let served = state.serve_admin();
            // Queues may have been made, or there may be room for completions.
            self.shared.wake_busy(state);
            return served;
        }
        state.flushing = true;
        drop(state);
        // A shutdown is over whether the host can keep what was written or not; there is nobody to tell.
        let _ = self.shared.volume.disk().flush();
        let mut state = self.shared.lock();
        state.flushing = false;
        state.registers.finish_shutdown();
        state.finish_reset();
        self.shared.quiet.notify_all();
        true
    }

    fn serve(&self) -> bool {
        let shared = &*self.shared;
        if !shared.volume.closed_for().is_zero() {
            return false;
        }
        let (commands, write_cache) = {
            let mut state = shared.lock();
            (state.take(self.queue, BATCH), state.features.has_write_cache())
        };
        if commands.is_empty() {
            return false;
        }
        let server = Server { volume: &shared.volume, memory: &shared.memory, write_cache };
        let mut batch = Batch { shared, queue: self.queue, commands: commands.into(), answers: Vec::new() };
        // Whoever pauses or resets the device waits for one command, not for a batch.
        while shared.lock().serves(self.queue)
            && shared.volume.closed_for().is_zero()
            && let Some(command) = batch.commands.front()
        {
            let answer = server.serve(command);
            batch.commands.pop_front();
            batch.answers.push(answer);
        }
        true
    }
}

/// Commands that are out. Dropping it completes those that have been answered, with one interrupt, and puts the others back, which
/// are the last. That also happens if serving one panics: a reset or a pause must not wait for ever.
struct Batch<'a> {
    shared: &'a Shared,
    queue: u16,
    commands: VecDeque<Command>,
    answers: Vec<Answer>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let unserved = u16::try_from(self.commands.len()).unwrap_or(u16::MAX);
        state.give(self.queue, &self.answers, unserved);
        if std::thread::panicking() {
            state.fail();
        }
        if state.out() == 0 {
            self.shared.quiet.notify_all();
        }
        self.shared.wake_busy(state);
    }
}
