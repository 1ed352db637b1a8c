//! A virtio device as a PCI function (VIRTIO 1.2, 4.1; no legacy interface).
//!
//! # Scheme
//! Everything that has state sits in one [`State`](function::State) behind one lock: configuration space, registers, queues,
//! interrupts. The [`Service`] has none that a reset concerns. Two kinds of threads come by:
//!
//! - vCPUs, with register accesses. They only ever hold the lock for a few memory accesses. A notification marks the queue
//!   and wakes its worker, nothing else.
//! - Workers, one for each queue, whose life is [`Worker::live`]: *take* a batch of chains under the lock, serve them
//!   without it, *give* all of them back under the lock and interrupt once. So a slow disk stops nobody but its own
//!   worker, and completions come in batches.
//!
//! A device whose chains wait for what happens elsewhere ([`crate::service::Pump`]) has one worker for all queues, which also
//! waits for the host. It takes chains when it has something for them, and puts back what it took too much of, so that
//! nothing is out while it waits.
//!
//! # Reset at any moment
//! A driver that resets the device may reuse its memory as soon as it reads status 0. Requests that are being served still
//! use it. So a reset with requests out begins at once, in that nothing is taken any more and what comes back is dropped,
//! but the status reads as before until the last of them has come back (2.4.1: a driver waits for that). A vCPU never
//! waits for a disk. The driver of the VM's states does: [`Lifecycle::pause`] and [`Lifecycle::reset`] return when nothing is
//! out.
//!
//! # A driver that lies
//! Whatever a ring cannot say sets `DEVICE_NEEDS_RESET` and interrupts for a change of configuration; nothing is taken or
//! given back until the reset. Registers refuse what they cannot hold.
//!
//! # Lock order
//! The bus's lock of the device, the state, then (while it is held) the window of the bridge, interrupt lines and local
//! APICs. Workers take the state only.

mod capabilities;
mod function;
mod registers;
mod saved;
#[cfg(test)]
pub(crate) mod tests;
mod work;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bus::pci::{Function, Socket};
use bus::{Device, Lifecycle, Region};
use host::jail::Role;
use memory::GuestMemory;
use state::{Record, StateError};

use crate::service::Service;
use capabilities::BAR;
pub use capabilities::BAR_BYTES;
use function::{Phase, State};
pub use work::{Batch, Queues, Worker};

/// The most descriptors of a queue, and what it has unless the driver wants fewer.
pub const QUEUE_SIZE: u16 = 256;

/// What the function and its workers share.
struct Shared {
    // Static.
    name: &'static str,
    // Glue.
    service: Box<dyn Service>,
    memory: Arc<GuestMemory>,
    // Volatile.
    state: Mutex<State>,
    /// Workers wait here for work.
    work: Condvar,
    /// Whoever wants the device quiet waits here for requests to come back.
    quiet: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the workers.
    fn wake(&self) {
        match self.service.pump() {
            Some(pump) => pump.wake(),
            None => self.work.notify_all(),
        }
    }

    /// Waits until no request is out. No new one is taken meanwhile, for the caller has seen to that.
    fn wait_quiet<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.out() > 0 {
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

/// A virtio device on the PCI bus. Dropping it ends its workers.
pub struct VirtioPci(Arc<Shared>);

impl VirtioPci {
    /// A device in the power-on state. Its workers are the caller's to run, as many as [`VirtioPci::workers`] gives.
    pub fn new(service: Box<dyn Service>, socket: Socket) -> Self {
        let memory = socket.memory.clone();
        let state = Mutex::new(State::new(&*service, socket));
        Self(Arc::new(Shared {
            name: service.kind().name,
            service,
            memory,
            state,
            work: Condvar::new(),
            quiet: Condvar::new(),
        }))
    }

    /// What these workers do on the host.
    pub fn role(&self) -> Role {
        self.0.service.role()
    }

    /// A worker for each queue, or one for all of them.
    pub fn workers(&self) -> Vec<Worker> {
        let count = if self.0.service.pump().is_some() { 1 } else { self.0.service.queues() };
        (0..count).map(|queue| Worker::new(self.0.clone(), queue)).collect()
    }

    /// Ends the workers, after what they are doing.
    pub fn end(&self) {
        self.0.lock().enter(Phase::Ended);
        self.0.wake();
    }

    /// After an access: workers may have something to do now.
    fn wake_workers(&self, state: MutexGuard<'_, State>) {
        let wake = state.has_work();
        drop(state);
        if wake {
            self.0.wake();
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.end();
    }
}

impl Device for VirtioPci {
    fn regions(&self) -> Vec<Region> {
        // The window leads here, by the place that the guest gives the registers.
        Vec::new()
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        if region == usize::from(BAR) {
            self.0.lock().read_bar(&*self.0.service, offset, data);
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        if region == usize::from(BAR) {
            let mut state = self.0.lock();
            state.write_bar(&*self.0.service, offset, data);
            self.wake_workers(state);
        }
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, register: u64, data: &mut [u8]) {
        self.0.lock().read_config(&*self.0.service, register, data);
    }

    fn write_config(&mut self, register: u64, data: &[u8]) {
        let mut state = self.0.lock();
        state.write_config(&*self.0.service, register, data);
        self.wake_workers(state);
    }
}

impl Lifecycle for VirtioPci {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn reset(&mut self) {
        let mut state = self.0.lock();
        state.begin_reset(&*self.0.service);
        let mut state = self.0.wait_quiet(state);
        state.power_on(&*self.0.service);
    }

    fn pause(&mut self) {
        let mut state = self.0.lock();
        state.enter(Phase::Paused);
        drop(self.0.wait_quiet(state));
    }

    fn resume(&mut self) {
        let mut state = self.0.lock();
        state.enter(Phase::Running);
        self.wake_workers(state);
    }

    fn save(&self) -> Record {
        self.0.lock().save(&*self.0.service)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        self.0.lock().restore(self.0.name, &*self.0.service, record)
    }
}
