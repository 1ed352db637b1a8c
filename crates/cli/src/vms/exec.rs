//! `umbra exec`: a command in a guest that runs. Its streams go from the guest's first process ([`crate::console::agent`]) through
//! the VM's process and its control socket to here, and each of the three waits when the next has no room.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use host::jail::Role;
use init::wire::decode_size;
use init::{Directory, Settings, Terminal};

use super::args::ExecArgs;
use super::attach::{self, End, Input};
use super::client;
use super::home::{Registry, Vm};
use crate::console::agent::{Agent, Said, Session};
use crate::console::terminal;
use crate::status::Status;
use control::{Kind, Request};

/// How many commands may run at a time.
pub(super) const MOST: usize = 8;
/// How long it is waited for a guest that boots, in seconds, if nothing else is said.
pub(super) const PATIENCE_S: u64 = 30;
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_millis(50);
/// What is said where nobody runs commands.
pub(super) const NOBODY: &str = "no commands can be run in its guest: that takes 'umbra run host', or 'debian', a directory or a disk image as SOURCE";

/// Runs a command.
///
/// # Errors
/// If there is no such VM, it runs no commands, or this terminal cannot be used.
pub(crate) fn run(args: ExecArgs) -> Result<Status> {
    ensure!(!args.tty || terminal::is_interactive(), "--tty needs a terminal here: leave it out in a pipe");
    let vm = Registry::of_user()?.find(&args.name)?;
    let settings = Settings {
        terminal: args.tty.then(|| Terminal { size: terminal::size(), kind: terminal::kind() }),
        environment: args.how.env,
        directory: args.how.workdir.map_or(Directory::Home, Directory::Exactly),
        user: args.how.user,
        command: args.command,
        ..Settings::default()
    };
    let stream = begin(&vm, &settings, Duration::from_secs(args.wait))?;
    let input = if args.interactive { Input::Passed } else { Input::Empty };
    match attach::converse(stream, args.tty, input)? {
        End::Exit(status) => Ok(Status(status)),
        End::Left => Ok(Status::OK),
        End::Unheard => Ok(Status::BROKEN_PIPE),
        End::Lost => bail!("the process of the VM '{}' was killed", args.name),
    }
}

/// Has a command begun, with this much patience for a guest that boots; its streams come and go in frames.
///
/// # Errors
/// If nobody runs commands there, not even then, or this one cannot be.
pub(super) fn begin(vm: &Vm, settings: &Settings, patience: Duration) -> Result<UnixStream> {
    let request = Request::Exec { settings: settings.encode() };
    ensure!(
        control::fits(&request),
        "the command and its environment are too long: put some of it into a file, and that into the guest with 'umbra cp'"
    );
    let deadline = Instant::now() + patience;
    while client::ask(vm, Request::Listens)? != true && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    let mut stream = client::connect(vm, request)?;
    client::answer(vm, &mut stream)?;
    Ok(stream)
}

/// The VM's end.
pub(super) struct Desk {
    agent: Arc<Agent>,
    running: AtomicUsize,
    /// To the threads that pass clients' input on, one for each command.
    typists: Sender<Typing>,
}

/// A session and its client.
type Typing = (Arc<Session>, UnixStream);

impl Desk {
    /// For a guest whose first process runs commands.
    ///
    /// # Errors
    /// If the host gives no threads.
    pub(super) fn new(agent: Arc<Agent>) -> Result<Self> {
        let (typists, waiting) = channel::<Typing>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..MOST {
            let (agent, waiting) = (agent.clone(), waiting.clone());
            host::thread::spawn("typist", Role::Control, move || type_for_all(&agent, &waiting))
                .context("the host gives no thread")?;
        }
        Ok(Self { agent, running: AtomicUsize::default(), typists })
    }

    /// Whether the guest runs commands by now.
    pub(super) fn listens(&self) -> bool {
        self.agent.listens()
    }

    /// Runs a command for a client, to its end, also if the client leaves.
    ///
    /// # Errors
    /// If the client cannot be answered.
    pub(super) fn serve(&self, stream: &mut UnixStream, settings: &[u8]) -> io::Result<()> {
        let others = self.running.fetch_add(1, Ordering::Relaxed);
        let served = if others < MOST {
            self.attend(stream, settings)
        } else {
            control::answer(stream, Err(format!("{MOST} commands run in its guest already")))
        };
        self.running.fetch_sub(1, Ordering::Relaxed);
        served
    }

    fn attend(&self, stream: &mut UnixStream, settings: &[u8]) -> io::Result<()> {
        let session = match self.agent.open(settings) {
            Ok(session) => session,
            Err(why) => return control::answer(stream, Err(why)),
        };
        let mut listens = self.greet(stream, &session).is_ok();
        if !listens {
            self.agent.input_end(&session);
        }
        loop {
            let (kind, bytes) = match session.next() {
                Said::Output(bytes) => (Kind::Output, bytes),
                Said::Error(bytes) => (Kind::Error, bytes),
                Said::Exit(status) => (Kind::End, vec![status]),
                Said::Lost => (Kind::End, vec![Status::KILLED.0]),
            };
            // A client that has gone takes nothing from the command, which waits if nobody hears it.
            listens = listens && control::send_frames(stream, kind, &bytes).is_ok();
            if kind == Kind::End {
                return stream.shutdown(std::net::Shutdown::Both);
            }
            self.agent.passed_on(&session, bytes.len());
        }
    }

    /// Says that the command runs, and lets the client's input come.
    fn greet(&self, stream: &mut UnixStream, session: &Arc<Session>) -> io::Result<()> {
        control::answer(stream, Ok(serde_json::Value::Null))?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        self.typists.send((session.clone(), stream.try_clone()?)).map_err(io::Error::other)
    }
}

/// Passes the input of one client after the other on.
fn type_for_all(agent: &Agent, waiting: &Mutex<Receiver<Typing>>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((session, mut from)) = next else { return };
        pass_input(agent, &session, &mut from);
    }
}

/// Passes a client's input on until he has no more, or has left.
fn pass_input(agent: &Agent, session: &Session, from: &mut UnixStream) {
    while let Ok(Some((kind, bytes))) = control::read_frame(from) {
        match (kind, bytes.as_slice()) {
            (Kind::Input, typed) if agent.input(session, typed) => {}
            (Kind::InputEnd, _) => agent.input_end(session),
            (Kind::Size, size) => match decode_size(size) {
                Some(size) => agent.resize(session, size),
                None => break,
            },
            _ => break,
        }
    }
    agent.input_end(session);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use init::wire::{Frame, Kind as Said, PIECE, Reader, WINDOW};
    use vm::SerialSink;

    use super::*;
    use crate::console::agent::AgentSink;

    #[test]
    fn a_command_whose_client_has_gone_is_heard_to_its_end() {
        let agent = Arc::new(Agent::default());
        let mut guest = AgentSink::new(agent.clone());
        let (sent, told) = channel();
        agent.connect(move |bytes| sent.send(bytes.to_vec()).is_ok());
        guest.write(&Frame::encode(0, Said::Hello, b""));
        let desk = Desk::new(agent).unwrap();
        let (client, mut stream) = UnixStream::pair().unwrap();
        drop(client);
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| desk.serve(&mut stream, b""));
            let mut reader = Reader::default();
            let mut heard = || reader.feed(&told.recv().unwrap()).unwrap();
            assert_eq!(heard()[0].kind, Said::Open);
            let (mut given, mut ended) = (0, false);
            // Twice what it may say without being heard.
            for _ in 0..2 * WINDOW / PIECE {
                guest.write(&Frame::encode(1, Said::Output, &[b'x'; PIECE]));
                while given < PIECE {
                    for frame in heard() {
                        ended |= frame.kind == Said::InputEnd;
                        if let (Said::Credit, &[a, b, c, d]) = (frame.kind, &frame.bytes[..]) {
                            given += u32::from_le_bytes([a, b, c, d]) as usize;
                        }
                    }
                }
                given -= PIECE;
            }
            assert!(ended, "nobody types any more");
            guest.write(&Frame::encode(1, Said::Exit, &[0]));
            serving.join().unwrap().unwrap();
        });
        assert_eq!(desk.running.load(Ordering::Relaxed), 0);
    }
}
