//! The VM's end of its control socket: a few threads, each of which takes a connection and serves it to its end. All of them
//! are there from the start, and a client beyond them waits for its turn. Nobody keeps a thread for long but those attached to
//! the console and those who run commands in the guest, of whom there are fewer ([`super::hub`], [`super::exec`]).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use host::jail::Role;
use host::socket::receive_files;
use serde_json::{Value, json};
use vm::{State, VmHandle};

use super::device;
use super::exec;
use super::finale::Finale;
use super::hub::Hub;
use super::plug;
use crate::console::agent::Agent;
use crate::status::Status;
use crate::{console, counters};
use control::{Answer, Device, Request};

/// How many clients are served at the same time.
const THREADS: usize = 16;
const _: () = assert!(Hub::MOST_ATTACHED + exec::MOST < THREADS);
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for a descriptor when there is none.
const PAUSE: Duration = Duration::from_secs(1);

/// What answers requests.
pub(crate) struct Server {
    vm: VmHandle,
    /// The guest listens on its control port.
    ours: bool,
    /// The console, of a VM in the background.
    hub: Option<Arc<Hub>>,
    /// Who runs commands in the guest.
    exec: Option<exec::Desk>,
    /// The same, where that has to be asked to power off.
    booted: Option<Arc<Agent>>,
    finale: Finale,
    /// The guest was asked to stop.
    stopping: AtomicBool,
}

impl Server {
    /// Answers requests from now on, as long as the process lives.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub(crate) fn start(
        listener: UnixListener,
        vm: VmHandle,
        ours: bool,
        hub: Option<Arc<Hub>>,
        agent: Option<Arc<Agent>>,
    ) -> Result<Arc<Self>> {
        let server = Arc::new(Self {
            vm,
            ours,
            hub,
            booted: agent.clone().filter(|_| !ours),
            exec: agent.map(exec::Desk::new).transpose()?,
            finale: Finale::default(),
            stopping: AtomicBool::default(),
        });
        let listener = Arc::new(listener);
        for _ in 0..THREADS {
            let (server, listener) = (server.clone(), listener.clone());
            host::thread::spawn("control", Role::Control, move || server.listen(&listener))
                .context("the host gives no thread")?;
        }
        Ok(server)
    }

    /// The guest reads its control port from now on; what it was told before is lost.
    pub(crate) fn ready(&self) {
        if self.ours && self.stopping.load(Ordering::SeqCst) {
            console::ask_to_stop(&self.vm);
        }
    }

    /// The VM has ended: tells everybody who wants to know.
    pub(crate) fn end(&self, status: Status) {
        if let Some(hub) = &self.hub {
            hub.end(status);
        }
        self.finale.come(status);
    }

    /// A thread's life.
    fn listen(&self, listener: &UnixListener) {
        loop {
            match listener.accept() {
                // Whoever left needs no answer.
                Ok((stream, _)) => drop(self.converse(stream)),
                // The process has too many files open, which passes.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answer = match control::read_request(&mut stream)? {
            Err(why) => Err(why),
            Ok(Request::Wait) => match self.finale.wait(stream.try_clone()?) {
                Ok(()) => return Ok(()),
                Err(why) => Err(why),
            },
            Ok(Request::Exec { settings }) => match &self.exec {
                Some(desk) => return desk.serve(&mut stream, &settings),
                None => Err(exec::NOBODY.to_owned()),
            },
            Ok(Request::Console { size }) => match &self.hub {
                Some(hub) => return hub.attach(&mut stream, size),
                None => {
                    Err("its console is where it was started: only VMs in the background are attached to"
                        .to_owned())
                }
            },
            Ok(Request::Stop) => {
                self.power_button();
                let answered = control::answer(&mut stream, Ok(Value::Null));
                // A guest that does not read keeps whoever tells it waiting, and nobody else.
                self.tell();
                return answered;
            }
            Ok(Request::Plug { device }) => {
                let files = if device.has_files() { receive_files(&stream)? } else { Vec::new() };
                self.plug(device, files)
            }
            Ok(request) => self.answer(&request),
        };
        control::answer(&mut stream, answer)
    }

    fn plug(&self, device: Device, files: Vec<OwnedFd>) -> Answer {
        let attachment = device::attachment(device, files)
            .map_err(|error| format!("it cannot take the device: {error:#}"))?;
        let slot = self.vm.plug(attachment).map_err(|error| error.to_string())?;
        Ok(slot.to_string().into())
    }

    fn answer(&self, request: &Request) -> Answer {
        let failed = |error: vm::VmError| error.to_string();
        match request {
            Request::State => Ok(state(self.vm.state())),
            Request::Stats => Ok(json!({
                "cpu_ns": cpu_ns(),
                "counters": counters::json(&self.vm.stats()),
            })),
            Request::Pause if self.vm.state() == State::Paused => Err("it is paused already".to_owned()),
            Request::Pause => self.vm.pause().map(|()| Value::Null).map_err(failed),
            Request::Resume if self.vm.state() == State::Running => Err("it is not paused".to_owned()),
            Request::Resume => self.vm.resume().map(|()| Value::Null).map_err(failed),
            Request::Update { memory } => self.vm.set_memory(*memory).map(|()| Value::Null).map_err(failed),
            Request::Listens => match &self.exec {
                Some(desk) => Ok(desk.listens().into()),
                None => Err(exec::NOBODY.to_owned()),
            },
            Request::Unplug { slot, force } => {
                self.vm.unplug(plug::named(slot)?, *force).map(|()| Value::Null).map_err(failed)
            }
            Request::Slots => self.vm.slots().map(plug::listed).map_err(failed),
            Request::Kill => {
                self.vm.stop();
                Ok(Value::Null)
            }
            // They have been dealt with.
            Request::Stop
            | Request::Wait
            | Request::Console { .. }
            | Request::Exec { .. }
            | Request::Plug { .. } => Ok(Value::Null),
        }
    }

    /// Presses the power button.
    fn power_button(&self) {
        // One that stands still hears of nothing. If it cannot go on, it has ended.
        let _ = self.vm.resume();
        self.stopping.store(true, Ordering::SeqCst);
        self.vm.press_power_button();
    }

    /// Tells the guest that it is to power off, for it may have no driver for the button: one of ours hears of it on its control port,
    /// and one that has booted by itself by the agent in it.
    fn tell(&self) {
        if self.ours {
            console::ask_to_stop(&self.vm);
        }
        if let Some(agent) = &self.booted {
            agent.power_off();
        }
    }
}

fn state(state: State) -> Value {
    match state {
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped => "stopped",
    }
    .into()
}

/// The processor time that this process has had, and those that run user code for it.
fn cpu_ns() -> u64 {
    host::time::process_cpu_ns() + host::stub::time::process_ns()
}
