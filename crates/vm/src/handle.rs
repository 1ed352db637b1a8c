//! How the world sees a VM: a handle with which to wait for it, pause it, stop it, and what it says of itself.
//!
//! A handle does nothing itself. It posts requests to the driver (see [`crate::driver`]) and waits for the answers;
//! the board, which the driver writes, outlives the driver, so that a stopped VM can still be asked why.

use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::{Counter, VcpuStats};
use spec::SlotName;
use state::Record;

use crate::VmError;
use crate::attachment::Attachment;
use crate::dump::Dump;
use crate::events::Event;
use crate::ports::PortInput;
use crate::serial::SerialInput;
use crate::slots::{Order, SlotFigures};

/// Whether the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Running,
    /// It stands still, its clock with it.
    Paused,
    /// It has ended; its memory is gone.
    Stopped,
}

/// Why a VM ended.
#[derive(Clone, Debug)]
pub enum Stopped {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine, and it was not to boot again.
    Reset,
    /// The guest wrote this value to `isa-debug-exit`.
    DebugExit(u32),
    /// A triple fault; this is what the processor looked like.
    TripleFault(Box<Dump>),
    /// Somebody called [`VmHandle::stop`], or dropped the last handle.
    Killed,
    /// We failed the guest; one sentence says how.
    Failed(String),
}

/// What a machine reset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnReset {
    /// The machine boots again.
    #[default]
    Reboot,
    /// The VM stops.
    Stop,
}

/// What one vCPU counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuFigures {
    /// What every engine counts.
    pub common: VcpuStats,
    /// What this one counts besides.
    pub counters: Vec<Counter>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The engine's name.
    pub engine: &'static str,
    /// By vCPU, since the start.
    pub vcpus: Vec<VcpuFigures>,
    /// What the vCPUs' memory virtualization has in common.
    pub mmu: Vec<Counter>,
    /// How long the VM has run, times of pause not counted.
    pub guest_time_ns: u64,
    /// The size of the guest's RAM.
    pub ram_bytes: u64,
    /// What of it the host had to provide.
    pub ram_resident_bytes: u64,
    /// What of it is in the balloon.
    pub ram_ballooned_bytes: u64,
    /// What is known of the balloon, if there is one.
    pub balloon: Option<virtio::balloon::Figures>,
    /// How many times the guest has reset the machine.
    pub resets: u64,
}

/// What reaches the driver.
pub(crate) enum Message {
    /// The machine has something to say.
    Event {
        /// In which boot.
        boot: u64,
        /// What.
        event: Event,
    },
    /// Go to [`State::Paused`].
    Pause(Reply<()>),
    /// Go to [`State::Running`].
    Resume(Reply<()>),
    /// Stop the VM.
    Stop,
    /// Leave the guest so many bytes of memory.
    SetMemory(u64, Reply<()>),
    /// Press the power button.
    PowerButton,
    /// Do something about a slot.
    Slots(Order),
    /// Count.
    Stats(Reply<Stats>),
    /// Look at every vCPU.
    Dumps(Reply<Vec<Dump>>),
    /// Save everything.
    Save(Reply<Vec<Record>>),
}

/// Where an answer goes.
pub(crate) type Reply<T> = SyncSender<Result<T, VmError>>;

/// What everybody may know at any time.
pub(crate) struct Public {
    /// The state.
    pub(crate) state: State,
    /// Why it stopped, once it has.
    pub(crate) stopped: Option<Stopped>,
    /// The last numbers, once stopped.
    pub(crate) stats: Stats,
}

/// The public part and those who wait for it to change.
pub(crate) struct Board {
    public: Mutex<Public>,
    changed: Condvar,
}

impl Board {
    /// A board that says `state`.
    pub(crate) fn new(state: State) -> Self {
        let public = Public { state, stopped: None, stats: Stats::default() };
        Self { public: Mutex::new(public), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Public> {
        self.public.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what it says and tells those who wait.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Public)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// A running VM. Clones are the same VM; when the last one is dropped, the VM is stopped.
#[derive(Clone)]
pub struct VmHandle(Arc<HandleInner>);

struct HandleInner {
    driver: Sender<Message>,
    board: Arc<Board>,
    serial: [Option<SerialInput>; 4],
    ports: Vec<PortInput>,
}

impl Drop for HandleInner {
    fn drop(&mut self) {
        let _ = self.driver.send(Message::Stop);
    }
}

impl VmHandle {
    /// A handle on the VM whose driver reads `driver` and writes `board`.
    pub(crate) fn new(
        driver: Sender<Message>,
        board: Arc<Board>,
        serial: [Option<SerialInput>; 4],
        ports: Vec<PortInput>,
    ) -> Self {
        Self(Arc::new(HandleInner { driver, board, serial, ports }))
    }

    /// The far end of a serial port's receive line, COM1 being 0. `None` if the port is not there.
    pub fn serial_input(&self, port: usize) -> Option<SerialInput> {
        self.0.serial.get(port)?.clone()
    }

    /// Where bytes for a port of the virtio console go, in the order of [`crate::Builder::port`]. `None` if there are fewer.
    pub fn port_input(&self, port: usize) -> Option<PortInput> {
        self.0.ports.get(port).cloned()
    }

    /// Waits until the VM has stopped.
    pub fn wait(&self) -> Stopped {
        let mut public = self.0.board.lock();
        loop {
            if let Some(stopped) = &public.stopped {
                return stopped.clone();
            }
            public = self.0.board.changed.wait(public).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the VM has stopped, but not longer than this.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Stopped> {
        let deadline = Instant::now() + timeout;
        let mut public = self.0.board.lock();
        while public.stopped.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.0.board.changed.wait_timeout(public, left);
            public = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        public.stopped.clone()
    }

    /// Whether it runs.
    pub fn state(&self) -> State {
        self.0.board.lock().state
    }

    /// Stops the VM, whatever the guest does, and waits until it has.
    pub fn stop(&self) -> Stopped {
        let _ = self.0.driver.send(Message::Stop);
        self.wait()
    }

    /// Halts the VM and its clock. Nothing of the guest moves when this returns. Pausing twice is pausing once.
    ///
    /// # Errors
    /// If the VM has stopped.
    pub fn pause(&self) -> Result<(), VmError> {
        self.ask(Message::Pause)
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// If the VM has stopped.
    pub fn resume(&self) -> Result<(), VmError> {
        self.ask(Message::Resume)
    }

    /// Leaves the guest so much memory, in bytes, by its balloon. It comes to that in its own time, or as far as it can.
    ///
    /// # Errors
    /// If there is no balloon, or no driver for it, or the VM has less memory altogether.
    pub fn set_memory(&self, bytes: u64) -> Result<(), VmError> {
        self.ask(|reply| Message::SetMemory(bytes, reply))
    }

    /// Presses the ACPI power button. What the guest does about it is its business.
    pub fn press_power_button(&self) {
        let _ = self.0.driver.send(Message::PowerButton);
    }

    /// Plugs a device into a free slot, and says which. The guest hears of it and finds it in its own time.
    ///
    /// # Errors
    /// If there is no free slot, or the device cannot be made.
    pub fn plug(&self, attachment: Attachment) -> Result<SlotName, VmError> {
        self.ask(|reply| Message::Slots(Order::Plug(Box::new(attachment), reply)))
    }

    /// Asks the guest to let go of the device in a slot, which it does in its own time; or, by force, takes the device away.
    ///
    /// # Errors
    /// If there is none.
    pub fn unplug(&self, slot: SlotName, force: bool) -> Result<(), VmError> {
        self.ask(|reply| Message::Slots(Order::Unplug { slot, force, reply }))
    }

    /// What is in the slots.
    ///
    /// # Errors
    /// If the VM has stopped.
    pub fn slots(&self) -> Result<Vec<SlotFigures>, VmError> {
        self.ask(|reply| Message::Slots(Order::List(reply)))
    }

    /// What was counted so far; of a stopped VM, the last numbers.
    pub fn stats(&self) -> Stats {
        self.ask(Message::Stats).unwrap_or_else(|_| self.0.board.lock().stats.clone())
    }

    /// What every vCPU looks like at the moment.
    ///
    /// # Errors
    /// If the VM has stopped.
    pub fn dumps(&self) -> Result<Vec<Dump>, VmError> {
        self.ask(Message::Dumps)
    }

    /// The state of the whole machine, RAM included.
    ///
    /// # Errors
    /// If the VM is not paused.
    pub fn save(&self) -> Result<Vec<Record>, VmError> {
        self.ask(Message::Save)
    }

    fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, VmError> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.0.driver.send(message(reply)).map_err(|_| VmError::Stopped)?;
        // A driver that ends drops its queue, and our reply with it.
        answer.recv().map_err(|_| VmError::Stopped)?
    }
}
