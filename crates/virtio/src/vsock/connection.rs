//! One connection: a stream of the host's on one side, packets and credit on the other (VIRTIO 1.2, 5.10.6.3).
//!
//! Either side says how many bytes its socket holds and how many have left it; the other never sends more than there is room for. What the
//! guest sends and the stream does not take is kept, [`BUFFER`] bytes at most, for that is the room that the guest was told of. What
//! the stream has is read when the guest has room and a buffer for it, and not before.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::wire::{Header, operation, shutdown};

/// The room for what the guest sends.
pub(super) const BUFFER: u32 = 256 << 10;
/// The longest line that a caller begins with.
const LONGEST_GREETING: usize = 32;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The host's end has yet to say which port of the guest it wants; what it has said so far.
    Greeting(Vec<u8>),
    /// The guest has yet to answer. From then on the host's end knows by this port.
    Calling(u32),
    /// It is there.
    Open,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest is to be told.
    Reset,
}

/// What there is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, for now.
    Nothing,
    /// A packet of this operation, with these flags and so many bytes.
    Packet { operation: u16, flags: u32, len: u32 },
    /// The connection is over.
    Reset,
}

fn packet(operation: u16) -> Next {
    Next::Packet { operation, flags: 0, len: 0 }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    stage: Stage,
    // From the guest.
    /// What the stream has not taken.
    unsent: VecDeque<u8>,
    /// How many bytes it has taken, modulo 2^32; what the guest was told of that.
    forwarded: u32,
    told: u32,
    /// What the guest will not do any more: [`shutdown`]'s flags.
    guest_ends: u32,
    // To the guest.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// The stream may have something to read.
    readable: bool,
    /// It has said its last.
    at_end: bool,
    /// The guest was asked for credit, and has not answered.
    asked: bool,
    /// A packet without data that is due.
    due: Option<u16>,
    credit_due: bool,
    /// Whether it waits in the exchange's round.
    pub(super) queued: bool,
}

impl Connection {
    fn new(stream: UnixStream, stage: Stage, due: Option<u16>) -> Self {
        Self {
            stream,
            stage,
            unsent: VecDeque::new(),
            forwarded: 0,
            told: 0,
            guest_ends: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            readable: true,
            at_end: false,
            asked: false,
            due,
            credit_due: false,
            queued: false,
        }
    }

    /// One that the guest has asked for, and that the host has answered.
    pub(super) fn called(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Stage::Open, Some(operation::RESPONSE));
        connection.hear(request);
        connection
    }

    /// One whose host's end has yet to say what it wants.
    pub(super) fn greeting(stream: UnixStream) -> Self {
        Self::new(stream, Stage::Greeting(Vec::new()), None)
    }

    /// The stream.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The room and the count that go into every header.
    pub(super) fn credit(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        self.credit_due = false;
        (BUFFER, self.forwarded)
    }

    /// Reads on what a caller begins with: `CONNECT port`. The port, once it is there; none if it is not what a caller says.
    pub(super) fn greet(&mut self) -> Result<Option<u32>, Fate> {
        let Stage::Greeting(line) = &mut self.stage else { return Ok(None) };
        // Byte by byte: what follows the line is for the guest.
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if line.len() < LONGEST_GREETING => line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Err(Fate::Over),
            }
        }
        let words = str::from_utf8(line).unwrap_or_default();
        let port = words.strip_prefix("CONNECT ").and_then(|port| port.trim_end().parse().ok());
        port.map(Some).ok_or(Fate::Over)
    }

    /// Calls the guest; the host's end is called `port`.
    pub(super) fn call(&mut self, port: u32) {
        self.stage = Stage::Calling(port);
        self.due = Some(operation::REQUEST);
    }

    fn hear(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        self.asked = false;
    }

    /// Takes a packet of the guest, other than a REQUEST, with its data.
    pub(super) fn take(&mut self, header: &Header, data: &[u8]) -> Fate {
        self.hear(header);
        match (header.operation, &self.stage) {
            (operation::RESET, _) => Fate::Over,
            (operation::RESPONSE, Stage::Calling(port)) => {
                // A stream that nobody has written to takes a line.
                let said = self.stream.write_all(format!("OK {port}\n").as_bytes());
                self.stage = Stage::Open;
                if said.is_ok() { Fate::Stays } else { Fate::Reset }
            }
            (operation::DATA, Stage::Open) => self.keep(data),
            (operation::CREDIT_UPDATE, Stage::Open) => Fate::Stays,
            (operation::CREDIT_REQUEST, Stage::Open) => {
                self.credit_due = true;
                Fate::Stays
            }
            (operation::SHUTDOWN, Stage::Open) => {
                self.guest_ends |= header.flags & (shutdown::SEND | shutdown::RECEIVE);
                self.flush()
            }
            // What makes no sense here.
            _ => Fate::Reset,
        }
    }

    /// Passes data on, or keeps it. More than there was room for, or some after the end, is a mistake of the guest's.
    fn keep(&mut self, data: &[u8]) -> Fate {
        let fits = self.unsent.len() + data.len() <= BUFFER as usize;
        if !fits || self.guest_ends & shutdown::SEND != 0 {
            return Fate::Reset;
        }
        self.unsent.extend(data);
        self.flush()
    }

    /// The stream may take more, or have more.
    pub(super) fn stirred(&mut self, readable: bool, writable: bool) -> Fate {
        self.readable |= readable;
        if writable && self.stage == Stage::Open { self.flush() } else { Fate::Stays }
    }

    /// Gives the stream what it takes.
    fn flush(&mut self) -> Fate {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.as_slices().0) {
                Ok(count) => {
                    self.unsent.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(x86::bits::low32(count as u64));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        if self.forwarded.wrapping_sub(self.told) >= BUFFER / 2 {
            self.credit_due = true;
        }
        if self.unsent.is_empty() && self.guest_ends & shutdown::SEND != 0 {
            if self.guest_ends & shutdown::RECEIVE != 0 {
                return Fate::Reset;
            }
            // It fails where the other end has gone; reading will tell.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Stays
    }

    /// The next packet for the guest, its data in `room`.
    pub(super) fn next(&mut self, room: &mut [u8]) -> Next {
        if let Some(operation) = self.due.take() {
            return packet(operation);
        }
        if self.credit_due {
            return packet(operation::CREDIT_UPDATE);
        }
        let deaf = self.guest_ends & shutdown::RECEIVE != 0;
        if self.stage != Stage::Open || !self.readable || self.at_end || deaf {
            return Next::Nothing;
        }
        // A guest may say what it likes; on its way can be no more than was sent.
        let on_its_way = self.sent.wrapping_sub(self.guest_forwarded);
        let free = self.guest_buffer.saturating_sub(on_its_way) as usize;
        if free == 0 {
            if std::mem::replace(&mut self.asked, true) {
                return Next::Nothing;
            }
            return packet(operation::CREDIT_REQUEST);
        }
        let len = room.len().min(free);
        let room = room.get_mut(..len).unwrap_or_default();
        let read = loop {
            match self.stream.read(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) if len > 0 => self.end(),
            Ok(count) => {
                let len = x86::bits::low32(count as u64);
                self.sent = self.sent.wrapping_add(len);
                Next::Packet { operation: operation::DATA, flags: 0, len }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Next::Nothing
            }
            Err(_) => Next::Reset,
        }
    }

    /// The stream has said its last: who has closed it altogether does not hear any more either, so that a write of nothing fails.
    fn end(&mut self) -> Next {
        self.at_end = true;
        let gone = self.guest_ends & shutdown::SEND == 0 && self.stream.write(&[]).is_err();
        let flags = if gone { shutdown::SEND | shutdown::RECEIVE } else { shutdown::SEND };
        Next::Packet { operation: operation::SHUTDOWN, flags, len: 0 }
    }
}
