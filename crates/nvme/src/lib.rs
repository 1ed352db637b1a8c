//! An NVM Express controller (Base Specification 1.4) with one namespace, as a PCI function.
//!
//! | module | concept |
//! |---|---|
//! | `registers` | what a driver reads and writes |
//! | `controller` | the state, its queues, its resets, its interrupts |
//! | `queue` | submission and completion queues: rings in guest memory |
//! | `command`, `status` | a command, and how it ended |
//! | `prp` | where a command's data is |
//! | `admin`, `identify`, `features`, `log`, `events` | commands for the controller, and what they are about |
//! | `io` | commands for the disk |
//! | `work` | threads that serve queues |
//! | `saved` | the saved form |
//!
//! # Scheme
//! As with virtio devices: everything that has state sits behind one lock. vCPUs come by with register accesses, which take
//! a few memory accesses; a doorbell notes how far the driver is and wakes a worker. Each submission queue has a worker, which
//! *takes* a batch of commands under the lock, serves them without it, and *gives* completions under the lock, with one
//! interrupt. The admin queue's worker does its commands under the lock, for they change the state.
//!
//! **No completion is ever without room.** A command is taken only if the completion queue has an entry for it
//! (`queue::Completion::owed`), so what is out is bounded by what the driver has made room for, and nothing is held back later.
//!
//! **Reset at any moment.** A driver that resets the controller may reuse its memory when the controller is not ready any more. Commands
//! that are being served still use it; so it stays ready until the last of them has come back, which is what drivers wait
//! for (3.1.5). A queue is deleted likewise: when nothing of it is out.
//!
//! **A driver that lies** hears of it where the specification has a place for it: a command's status, an event for a doorbell
//! that cannot be. Queues that are not in memory leave the controller failed (`CSTS.CFS`) until it is reset.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod admin;
mod command;
mod controller;
mod events;
mod features;
mod identify;
mod io;
mod log;
mod page;
mod prp;
mod queue;
mod registers;
mod saved;
mod status;
#[cfg(test)]
mod tests;
mod work;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use backend::Volume;
use bus::pci::{Function, Socket};
use bus::{Device, Lifecycle, Region};
use host::jail::Role;
use memory::GuestMemory;
use state::{Record, StateError};
use x86::PAGE_SIZE;

use controller::{Controller, Phase};
use registers::BAR;
pub use registers::BAR_BYTES;
pub use work::Worker;

/// The device's name.
const NAME: &str = "nvme";

/// The most pages, and bytes, that a command moves (`MDTS`): a power of two.
const MOST_TRANSFER_PAGES: u64 = 256;
const MOST_TRANSFER_BYTES: u64 = MOST_TRANSFER_PAGES * PAGE_SIZE;

/// The most I/O queues of a controller.
const MOST_QUEUES: u16 = 16;

/// What the function and its workers share.
struct Shared {
    // Glue.
    volume: Volume,
    memory: Arc<GuestMemory>,
    // Volatile.
    state: Mutex<Controller>,
    /// Workers wait here for work, each by its queue.
    work: Vec<Condvar>,
    /// Whoever wants the device quiet waits here for commands to come back.
    quiet: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Controller> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the workers that have something to do.
    fn wake_busy(&self, state: MutexGuard<'_, Controller>) {
        let busy: Vec<&Condvar> =
            (0..).zip(&self.work).filter(|(queue, _)| state.has_work(*queue)).map(|(_, work)| work).collect();
        drop(state);
        busy.into_iter().for_each(Condvar::notify_one);
    }

    /// Waits until no command is out. No new one is taken meanwhile, for the caller has seen to that.
    fn wait_quiet<'a>(&'a self, mut state: MutexGuard<'a, Controller>) -> MutexGuard<'a, Controller> {
        while state.out() > 0 {
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

/// A controller on the PCI bus. Dropping it ends its workers.
pub struct Nvme(Arc<Shared>);

impl Nvme {
    /// A controller in the power-on state, the machine's disk `number`, with so many I/O queues of either kind, 1 at least and
    /// 16 at most. Its workers are the caller's to run, as many as [`Nvme::workers`] gives.
    pub fn new(volume: Volume, number: u16, queues: u16, socket: Socket) -> Self {
        let queues = queues.clamp(1, MOST_QUEUES);
        let disk =
            identify::Disk { number, sectors: volume.sectors(), read_only: volume.disk().is_read_only() };
        let memory = socket.memory.clone();
        let state = Mutex::new(Controller::new(disk, queues, socket));
        let work = (0..=queues).map(|_| Condvar::new()).collect();
        Self(Arc::new(Shared { volume, memory, state, work, quiet: Condvar::new() }))
    }

    /// What these workers do on the host.
    pub fn role(&self) -> Role {
        Role::Disk
    }

    /// A worker for each submission queue, the admin queue's first.
    pub fn workers(&self) -> Vec<Worker> {
        (0..).zip(&self.0.work).map(|(queue, _)| Worker::new(self.0.clone(), queue)).collect()
    }

    /// Ends the workers, after what they are doing.
    pub fn end(&self) {
        self.0.lock().enter(Phase::Ended);
        self.0.work.iter().for_each(Condvar::notify_all);
    }
}

impl Drop for Nvme {
    fn drop(&mut self) {
        self.end();
    }
}

impl Device for Nvme {
    fn regions(&self) -> Vec<Region> {
        // The window leads here, by the place that the guest gives the registers.
        Vec::new()
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        if region == usize::from(BAR) {
            self.0.lock().read_bar(offset, data);
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        if region == usize::from(BAR) {
            let mut state = self.0.lock();
            state.write_bar(offset, data);
            self.0.wake_busy(state);
        }
    }
}

impl Function for Nvme {
    fn read_config(&mut self, register: u64, data: &mut [u8]) {
        self.0.lock().endpoint.config().read(register, data);
    }

    fn write_config(&mut self, register: u64, data: &[u8]) {
        let mut state = self.0.lock();
        state.endpoint.config().write(register, data);
        state.endpoint.follow();
        self.0.wake_busy(state);
    }
}

impl Lifecycle for Nvme {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&mut self) {
        let mut state = self.0.lock();
        state.begin_reset();
        self.0.wait_quiet(state).power_on();
    }

    fn pause(&mut self) {
        let mut state = self.0.lock();
        state.enter(Phase::Paused);
        drop(self.0.wait_quiet(state));
    }

    fn resume(&mut self) {
        let mut state = self.0.lock();
        state.enter(Phase::Running);
        state.tell_events();
        self.0.wake_busy(state);
    }

    fn save(&self) -> Record {
        self.0.lock().save()
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        self.0.lock().restore(record)
    }
}
