//! The console of a VM in the background: what the guest prints goes to the log and to everybody who is attached, and what
//! they type goes to the guest.
//!
//! Somebody attached who does not read makes the guest wait, as a terminal does, but not for long: then he is left behind.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use init::wire::decode_size;
use vm::{SerialInput, SerialSink};

use super::log::Writer;
use crate::console::{LineEnds, size_line};
use crate::status::Status;
use control::Kind;

/// How long a guest waits for somebody attached.
const PATIENCE: Duration = Duration::from_secs(2);

/// The console.
pub(crate) struct Hub(Mutex<State>);

struct State {
    log: Writer,
    /// Those who see what the guest prints.
    attached: Vec<(u64, UnixStream)>,
    /// How many threads attend to somebody: also one who has left, as long as the guest does not read what he typed.
    attending: usize,
    /// The number of the next who attaches.
    next: u64,
    input: Option<Input>,
}

/// Where typed bytes go.
#[derive(Clone)]
pub(crate) struct Input {
    /// The console's port.
    pub(crate) console: SerialInput,
    /// The port where the guest is told the terminal's size, if it understands that.
    pub(crate) control: Option<SerialInput>,
}

impl Hub {
    /// How many may be attached.
    pub(super) const MOST_ATTACHED: usize = 4;

    /// A console with a new log in this directory.
    ///
    /// # Errors
    /// If the log cannot be made.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let log = Writer::create(directory)?;
        Ok(Self(Mutex::new(State { log, attached: Vec::new(), attending: 0, next: 0, input: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads its console from now on.
    pub(crate) fn set_input(&self, input: Input) {
        self.lock().input = Some(input);
    }

    /// Prints.
    fn put(&self, kind: Kind, bytes: &[u8]) {
        let mut state = self.lock();
        // A host without room loses the log, not the guest.
        let _ = state.log.write(kind, bytes);
        state.attached.retain_mut(|(_, stream)| {
            let taken = control::send_frames(stream, kind, bytes).is_ok();
            if !taken {
                let _ = stream.shutdown(Shutdown::Both);
            }
            taken
        });
    }

    /// Attaches somebody until he leaves or the VM ends.
    ///
    /// # Errors
    /// If his frames are none.
    pub(super) fn attach(&self, stream: &mut UnixStream, size: Option<(u16, u16)>) -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let takes_input = {
            let mut state = self.lock();
            if state.attending >= Self::MOST_ATTACHED {
                let why = format!("{} others are attached to its console", Self::MOST_ATTACHED);
                return control::answer(stream, Err(why));
            }
            state.attending += 1;
            state.input.is_some()
        };
        let left = self.attend(stream, takes_input, size);
        self.lock().attending -= 1;
        left
    }

    fn attend(&self, stream: &mut UnixStream, takes_input: bool, size: Option<(u16, u16)>) -> io::Result<()> {
        let number = {
            // What is printed meanwhile comes after the answer.
            let mut state = self.lock();
            control::answer(stream, Ok(serde_json::json!({ "input": takes_input })))?;
            let number = state.next;
            state.next += 1;
            state.attached.push((number, stream.try_clone()?));
            number
        };
        if let Some(size) = size {
            self.resize(size);
        }
        let left = self.listen(stream);
        self.lock().attached.retain(|(other, _)| *other != number);
        left
    }

    /// Takes what somebody types.
    fn listen(&self, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_read_timeout(None)?;
        while let Some((kind, bytes)) = control::read_frame(stream)? {
            match (kind, bytes.as_slice()) {
                (Kind::Input, typed) => {
                    let input = self.lock().input.clone();
                    if input.is_some_and(|input| !input.console.send(typed)) {
                        return Ok(());
                    }
                }
                (Kind::Size, size) => {
                    self.resize(decode_size(size).ok_or(io::ErrorKind::InvalidData)?);
                }
                // The guest may have other typists.
                (Kind::InputEnd, _) => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    fn resize(&self, (rows, columns): (u16, u16)) {
        let input = self.lock().input.clone();
        if let Some(control) = input.and_then(|input| input.control) {
            control.send(size_line(rows, columns).as_bytes());
        }
    }

    /// Tells everybody how the VM ended.
    pub(super) fn end(&self, status: Status) {
        for (_, mut stream) in self.lock().attached.drain(..) {
            let _ = control::send_frames(&mut stream, Kind::End, &[status.0]);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One of the guest's ports, on its way to the hub.
pub(crate) struct HubSink {
    hub: Arc<Hub>,
    kind: Kind,
    line_ends: LineEnds,
}

impl HubSink {
    /// Standard output, or the terminal.
    pub(crate) fn output(hub: Arc<Hub>) -> Self {
        Self { hub, kind: Kind::Output, line_ends: LineEnds::Kept }
    }

    /// Standard error and the kernel's messages.
    pub(crate) fn error(hub: Arc<Hub>, line_ends: LineEnds) -> Self {
        Self { hub, kind: Kind::Error, line_ends }
    }
}

impl SerialSink for HubSink {
    fn write(&mut self, bytes: &[u8]) {
        for part in self.line_ends.kept(bytes) {
            self.hub.put(self.kind, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn those_attached_see_output_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(dir.path()).unwrap());
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let attached = hub.clone();
        let listener = std::thread::spawn(move || attached.attach(&mut far, None));
        let answer = control::read_answer(&mut near).unwrap().unwrap();
        assert_eq!(answer["input"], false);
        while hub.lock().attached.is_empty() {
            std::thread::yield_now();
        }
        HubSink::output(hub.clone()).write(b"hello");
        hub.end(Status(5));
        let mut next = || control::read_frame(&mut near).unwrap();
        assert_eq!(next(), Some((Kind::Output, b"hello".to_vec())));
        assert_eq!(next(), Some((Kind::End, vec![5])));
        assert_eq!(next(), None);
        assert!(listener.join().unwrap().is_ok());
    }

    #[test]
    fn only_so_many_are_attached() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(dir.path()).unwrap();
        let ask = || {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            std::thread::scope(|scope| {
                let attached = scope.spawn(|| hub.attach(&mut far, None));
                let answer = control::read_answer(&mut near).unwrap();
                drop(near);
                attached.join().unwrap().unwrap();
                answer
            })
        };
        // Each leaves before the next comes.
        for _ in 0..2 * Hub::MOST_ATTACHED {
            ask().unwrap();
        }
        // They have left, and the guest does not read what they typed.
        hub.lock().attending = Hub::MOST_ATTACHED;
        assert!(hub.lock().attached.is_empty());
        assert!(ask().unwrap_err().contains("others are attached"));
    }

    #[test]
    fn one_who_does_not_read_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(dir.path()).unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        far.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        hub.lock().attached.push((0, far));
        let (started, mut sink) = (Instant::now(), HubSink::error(hub.clone(), LineEnds::Kept));
        while !hub.lock().attached.is_empty() {
            sink.write(&[b'x'; 4096]);
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        drop(near);
    }
}
