//! The guest's console on standard input and output.
//!
//! Everything that happens while a VM runs becomes an [`Event`] in one queue, which the main thread reads: the VM
//! ends, a signal arrives, the user detaches, the guest reports. The other threads here only wait for one thing each:
//! standard input ([`input`]), signals ([`signals`]), the end of the VM.

mod control;
mod encode;
mod input;
pub(crate) mod signals;
mod sinks;
pub(crate) mod terminal;

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use host::jail::Role;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGCONT, SIGWINCH};
use vm::{SerialSink, Stopped, VmHandle};

pub(crate) use control::FromGuest;
use input::Style;
use sinks::{Control, LineEnds, Output};
use terminal::RawMode;

use crate::message;
use crate::plan::Guest;

/// Something that the main thread has to know.
#[derive(Debug)]
pub(crate) enum Event {
    /// The VM has ended.
    Stopped(Stopped),
    /// A signal has arrived.
    Signal(i32),
    /// The user typed Ctrl-].
    Detach,
    /// The guest that Umbra made says something.
    Guest(FromGuest),
    /// Nobody takes the guest's output any more.
    OutputLost(io::Error),
}

/// Where events are sent. Nobody waits for those that come after the end.
#[derive(Clone, Debug)]
pub(crate) struct Events(Sender<Event>);

impl Events {
    /// A queue.
    pub(crate) fn queue() -> (Self, Receiver<Event>) {
        let (sender, receiver) = channel();
        (Self(sender), receiver)
    }

    /// Sends an event.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

/// The host's side of the console.
pub(crate) struct Console {
    events: Events,
    /// The root file system is ours: there are ports for control and for the kernel's messages, too.
    ours: bool,
    interactive: bool,
    raw: Option<RawMode>,
    /// Tells the thread that reads standard input to begin.
    input: Option<Sender<()>>,
}

/// The console's port.
const CONSOLE_PORT: usize = 0;
/// The control port, see [`control`].
const CONTROL_PORT: usize = 1;
/// The kernel's messages.
const LOG_PORT: usize = 2;

impl Console {
    /// A console for one VM.
    pub(crate) fn new(guest: &Guest, events: Events) -> Self {
        Self {
            events,
            ours: guest.is_ours(),
            interactive: terminal::is_interactive(),
            raw: None,
            input: None,
        }
    }

    /// The serial ports to build into the machine, with their numbers.
    ///
    /// # Errors
    /// If standard output or standard error is closed.
    pub(crate) fn ports(&self) -> Result<Vec<(usize, Box<dyn SerialSink>)>> {
        let stdout = Output::stdout(self.events.clone()).context("standard output cannot be used")?;
        let mut ports: Vec<(usize, Box<dyn SerialSink>)> = vec![(CONSOLE_PORT, Box::new(stdout))];
        if self.ours {
            let line_ends = if self.interactive { LineEnds::Kept } else { LineEnds::Unix };
            let log =
                Output::stderr(line_ends, self.events.clone()).context("standard error cannot be used")?;
            ports.push((CONTROL_PORT, Box::new(Control::new(self.events.clone()))));
            ports.push((LOG_PORT, Box::new(log)));
        }
        Ok(ports)
    }

    /// The VM runs: takes the terminal, catches signals, and waits for its end. All threads are made here.
    ///
    /// # Errors
    /// If the terminal cannot be used, a signal cannot be caught, or there is no thread.
    pub(crate) fn start(&mut self, vm: &VmHandle) -> Result<()> {
        signals::watch(self.events.clone()).context("cannot catch signals")?;
        if self.interactive {
            message::note("Ctrl-] stops the VM");
            self.raw = Some(RawMode::enter().context("cannot use the terminal")?);
        }
        let (waiter, events) = (vm.clone(), self.events.clone());
        spawn("vm-wait", move || events.send(Event::Stopped(waiter.wait())))?;
        self.prepare_input(vm)?;
        // Umbra's guest says when; any other reads its port when it likes.
        if !self.ours {
            self.start_input();
        }
        Ok(())
    }

    /// Starts the thread that will read standard input.
    fn prepare_input(&mut self, vm: &VmHandle) -> Result<()> {
        let Some(port) = vm.serial_input(CONSOLE_PORT) else { return Ok(()) };
        let style = match (self.interactive, self.ours) {
            (true, _) => Style::Terminal,
            (false, true) => Style::Quoted,
            (false, false) => Style::Plain,
        };
        let events = self.events.clone();
        let (begin, begun) = channel();
        self.input = Some(begin);
        spawn("stdin", move || {
            if begun.recv().is_ok() {
                input::pump(style, &|bytes| port.send(bytes), &events);
            }
        })
    }

    /// The guest is ready for input.
    pub(crate) fn start_input(&self) {
        if let Some(begin) = &self.input {
            // Its thread ends when the user detaches.
            let _ = begin.send(());
        }
    }

    /// A signal that asks for no end has arrived.
    pub(crate) fn signal(&self, number: i32, vm: &VmHandle) {
        match number {
            SIGWINCH if self.interactive && self.ours => {
                if let Some(port) = vm.serial_input(CONTROL_PORT) {
                    let (rows, columns) = terminal::size();
                    port.send(control::size_line(rows, columns).as_bytes());
                }
            }
            // Somebody else had the terminal, and now we have it again.
            SIGCONT => self.raw.iter().for_each(RawMode::again),
            _ => {}
        }
    }

    /// Gives the terminal back.
    pub(crate) fn close(&mut self) {
        self.raw = None;
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    host::thread::spawn(name, Role::Console, body).map(drop).context("the host gives no thread")
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Read,
    Write,
}

/// Waits until a file that does not block can be used.
fn wait_for(file: &impl AsFd, wanted: Wanted) -> io::Result<()> {
    let flags = match wanted {
        Wanted::Read => PollFlags::IN,
        Wanted::Write => PollFlags::OUT,
    };
    match poll(&mut [PollFd::new(file, flags)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
