//! The guest's console: on standard input and output, or in the background in a hub ([`crate::vms::hub`]).
//!
//! Everything that happens while a VM runs becomes an [`Event`] in one queue, which the main thread reads: the VM
//! ends, a signal arrives, the user detaches, the guest reports. The other threads here only wait for one thing each:
//! standard input ([`input`]), signals ([`signals`]), the end of the VM.

pub(crate) mod agent;
mod control;
mod encode;
mod input;
pub(crate) mod signals;
mod sinks;
pub(crate) mod terminal;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use host::jail::Role;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGCONT, SIGWINCH};
use vm::{Builder, SerialSink, Stopped, VmHandle};

use agent::{Agent, AgentSink, Said};
pub(crate) use control::{FromGuest, Way, size_line};
use encode::Encoder;
use input::Style;
pub(crate) use sinks::LineEnds;
use sinks::{Control, Output};
use terminal::RawMode;

use crate::message;
use crate::plan::Guest;
use crate::vms::hub::{Hub, HubSink, Input};

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

/// How standard input is read.
type Job = Box<dyn FnOnce() + Send>;

/// The host's side of the console.
pub(crate) struct Console {
    events: Events,
    /// The root file system is ours: there are ports for control and for the kernel's messages, too.
    ours: bool,
    /// It is a terminal's: a person's, or in the background nobody's yet.
    interactive: bool,
    /// The VM is in the background, and this is its console.
    hub: Option<Arc<Hub>>,
    /// Of a guest in which somebody listens to a port.
    agent: Option<Arc<Agent>>,
    raw: Option<RawMode>,
    /// What the thread that reads standard input is to do.
    input: Option<Sender<Job>>,
}

/// The console's port.
const CONSOLE_PORT: usize = 0;
/// The control port, see [`control`].
const CONTROL_PORT: usize = 1;
/// The kernel's messages.
const LOG_PORT: usize = 2;
/// The virtio console's port where commands are run.
const AGENT_PORT: usize = 0;

impl Console {
    /// A console for one VM, which is in the background if there is a hub.
    pub(crate) fn new(guest: &Guest, hub: Option<Arc<Hub>>, events: Events) -> Self {
        let ours = guest.is_ours();
        let interactive = if hub.is_some() { guest.is_on_terminal() } else { terminal::is_interactive() };
        let agent = guest.has_agent().then(Arc::default);
        Self { events, ours, interactive, hub, agent, raw: None, input: None }
    }

    /// Builds the console's ports into a machine.
    ///
    /// # Errors
    /// If standard output or standard error is closed.
    pub(crate) fn plug(&self, mut builder: Builder) -> Result<Builder> {
        builder = builder.serial(CONSOLE_PORT, self.output()?);
        if self.ours {
            builder = builder
                .serial(CONTROL_PORT, Box::new(Control::new(self.events.clone())))
                .serial(LOG_PORT, self.log()?);
        }
        if let Some(agent) = &self.agent {
            builder = builder.port(init::wire::PORT, Box::new(AgentSink::new(agent.clone())));
        }
        Ok(builder)
    }

    /// Who runs commands in the guest, if there is such.
    pub(crate) fn agent(&self) -> Option<Arc<Agent>> {
        self.agent.clone()
    }

    fn output(&self) -> Result<Box<dyn SerialSink>> {
        Ok(match &self.hub {
            Some(hub) => Box::new(HubSink::output(hub.clone())),
            None => Box::new(Output::stdout(self.events.clone()).context("standard output cannot be used")?),
        })
    }

    fn log(&self) -> Result<Box<dyn SerialSink>> {
        let line_ends = if self.interactive { LineEnds::Kept } else { LineEnds::Unix };
        Ok(match &self.hub {
            Some(hub) => Box::new(HubSink::error(hub.clone(), line_ends)),
            None => Box::new(
                Output::stderr(line_ends, self.events.clone()).context("standard error cannot be used")?,
            ),
        })
    }

    /// The VM runs: takes the terminal, catches signals, and waits for its end. All threads are made here.
    ///
    /// # Errors
    /// If the terminal cannot be used, a signal cannot be caught, or there is no thread.
    pub(crate) fn start(&mut self, vm: &VmHandle) -> Result<()> {
        signals::watch(self.events.clone()).context("cannot catch signals")?;
        if self.interactive && self.hub.is_none() {
            message::note("Ctrl-] stops the VM");
            self.raw = Some(RawMode::enter().context("cannot use the terminal")?);
        }
        if let (Some(agent), Some(port)) = (&self.agent, vm.port_input(AGENT_PORT)) {
            agent.connect(move |bytes| port.send(bytes));
            if self.ours {
                let (agent, output, log) = (agent.clone(), self.output()?, self.log()?);
                spawn("streams", move || pass_on(&agent, output, log))?;
            }
        }
        let (waiter, events) = (vm.clone(), self.events.clone());
        spawn("vm-wait", move || events.send(Event::Stopped(waiter.wait())))?;
        if self.hub.is_none() {
            self.prepare_input()?;
        }
        // Umbra's guest says when; any other reads its port when it likes.
        if !self.ours {
            self.start_input(vm, Way::Serial);
        }
        Ok(())
    }

    /// Makes the thread that will read standard input.
    fn prepare_input(&mut self) -> Result<()> {
        let (begin, begun) = channel::<Job>();
        self.input = Some(begin);
        spawn("stdin", move || {
            if let Ok(job) = begun.recv() {
                job();
            }
        })
    }

    /// The guest is ready for input.
    pub(crate) fn start_input(&self, vm: &VmHandle, way: Way) {
        if let (Way::Port, Some(agent)) = (way, &self.agent) {
            return self.start_agent_input(agent.clone());
        }
        let Some(port) = vm.serial_input(CONSOLE_PORT) else { return };
        if let Some(hub) = &self.hub {
            if self.interactive || !self.ours {
                let control = vm.serial_input(CONTROL_PORT).filter(|_| self.ours);
                hub.set_input(Input { console: port, control });
            } else {
                // A command's input is empty, as that of any in the background.
                input::end(Style::Quoted, &mut Encoder::default(), &|bytes| port.send(bytes));
            }
            return;
        }
        let style = match (self.interactive, self.ours) {
            (true, _) => Style::Terminal,
            (false, true) => Style::Quoted,
            (false, false) => Style::Plain,
        };
        let events = self.events.clone();
        self.read_by(move || input::pump(style, &|bytes| port.send(bytes), &events));
    }

    /// The same for one whose command's streams go through the port: no terminal is there.
    fn start_agent_input(&self, agent: Arc<Agent>) {
        let main = agent.main();
        if self.hub.is_some() {
            return agent.input_end(&main);
        }
        let events = self.events.clone();
        self.read_by(move || {
            input::pump(Style::Plain, &|bytes| agent.input(&main, bytes), &events);
            agent.input_end(&main);
        });
    }

    /// Lets the thread for standard input do this.
    fn read_by(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(begin) = &self.input {
            // Its thread ends when the user detaches.
            let _ = begin.send(Box::new(job));
        }
    }

    /// A signal that asks for no end has arrived.
    pub(crate) fn signal(&self, number: i32, vm: &VmHandle) {
        match number {
            SIGWINCH if self.raw.is_some() && self.ours => {
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

/// Passes the main command's output on to its end.
fn pass_on(agent: &Agent, mut output: Box<dyn SerialSink>, mut log: Box<dyn SerialSink>) {
    let main = agent.main();
    loop {
        let bytes = match main.next() {
            Said::Output(bytes) => {
                output.write(&bytes);
                bytes.len()
            }
            Said::Error(bytes) => {
                log.write(&bytes);
                bytes.len()
            }
            Said::Exit(_) => return agent.bye(),
            Said::Lost => return,
        };
        agent.passed_on(&main, bytes);
    }
}

/// Asks a guest of ours to end whatever runs there.
pub(crate) fn ask_to_stop(vm: &VmHandle) {
    if let Some(port) = vm.serial_input(CONTROL_PORT) {
        port.send(control::STOP_LINE.as_bytes());
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
