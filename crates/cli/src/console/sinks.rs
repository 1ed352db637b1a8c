//! Where the guest's serial output goes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use vm::SerialSink;

use super::control::Reader;
use super::{Event, Events};

/// Standard output or standard error, unbuffered.
pub(super) struct Output {
    file: File,
    line_ends: LineEnds,
    /// Nobody reads any more; the guest's output is dropped.
    broken: bool,
    events: Events,
}

/// What becomes of a carriage return before a line feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineEnds {
    /// It stays.
    Kept,
    /// It goes. The kernel writes its messages for terminals; a file wants them without.
    Unix,
}

impl LineEnds {
    /// The parts of these bytes that are kept.
    pub(crate) fn kept(self, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        bytes.split(move |byte| self == Self::Unix && *byte == b'\r').filter(|part| !part.is_empty())
    }
}

impl Output {
    /// Standard output.
    pub(super) fn stdout(events: Events) -> io::Result<Self> {
        Self::to(io::stdout().as_fd(), LineEnds::Kept, events)
    }

    /// Standard error.
    pub(super) fn stderr(line_ends: LineEnds, events: Events) -> io::Result<Self> {
        Self::to(io::stderr().as_fd(), line_ends, events)
    }

    fn to(fd: impl AsFd, line_ends: LineEnds, events: Events) -> io::Result<Self> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        Ok(Self { file, line_ends, broken: false, events })
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        if let Err(error) = write_all(&mut self.file, bytes) {
            self.broken = true;
            self.events.send(Event::OutputLost(error));
        }
    }
}

impl SerialSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        for part in self.line_ends.kept(bytes) {
            self.put(part);
        }
    }
}

/// Writes everything, also to something that was made non-blocking by whoever gave it to us.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                super::wait_for(file, super::Wanted::Write)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The control port: what the guest says becomes events.
pub(super) struct Control {
    reader: Reader,
    events: Events,
}

impl Control {
    /// A control port.
    pub(super) fn new(events: Events) -> Self {
        Self { reader: Reader::default(), events }
    }
}

impl SerialSink for Control {
    fn write(&mut self, bytes: &[u8]) {
        for said in self.reader.read(bytes) {
            self.events.send(Event::Guest(said));
        }
    }
}
