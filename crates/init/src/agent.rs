//! The guest's end of [`init::wire`]: sessions that the host begins, and the main command's streams where it has no terminal.
//!
//! Each session has threads that carry its streams. The first process's own thread is the only one that buries the dead
//! ([`Agent::buried`]); a child's number is noted before that thread can look for it, since the note is locked while the child is made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use init::wire::{Frame, Kind, PIECE, PORT, Reader, Window, decode_size};
use init::{Directory, Settings};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::console::resize;
use crate::{Failure, OURS, command};

/// How long a driver may take to find the port.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long what a command left behind may keep its output open.
const LEFTOVERS: Duration = Duration::from_secs(1);
/// How long the host may take to pass the last output on.
const FAREWELL: Duration = Duration::from_secs(10);

/// The guest's end.
pub(crate) struct Agent {
    port: File,
    /// Held while a frame is sent, so that it goes whole.
    sending: Mutex<()>,
    main: Settings,
    sessions: Mutex<BTreeMap<u16, Arc<Session>>>,
    /// Who wants to hear of which child's end.
    children: Mutex<BTreeMap<u32, Sender<u8>>>,
    /// There is one more of them.
    born: Condvar,
    bye: Mutex<Option<Receiver<()>>>,
}

/// A command and its streams.
struct Session {
    output: Window,
    input: Sender<Vec<u8>>,
    terminal: Option<File>,
}

/// A session that has begun.
pub(crate) struct Begun {
    /// Its first process.
    pub(crate) process: u32,
    ended: Receiver<u8>,
    carriers: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The port, if the kernel has a driver for it.
fn find() -> Option<File> {
    const PORTS: &str = "/sys/class/virtio-ports";
    let deadline = Instant::now() + PATIENCE;
    while Path::new(PORTS).is_dir() && Instant::now() < deadline {
        for item in fs::read_dir(PORTS).ok()?.flatten() {
            let name = fs::read_to_string(item.path().join("name")).unwrap_or_default();
            if name.trim_end() == PORT {
                let path = Path::new("/dev").join(item.file_name());
                return File::options().read(true).write(true).open(path).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

impl Agent {
    /// Begins to listen, if there is a port.
    pub(crate) fn start(main: &Settings) -> Option<Arc<Self>> {
        let port = find()?;
        let from = port.try_clone().ok()?;
        let (said, bye) = mpsc::channel();
        let agent = Arc::new(Self {
            port,
            sending: Mutex::default(),
            main: main.clone(),
            sessions: Mutex::default(),
            children: Mutex::default(),
            born: Condvar::new(),
            bye: Mutex::new(Some(bye)),
        });
        let here = agent.clone();
        std::thread::spawn(move || here.listen(from, &said));
        agent.send(0, Kind::Hello, &[]);
        Some(agent)
    }

    fn send(&self, session: u16, kind: Kind, bytes: &[u8]) {
        let _one = lock(&self.sending);
        // Nobody to tell if the host does not listen.
        let _ = (&self.port).write_all(&Frame::encode(session, kind, bytes));
    }

    fn listen(self: &Arc<Self>, mut from: File, bye: &Sender<()>) {
        let (mut reader, mut bytes) = (Reader::default(), vec![0; 64 << 10]);
        while let Ok(len) = from.read(&mut bytes) {
            if len == 0 {
                return;
            }
            let Ok(frames) = reader.feed(bytes.get(..len).unwrap_or_default()) else { return };
            for frame in frames {
                match frame.kind {
                    Kind::Open => self.open(frame.session, &frame.bytes),
                    Kind::Bye => {
                        let _ = bye.send(());
                    }
                    kind => self.pass(frame.session, kind, frame.bytes),
                }
            }
        }
    }

    /// What concerns a session. Of one that has ended nothing does.
    fn pass(&self, number: u16, kind: Kind, bytes: Vec<u8>) {
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.get_mut(&number) else { return };
        match (kind, bytes.as_slice()) {
            (Kind::Input, _) => {
                let _ = session.input.send(bytes);
            }
            (Kind::InputEnd, _) => {
                let _ = session.input.send(Vec::new());
            }
            (Kind::Size, size) => {
                if let (Some(terminal), Some(size)) = (&session.terminal, decode_size(size)) {
                    resize(terminal, size);
                }
            }
            (Kind::Credit, &[a, b, c, d]) => session.output.give(u32::from_le_bytes([a, b, c, d]) as usize),
            _ => {}
        }
    }

    /// Begins a session for the host, which hears of its end.
    fn open(self: &Arc<Self>, number: u16, settings: &[u8]) {
        let begun = Settings::decode(settings)
            .ok_or_else(|| Failure("the command cannot be understood".to_owned()))
            .and_then(|settings| self.begin(number, &self.completed(settings)));
        let here = self.clone();
        std::thread::spawn(move || {
            let status = match begun {
                Ok(begun) => begun.end(LEFTOVERS),
                Err(Failure(why)) => {
                    here.send(number, Kind::Error, format!("umbra: in the guest: {why}\n").as_bytes());
                    OURS
                }
            };
            here.send(number, Kind::Exit, &[status]);
            lock(&here.sessions).remove(&number);
        });
    }

    /// What is not said is as for the main command.
    fn completed(&self, mut settings: Settings) -> Settings {
        let own = std::mem::take(&mut settings.environment);
        settings.environment = self.main.environment.iter().cloned().chain(own).collect();
        settings.user = settings.user.or_else(|| self.main.user.clone());
        if settings.directory == Directory::Home {
            settings.directory = self.main.directory.clone();
        }
        settings
    }

    /// Begins a session.
    pub(crate) fn begin(self: &Arc<Self>, number: u16, settings: &Settings) -> Result<Begun, Failure> {
        let mut command = command::prepare(settings, settings.terminal.is_some())?;
        let cannot = |error: std::io::Error| Failure::new("cannot start the command", error);
        let terminal = match &settings.terminal {
            Some(terminal) => {
                let person = self::terminal(&mut command).map_err(cannot)?;
                resize(&person, terminal.size);
                Some(person)
            }
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                None
            }
        };
        let (input, typed) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let copy = |file: &File| file.try_clone().map_err(cannot);
        let ends = terminal.as_ref().map(|person| Ok((copy(person)?, copy(person)?))).transpose()?;
        let mut child = {
            let mut children = lock(&self.children);
            let child = command.spawn().map_err(cannot)?;
            children.insert(child.id(), end);
            self.born.notify_all();
            child
        };
        // The terminal's far end is the command's only.
        drop(command);
        let session = Arc::new(Session { output: Window::default(), input, terminal });
        lock(&self.sessions).insert(number, session.clone());
        let carriers = self.carry(number, &session, &mut child, ends, typed);
        Ok(Begun { process: child.id(), ended, carriers })
    }

    /// Starts the threads that carry a session's streams; those of its output.
    fn carry(
        self: &Arc<Self>,
        number: u16,
        session: &Arc<Session>,
        child: &mut Child,
        ends: Option<(File, File)>,
        typed: Receiver<Vec<u8>>,
    ) -> Vec<JoinHandle<()>> {
        let mut carriers = Vec::new();
        let mut carry = |kind, from: Box<dyn Read + Send>| {
            let (here, session) = (self.clone(), session.clone());
            carriers.push(std::thread::spawn(move || here.carry_output(number, kind, &session, from)));
        };
        let here = self.clone();
        let feed = |to: Box<dyn Write + Send>, is_terminal: bool| {
            let (here, typed) = (here.clone(), typed);
            std::thread::spawn(move || here.carry_input(number, &typed, to, is_terminal));
        };
        match ends {
            Some((from, to)) => {
                carry(Kind::Output, Box::new(from));
                feed(Box::new(to), true);
            }
            None => {
                if let Some(stdout) = child.stdout.take() {
                    carry(Kind::Output, Box::new(stdout));
                }
                if let Some(stderr) = child.stderr.take() {
                    carry(Kind::Error, Box::new(stderr));
                }
                if let Some(stdin) = child.stdin.take() {
                    feed(Box::new(stdin), false);
                }
            }
        }
        carriers
    }

    fn carry_output(&self, number: u16, kind: Kind, session: &Session, mut from: impl Read) {
        let mut bytes = vec![0; PIECE];
        loop {
            let mut rest = match from.read(&mut bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // A terminal whose last user has gone reads as an error.
                Ok(0) | Err(_) => return,
                Ok(len) => bytes.get(..len).unwrap_or_default(),
            };
            while !rest.is_empty() {
                let (now, later) = rest.split_at(session.output.take(rest.len()));
                self.send(number, kind, now);
                rest = later;
            }
        }
    }

    fn carry_input(&self, number: u16, typed: &Receiver<Vec<u8>>, to: impl Write, is_terminal: bool) {
        let mut to = Some(to);
        while let Ok(bytes) = typed.recv() {
            if bytes.is_empty() && !is_terminal {
                to = None;
            }
            // Who does not read any more does not hold up who writes.
            if to.as_mut().is_some_and(|to| to.write_all(&bytes).is_err()) {
                to = None;
            }
            self.send(number, Kind::Credit, &(bytes.len() as u32).to_le_bytes());
        }
    }

    /// Waits until there are children.
    fn await_children(&self) {
        let mut children = lock(&self.children);
        while children.is_empty() {
            children = self.born.wait(children).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A child has ended and was buried.
    pub(crate) fn buried(&self, process: u32, status: u8) {
        if let Some(end) = lock(&self.children).remove(&process) {
            let _ = end.send(status);
        }
    }

    /// The main command has ended, with everything around it: tells the host, and waits until that has all of its output.
    pub(crate) fn farewell(&self, begun: Begun, status: u8) {
        begun.carriers.into_iter().for_each(|carrier| drop(carrier.join()));
        self.send(0, Kind::Exit, &[status]);
        if let Some(bye) = lock(&self.bye).take() {
            let _ = bye.recv_timeout(FAREWELL);
        }
    }
}

/// Is a service of a system that has booted by itself, as long as that runs; returns a status if it cannot be.
pub(crate) fn serve() -> i32 {
    let Some(agent) = Agent::start(&Settings::default()) else {
        eprintln!("umbra: in the guest: no commands can be run from outside: there is no port '{PORT}'");
        return i32::from(OURS);
    };
    loop {
        agent.await_children();
        if let Err(Failure(why)) = command::bury(&agent) {
            eprintln!("umbra: in the guest: {why}");
            return i32::from(OURS);
        }
    }
}

impl Begun {
    /// Waits for the end: of the command, and of its output, unless somebody whom it left behind keeps that open.
    fn end(self, patience: Duration) -> u8 {
        let status = self.ended.recv().unwrap_or(OURS);
        let deadline = Instant::now() + patience;
        while !self.carriers.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        status
    }
}

/// Puts a command on a new terminal; the end where the person would sit.
fn terminal(command: &mut Command) -> std::io::Result<File> {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&person)?;
    unlockpt(&person)?;
    let name = ptsname(&person, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let far = File::from(rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?);
    command.stdin(far.try_clone()?).stdout(far.try_clone()?).stderr(far);
    Ok(File::from(person))
}
