//! What the machine tells its driver, from whatever thread it happens on.
//!
//! A power-off or a reset happens inside a register write, on a vCPU's thread, with a device's lock held. It must take
//! effect before the guest executes much more, but it cannot be carried out there: pausing waits for that very vCPU.
//! So raising an event holds the gate, which waits for nobody, rouses the vCPUs, and posts the event to the driver.
//!
//! Events carry the number of the boot they belong to. The driver drops those of an earlier one: two vCPUs may ask for
//! the same reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use engine::VcpuId;

use crate::gate::{Doorbell, Gate};
use crate::handle::Message;

/// Something that ends the present boot of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest wrote this value to `isa-debug-exit`.
    DebugExit(u32),
    /// A vCPU met a triple fault.
    TripleFault(VcpuId),
    /// A thread of ours panicked: which one.
    Panicked(&'static str),
    /// The host has no signal stack for a vCPU's thread.
    NoShelter,
}

/// Where events are raised. Cloned freely.
#[derive(Clone)]
pub(crate) struct EventSink {
    gate: Arc<Gate>,
    bells: Arc<[Arc<Doorbell>]>,
    boot: Arc<AtomicU64>,
    driver: Sender<Message>,
}

impl EventSink {
    /// A sink that holds `gate`, rouses `bells` and posts to `driver`.
    pub(crate) fn new(gate: Arc<Gate>, bells: Arc<[Arc<Doorbell>]>, driver: Sender<Message>) -> Self {
        Self { gate, bells, boot: Arc::default(), driver }
    }

    /// Raises an event. Takes no lock that anybody holds for long.
    pub(crate) fn raise(&self, event: Event) {
        let boot = self.boot();
        self.gate.hold();
        self.rouse();
        // A driver that has gone away has stopped the VM already.
        let _ = self.driver.send(Message::Event { boot, event });
    }

    /// Makes every vCPU look at the gate.
    pub(crate) fn rouse(&self) {
        for bell in self.bells.iter() {
            bell.leave();
        }
    }

    /// The gate that events hold.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The number of the present boot, from 0.
    pub(crate) fn boot(&self) -> u64 {
        self.boot.load(Ordering::SeqCst)
    }

    /// Begins the next boot: events raised so far are void, and the gate is no longer held. No vCPU may run.
    pub(crate) fn next_boot(&self) {
        self.boot.fetch_add(1, Ordering::SeqCst);
        self.gate.release();
    }
}

/// Held by a thread for as long as it lives: tells the driver if the thread panics.
#[derive(Clone)]
pub(crate) struct Watch {
    /// What the thread is.
    pub(crate) thread: &'static str,
    /// Whom to tell.
    pub(crate) events: EventSink,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.events.raise(Event::Panicked(self.thread));
        }
    }
}
