//! All connections: whom a packet is for, who has something for the guest, who calls.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use backend::vsock::Doors;
use host::poll::{Bell, Poller, Ready, Trigger};

use super::connection::{Connection, Fate, Next};
use super::wire::{Address, Header, STREAM, operation};

/// The host's number.
const HOST: u64 = 2;
/// The most connections, callers that have not said what they want among them.
const MOST: usize = 512;
/// The most answers that wait for a buffer of the guest's before its packets have to.
const MOST_ANSWERS: usize = 256;
/// The first port that the host's ends of calls to the guest get.
const FIRST_PORT: u32 = 1 << 30;
/// The most callers that are answered before others have their turn.
const MOST_CALLERS: usize = 16;

const BELL: u64 = 0;
const LISTENER: u64 = 1;
/// The first number of a stream.
const FIRST_STREAM: u64 = 2;

/// A connection by its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ports {
    guest: u32,
    host: u32,
}

/// A stream and, once it is known, what it is to the guest.
struct Line {
    ports: Option<Ports>,
    connection: Connection,
}

/// All connections of a guest.
pub(super) struct Exchange {
    guest: u64,
    doors: Box<dyn Doors>,
    poller: Poller,
    ready: Vec<Ready>,
    lines: HashMap<u64, Line>,
    by_ports: HashMap<Ports, u64>,
    /// Those that may have something for the guest, one after the other.
    round: VecDeque<u64>,
    /// Packets that belong to no connection any more.
    answers: VecDeque<Header>,
    next_line: u64,
    next_port: u32,
}

impl Exchange {
    /// No connection yet.
    pub(super) fn new(guest: u64, doors: Box<dyn Doors>, bell: &Bell) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(bell.as_fd(), BELL, Trigger::Edge)?;
        if let Some(listener) = doors.listener() {
            poller.add(listener, LISTENER, Trigger::Readable)?;
        }
        Ok(Self {
            guest,
            doors,
            poller,
            ready: Vec::new(),
            lines: HashMap::new(),
            by_ports: HashMap::new(),
            round: VecDeque::new(),
            answers: VecDeque::new(),
            next_line: FIRST_STREAM,
            next_port: FIRST_PORT,
        })
    }

    /// Ends all connections: the guest does not know them any more.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.by_ports.clear();
        self.round.clear();
        self.answers.clear();
    }

    /// Whether a packet of the guest may be taken.
    pub(super) fn is_open(&self) -> bool {
        self.answers.len() < MOST_ANSWERS
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_news(&self) -> bool {
        !self.answers.is_empty() || !self.round.is_empty()
    }

    /// Waits until the bell rings or a stream stirs, `limit` at most.
    pub(super) fn wait(&mut self, limit: Option<Duration>) {
        let mut ready = std::mem::take(&mut self.ready);
        if self.poller.wait(&mut ready, limit).is_ok() {
            for event in &ready {
                match event.token {
                    BELL => {}
                    LISTENER => self.answer_callers(),
                    line => self.stirred(line, event),
                }
            }
        }
        self.ready = ready;
    }

    pub(super) fn answer_callers(&mut self) {
        for _ in 0..MOST_CALLERS {
            let Ok(stream) = self.doors.answer() else { return };
            // Who is one too many hears an end.
            self.add(None, Connection::greeting(stream));
        }
    }

    /// Takes a connection in; none if there are too many.
    fn add(&mut self, ports: Option<Ports>, connection: Connection) -> Option<u64> {
        let line = self.next_line;
        if self.lines.len() >= MOST
            || self.poller.add(connection.stream().as_fd(), line, Trigger::Edge).is_err()
        {
            return None;
        }
        self.next_line += 1;
        self.lines.insert(line, Line { ports, connection });
        if let Some(ports) = ports {
            self.by_ports.insert(ports, line);
        }
        Some(line)
    }

    fn stirred(&mut self, number: u64, event: &Ready) {
        let Some(line) = self.lines.get_mut(&number) else { return };
        if line.ports.is_some() {
            let fate = line.connection.stirred(event.readable, event.writable);
            self.settle(number, fate);
            return;
        }
        match line.connection.greet() {
            Ok(None) => {}
            Ok(Some(guest)) => {
                let Some(ports) = self.free_ports(guest) else { return self.settle(number, Fate::Over) };
                self.by_ports.insert(ports, number);
                if let Some(line) = self.lines.get_mut(&number) {
                    line.ports = Some(ports);
                    line.connection.call(ports.host);
                }
                self.settle(number, Fate::Stays);
            }
            Err(fate) => self.settle(number, fate),
        }
    }

    /// A port of the host's that this port of the guest's has no connection with.
    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        // One more than there can be in use.
        (0..=MOST).find_map(|_| {
            let ports = Ports { guest, host: self.next_port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            (!self.by_ports.contains_key(&ports)).then_some(ports)
        })
    }

    /// Lets a connection go on, or end.
    fn settle(&mut self, number: u64, fate: Fate) {
        if fate == Fate::Stays {
            if let Some(line) = self.lines.get_mut(&number)
                && !std::mem::replace(&mut line.connection.queued, true)
            {
                self.round.push_back(number);
            }
            return;
        }
        let Some(ports) = self.lines.remove(&number).and_then(|line| line.ports) else { return };
        self.by_ports.remove(&ports);
        self.round.retain(|other| *other != number);
        if fate == Fate::Reset {
            self.answers.push_back(self.header(ports, operation::RESET));
        }
    }

    fn header(&self, ports: Ports, operation: u16) -> Header {
        Header {
            source: Address { cid: HOST, port: ports.host },
            target: Address { cid: self.guest, port: ports.guest },
            kind: STREAM,
            operation,
            ..Header::default()
        }
    }

    /// Takes a packet of the guest.
    pub(super) fn take(&mut self, header: &Header, data: &[u8]) {
        if header.source.cid != self.guest {
            return;
        }
        let ports = Ports { guest: header.source.port, host: header.target.port };
        let known = self.by_ports.get(&ports).copied();
        let reachable = header.target.cid == HOST && header.kind == STREAM;
        match (header.operation, known.filter(|_| reachable)) {
            (operation::REQUEST, None) if reachable => self.call(header, ports),
            (operation::REQUEST, Some(number)) => self.settle(number, Fate::Reset),
            (_, Some(number)) => {
                let Some(line) = self.lines.get_mut(&number) else { return };
                let fate = line.connection.take(header, data);
                self.settle(number, fate);
            }
            (operation::RESET, None) => {}
            (_, None) => self.answers.push_back(header.reset()),
        }
    }

    /// The guest calls the host.
    fn call(&mut self, header: &Header, ports: Ports) {
        let called = |stream: UnixStream| Connection::called(stream, header);
        let room = self.lines.len() < MOST;
        let connection = if room { self.doors.call(ports.host).ok().map(called) } else { None };
        match connection.and_then(|connection| self.add(Some(ports), connection)) {
            Some(number) => self.settle(number, Fate::Stays),
            None => self.answers.push_back(header.reset()),
        }
    }

    /// The next packet for the guest, its data in `room`.
    pub(super) fn next(&mut self, room: &mut [u8]) -> Option<Header> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            let number = self.round.pop_front()?;
            let Some(Line { ports: Some(ports), connection }) = self.lines.get_mut(&number) else { continue };
            let ports = *ports;
            connection.queued = false;
            match connection.next(room) {
                Next::Nothing => {}
                Next::Reset => self.settle(number, Fate::Reset),
                Next::Packet { operation, flags, len } => {
                    let (buffer, forwarded) = connection.credit();
                    self.settle(number, Fate::Stays);
                    return Some(Header { flags, len, buffer, forwarded, ..self.header(ports, operation) });
                }
            }
        }
    }
}
