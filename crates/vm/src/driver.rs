//! The one driver of a VM's states.
//!
//! ```text
//! Built ── start ──▶ Running ◀── pause / resume ──▶ Paused
//!                       │  ╲                            │
//!                       │   reset (a boot ends, the     │
//!                       ▼   next begins)                ▼
//!                    Stopped (why) ◀────────────────────┘
//! ```
//!
//! A thread of its own owns the machine and does every transition, one at a time, in the order in which they were
//! asked for: requests of [`VmHandle`]s and events of the machine arrive in one queue. Nobody else starts, stops,
//! resets or saves anything, so no transition ever meets half of another.
//!
//! Order of a pause: the gate is shut, every vCPU roused, and the driver waits until all are out; then the timer
//! thread goes quiet, the clock stops, and the devices pause. After that nothing of the guest moves. A resume is the
//! same backwards. A stop ends the gate instead, and the threads with it.
//!
//! A reset needs the vCPUs out and the timers quiet; then every device returns to its power-on state, firmware and
//! kernel are loaded anew and the vCPUs get the boot state. The clock goes on: a machine's crystal does not stop at a
//! reset.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::VcpuId;
use host::jail::{self, Role};

use crate::VmError;
use crate::events::Event;
use crate::handle::{Board, Message, OnReset, Public, State, Stats, Stopped, VcpuFigures, VmHandle};
use crate::machine::Machine;
use crate::vcpu_thread::VcpuCell;

/// The driver of one VM, on its own thread.
struct Driver {
    machine: Machine,
    threads: Vec<JoinHandle<()>>,
    board: Arc<Board>,
    state: State,
    resets: u64,
}

/// Starts a built machine.
///
/// # Errors
/// If the host has no threads for us.
pub(crate) fn start(machine: Machine) -> Result<VmHandle, VmError> {
    let board = Arc::new(Board::new(State::Running));
    let handle =
        VmHandle::new(machine.outbox.clone(), board.clone(), machine.serial_inputs(), machine.ports.inputs());
    let threads = Vec::new();
    let mut driver = Driver { machine, threads, board, state: State::Paused, resets: 0 };
    for vcpu in &driver.machine.vcpus {
        driver.threads.push(vcpu.spawn(driver.machine.events.clone())?);
    }
    host::thread::spawn("driver", Role::Driver, move || driver.live()).map_err(VmError::Thread)?;
    Ok(handle)
}

/// Whatever becomes of the driver, those who wait are told that the VM has stopped.
struct LastWord(Arc<Board>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.update(|public| {
            public.state = State::Stopped;
            public.stopped.get_or_insert_with(|| Stopped::Failed("the VM's driver panicked".into()));
        });
    }
}

impl Drop for Driver {
    /// However it ends, no vCPU outlives it.
    fn drop(&mut self) {
        let events = &self.machine.events;
        events.gate().end();
        events.rouse();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the panic hook, and to us by an event.
            let _ = thread.join();
        }
    }
}

impl Driver {
    fn live(mut self) {
        let last_word = LastWord(self.board.clone());
        // No guest instruction before the whole process is in its jail.
        jail::settled();
        self.resume();
        // The machine's own event sink keeps the queue open, so receiving ends only by our own decision.
        while let Ok(message) = self.machine.inbox.recv() {
            if let Some(reason) = self.handle(message) {
                self.stop(reason);
                break;
            }
        }
        drop(last_word);
    }

    /// Does one thing; `Some` if it was the last.
    fn handle(&mut self, message: Message) -> Option<Stopped> {
        match message {
            Message::Event { boot, event } if boot == self.machine.events.boot() => return self.event(event),
            Message::Event { .. } => {}
            Message::Stop => return Some(Stopped::Killed),
            Message::Pause(reply) => {
                self.pause();
                let _ = reply.send(Ok(()));
            }
            Message::Resume(reply) => {
                self.resume();
                let _ = reply.send(Ok(()));
            }
            Message::SetMemory(bytes, reply) => {
                let _ = reply.send(self.machine.set_memory(bytes));
            }
            Message::PowerButton => self.machine.press_power_button(),
            Message::Slots(order) => self.machine.slots.handle(order, self.state == State::Paused),
            Message::Stats(reply) => {
                // One that does not come by is got out of what it waits for.
                let stats = match self.told() {
                    Some(figures) => self.stats(figures),
                    None => self.aside(|driver| driver.stats(driver.figures())),
                };
                let _ = reply.send(Ok(stats));
            }
            Message::Dumps(reply) => {
                let dumps = self.aside(|driver| driver.machine.dumps());
                let _ = reply.send(Ok(dumps));
            }
            Message::Save(reply) => {
                let saved = match self.state {
                    State::Paused => self.machine.save(),
                    _ => Err(VmError::NotPaused),
                };
                let _ = reply.send(saved);
            }
        }
        None
    }

    fn event(&mut self, event: Event) -> Option<Stopped> {
        Some(match event {
            Event::PowerOff => Stopped::PowerOff,
            Event::DebugExit(value) => Stopped::DebugExit(value),
            Event::TripleFault(vcpu) => self.triple_fault(vcpu),
            Event::Panicked(who) => Stopped::Failed(format!("{who} of the VM panicked")),
            Event::NoShelter => {
                Stopped::Failed("the host has no memory for the signal stack of a virtual CPU".to_owned())
            }
            Event::Reset => match self.machine.on_reset {
                OnReset::Stop => Stopped::Reset,
                OnReset::Reboot => return self.reboot(),
            },
        })
    }

    fn triple_fault(&self, vcpu: VcpuId) -> Stopped {
        self.still();
        let cell = self.machine.vcpus.iter().find(|cell| cell.id() == vcpu);
        match cell.map(|cell| self.machine.dump(cell)) {
            Some(dump) => Stopped::TripleFault(Box::new(dump)),
            None => Stopped::Failed(format!("vCPU {} does not exist", vcpu.0)),
        }
    }

    fn reboot(&mut self) -> Option<Stopped> {
        self.still();
        self.machine.alarms.pause();
        self.machine.events.next_boot();
        self.resets += 1;
        if let Err(error) = self.machine.reset() {
            return Some(Stopped::Failed(format!("the machine cannot boot again: {error}")));
        }
        if self.state == State::Running {
            self.machine.alarms.resume();
            self.machine.events.gate().open();
        }
        None
    }

    /// Brings every vCPU out of the gate, also one that waits for the reader of a serial port.
    fn still(&self) {
        let events = &self.machine.events;
        self.hurry(true);
        events.gate().shut();
        events.rouse();
        events.gate().wait_empty();
        self.hurry(false);
    }

    fn hurry(&self, hurry: bool) {
        self.machine.serial_ports().for_each(|port| port.hurry(hurry));
    }

    fn pause(&mut self) {
        if self.state == State::Running {
            self.still();
            self.machine.pause();
            self.enter(State::Paused);
        }
    }

    fn resume(&mut self) {
        if self.state == State::Paused {
            self.machine.resume();
            self.machine.events.gate().open();
            self.enter(State::Running);
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.board.update(|public| public.state = state);
    }

    /// Looks at the vCPUs while they step out for a moment: what they are belongs to them while they run.
    fn aside<T>(&self, look: impl FnOnce(&Self) -> T) -> T {
        self.still();
        let seen = look(self);
        if self.state == State::Running {
            self.machine.events.gate().open();
        }
        seen
    }

    fn stats(&self, figures: Vec<VcpuFigures>) -> Stats {
        Stats { resets: self.resets, ..self.machine.stats(figures) }
    }

    /// What the vCPUs have counted, while they are out of the gate.
    fn figures(&self) -> Vec<VcpuFigures> {
        self.machine.vcpus.iter().map(VcpuCell::figures).collect()
    }

    /// What the vCPUs count while they run, told by each as it comes by; none if one does not, or the gate is not open.
    fn told(&self) -> Option<Vec<VcpuFigures>> {
        let (vcpus, gate) = (&self.machine.vcpus, self.machine.events.gate());
        if !gate.is_open() {
            return None;
        }
        vcpus.iter().for_each(VcpuCell::ask);
        let deadline = Instant::now() + PATIENCE;
        let told = |vcpu: &VcpuCell| loop {
            if let Some(figures) = vcpu.told(LOOK) {
                return Some(figures);
            }
            if !gate.is_open() || Instant::now() > deadline {
                return None;
            }
        };
        vcpus.iter().map(told).collect()
    }

    fn stop(self, reason: Stopped) {
        self.still();
        if self.state == State::Running {
            self.machine.pause();
        }
        let stats = self.stats(self.figures());
        self.flush(matches!(reason, Stopped::Killed));
        let board = self.board.clone();
        // The memory is given back before anybody hears that the VM has stopped.
        drop(self);
        board.update(|public| {
            *public = Public { state: State::Stopped, stopped: Some(reason), stats };
        });
    }

    /// Waits until all output has been written, unless there is no time for that, or somebody loses patience.
    fn flush(&self, at_once: bool) {
        let mut at_once = at_once;
        for port in self.machine.serial_ports() {
            port.close();
            while !at_once && !port.wait_written(IMPATIENCE) {
                at_once = self.machine.inbox.try_iter().any(|message| matches!(message, Message::Stop));
            }
            if at_once {
                port.discard();
            }
        }
    }
}

/// How long vCPUs may take to say what they have counted, and how often it is looked whether they still could.
const PATIENCE: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(5);
/// How often a VM that ends looks whether anybody still wants its last output to be written.
const IMPATIENCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
