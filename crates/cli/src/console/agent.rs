//! The host's end of [`init::wire`]: commands in a guest, with their streams and statuses, over a port of its virtio console.
//!
//! The guest may send anything. What is no frame ends all sessions, and so does a stream that is longer than the guest was told
//! there is room for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use init::Settings;
use init::wire::{Frame, Kind, LARGEST, PIECE, Reader, WINDOW, Window, encode_size};
use vm::SerialSink;

/// What sends bytes to the guest, waiting while it does not read; false if it never will.
type Port = Box<dyn Fn(&[u8]) -> bool + Send>;

/// The host's end, for one VM.
#[derive(Default)]
pub(crate) struct Agent {
    /// Locked while a frame is sent, so that it goes whole.
    port: Mutex<Option<Port>>,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    open: BTreeMap<u16, Arc<Session>>,
    /// The last number that was given. Numbers are not given again soon: somebody may still speak of one that has ended.
    last: u16,
    /// The guest is there.
    listening: bool,
    /// It is to power off.
    ending: bool,
}

/// A command in the guest.
#[derive(Default)]
pub(crate) struct Session {
    number: u16,
    said: Mutex<Backlog>,
    more: Condvar,
    input: Window,
}

/// What was said and not yet taken, in an order that the taker could have seen: neighbours of one stream are one piece, so that a
/// guest that speaks in single bytes, or says nothing often, costs no more than its bytes.
#[derive(Default)]
struct Backlog {
    pieces: VecDeque<Said>,
    /// Bytes in them; at most [`WINDOW`].
    waiting: usize,
}

/// What comes of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Standard output, or what its terminal shows.
    Output(Vec<u8>),
    /// Standard error.
    Error(Vec<u8>),
    /// It has ended, with this status.
    Exit(u8),
    /// It cannot be heard any more.
    Lost,
}

impl Said {
    fn len(&self) -> usize {
        match self {
            Self::Output(bytes) | Self::Error(bytes) => bytes.len(),
            Self::Exit(_) | Self::Lost => 0,
        }
    }

    /// Takes `next` in, if it goes on where this ends; else gives it back.
    fn join(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Output(bytes), Self::Output(more)) | (Self::Error(bytes), Self::Error(more)) => {
                bytes.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

impl Backlog {
    /// Notes what was said; false, and nothing but that the command is lost, if that is more than there is room for.
    fn push(&mut self, what: Said) -> bool {
        if matches!(&what, Said::Output(bytes) | Said::Error(bytes) if bytes.is_empty()) {
            return true;
        }
        let fits = self.waiting + what.len() <= WINDOW;
        let what = if fits { what } else { Said::Lost };
        self.waiting += what.len();
        let apart = match self.pieces.back_mut() {
            Some(last) => last.join(what),
            None => Some(what),
        };
        self.pieces.extend(apart);
        fits
    }

    fn pop(&mut self) -> Option<Said> {
        let first = self.pieces.pop_front()?;
        self.waiting -= first.len();
        Some(first)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Waits for what comes next; [`Said::Exit`] and [`Said::Lost`] are the last.
    pub(crate) fn next(&self) -> Said {
        let mut said = lock(&self.said);
        loop {
            if let Some(first) = said.pop() {
                return first;
            }
            said = self.more.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes what was said; false if that is more than there is room for.
    fn say(&self, what: Said) -> bool {
        let fits = lock(&self.said).push(what);
        self.more.notify_all();
        fits
    }
}

impl Agent {
    /// The main command's session, which the guest begins.
    pub(crate) fn main(&self) -> Arc<Session> {
        lock(&self.sessions).open.entry(0).or_default().clone()
    }

    /// The way to the guest.
    pub(crate) fn connect(&self, port: impl Fn(&[u8]) -> bool + Send + 'static) {
        *lock(&self.port) = Some(Box::new(port));
    }

    fn send(&self, session: u16, kind: Kind, bytes: &[u8]) -> bool {
        lock(&self.port).as_ref().is_some_and(|port| port(&Frame::encode(session, kind, bytes)))
    }

    /// Whether the guest can be told to run commands.
    pub(crate) fn listens(&self) -> bool {
        lock(&self.sessions).listening
    }

    /// Begins a command.
    ///
    /// # Errors
    /// A sentence, if the guest does not listen or cannot be told.
    pub(crate) fn open(&self, settings: &[u8]) -> Result<Arc<Session>, String> {
        let session = {
            let mut sessions = lock(&self.sessions);
            if !sessions.listening {
                return Err("its guest does not run commands, or not yet".to_owned());
            }
            let last = sessions.last;
            let mut numbers = (last.saturating_add(1)..=u16::MAX).chain(1..=last);
            let free = numbers.find(|number| !sessions.open.contains_key(number));
            let number = free.ok_or("too many commands run in its guest")?;
            sessions.last = number;
            let session = Arc::new(Session { number, ..Session::default() });
            sessions.open.insert(number, session.clone());
            session
        };
        if settings.len() > LARGEST || !self.send(session.number, Kind::Open, settings) {
            lock(&self.sessions).open.remove(&session.number);
            return Err("the command and its environment are too long, or the guest has ended".to_owned());
        }
        Ok(session)
    }

    /// Asks a system that has booted by itself to power off, now or as soon as somebody listens there.
    pub(crate) fn power_off(&self) {
        lock(&self.sessions).ending = true;
        let settings = Settings { command: vec!["poweroff".into()], ..Settings::default() };
        // Nobody has to hear what becomes of that but in the VM's end.
        let _ = self.open(&settings.encode());
    }

    /// Sends input, waiting while the command does not read; false if nobody will.
    pub(crate) fn input(&self, session: &Session, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(session.input.take(bytes.len().min(PIECE)));
            if now.is_empty() || !self.send(session.number, Kind::Input, now) {
                return false;
            }
            bytes = later;
        }
        true
    }

    /// That was all the input.
    pub(crate) fn input_end(&self, session: &Session) {
        self.send(session.number, Kind::InputEnd, &[]);
    }

    /// The terminal has another size.
    pub(crate) fn resize(&self, session: &Session, size: (u16, u16)) {
        self.send(session.number, Kind::Size, &encode_size(size));
    }

    /// Output has been passed on.
    pub(crate) fn passed_on(&self, session: &Session, bytes: usize) {
        self.send(session.number, Kind::Credit, &(bytes as u32).to_le_bytes());
    }

    /// Everything of the main command has been passed on.
    pub(crate) fn bye(&self) {
        self.send(0, Kind::Bye, &[]);
    }

    /// A frame of the guest's; false if it makes no sense.
    fn hear(&self, Frame { session: number, kind, bytes }: Frame) -> bool {
        let mut sessions = lock(&self.sessions);
        if kind == Kind::Hello {
            sessions.listening = true;
            let ending = sessions.ending;
            drop(sessions);
            if ending {
                self.power_off();
            }
            return true;
        }
        // The host may have given one up that the guest has not ended yet.
        let Some(session) = sessions.open.get(&number).cloned() else { return true };
        match (kind, bytes.as_slice()) {
            (Kind::Output, _) => session.say(Said::Output(bytes)),
            (Kind::Error, _) => session.say(Said::Error(bytes)),
            (Kind::Credit, &[a, b, c, d]) => {
                session.input.give(u32::from_le_bytes([a, b, c, d]) as usize);
                true
            }
            (Kind::Exit, &[status]) => {
                sessions.open.remove(&number);
                session.input.close();
                session.say(Said::Exit(status))
            }
            _ => false,
        }
    }

    /// Nothing more is heard.
    fn end(&self) {
        let open = {
            let mut sessions = lock(&self.sessions);
            sessions.listening = false;
            std::mem::take(&mut sessions.open)
        };
        for session in open.into_values() {
            session.input.close();
            session.say(Said::Lost);
        }
    }
}

/// What takes the bytes of the guest's port.
pub(crate) struct AgentSink {
    agent: Arc<Agent>,
    reader: Reader,
    broken: bool,
}

impl AgentSink {
    /// For this end.
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent, reader: Reader::default(), broken: false }
    }
}

impl SerialSink for AgentSink {
    fn write(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        let good = self
            .reader
            .feed(bytes)
            .is_ok_and(|frames| frames.into_iter().all(|frame| self.agent.hear(frame)));
        if !good {
            self.broken = true;
            self.agent.end();
        }
    }
}

impl Drop for AgentSink {
    fn drop(&mut self) {
        self.agent.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> (Arc<Agent>, AgentSink) {
        let agent = Arc::new(Agent::default());
        let sink = AgentSink::new(agent.clone());
        (agent, sink)
    }

    #[test]
    fn a_command_is_heard_to_its_end() {
        let (agent, mut guest) = guest();
        assert!(!agent.listens() && agent.open(b"").is_err(), "nobody listens yet");
        let main = agent.main();
        for (kind, bytes) in
            [(Kind::Hello, &b""[..]), (Kind::Output, b"a"), (Kind::Error, b"b"), (Kind::Exit, &[3])]
        {
            guest.write(&Frame::encode(0, kind, bytes));
        }
        let said = [Said::Output(b"a".to_vec()), Said::Error(b"b".to_vec()), Said::Exit(3)];
        assert_eq!([main.next(), main.next(), main.next()], said);
        assert!(agent.listens() && !agent.input(&main, b"x"));
    }

    #[test]
    fn a_guest_that_lies_or_goes_is_lost() {
        let lies = [
            vec![0xff; 64],
            Frame::encode(0, Kind::Exit, b""),
            Frame::encode(0, Kind::Open, b""),
            (0..=WINDOW / PIECE).flat_map(|_| Frame::encode(0, Kind::Output, &vec![0; PIECE])).collect(),
        ];
        for lie in lies {
            let (agent, mut guest) = guest();
            let main = agent.main();
            guest.write(&lie);
            guest.write(&Frame::encode(0, Kind::Exit, &[0]));
            while main.next() != Said::Lost {}
            assert!(guest.broken);
        }
        let (agent, guest) = guest();
        let main = agent.main();
        drop(guest);
        assert_eq!(main.next(), Said::Lost);
    }

    #[test]
    fn many_words_without_bytes_take_no_room() {
        let (agent, mut guest) = guest();
        let main = agent.main();
        for words in
            [[(Kind::Output, &b"a"[..]), (Kind::Error, b"")], [(Kind::Error, b"b"), (Kind::Output, b"")]]
        {
            let frames = words.map(|(kind, bytes)| Frame::encode(0, kind, bytes)).concat();
            guest.write(&frames.repeat(1000));
        }
        assert_eq!(lock(&main.said).pieces.len(), 2);
        assert_eq!(
            [main.next(), main.next()],
            [Said::Output(vec![b'a'; 1000]), Said::Error(vec![b'b'; 1000])]
        );
        assert_eq!(lock(&main.said).waiting, 0);
    }

    #[test]
    fn a_system_that_does_not_listen_yet_is_told_to_end_when_it_does() {
        let (agent, mut guest) = guest();
        let (sent, told) = std::sync::mpsc::channel();
        agent.connect(move |bytes| sent.send(bytes.to_vec()).is_ok());
        agent.power_off();
        assert!(told.try_recv().is_err() && lock(&agent.sessions).open.is_empty());
        guest.write(&Frame::encode(0, Kind::Hello, b""));
        let settings = Settings { command: vec!["poweroff".into()], ..Settings::default() };
        assert_eq!(told.try_recv().unwrap(), Frame::encode(1, Kind::Open, &settings.encode()));
    }

    #[test]
    fn frames_of_nobody_are_ignored() {
        let (agent, mut guest) = guest();
        guest.write(&Frame::encode(9, Kind::Output, b"x"));
        assert!(!guest.broken && lock(&agent.sessions).open.is_empty());
    }
}
