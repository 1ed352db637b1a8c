//! What is said over a VM's control socket.
//!
//! The client sends one line of JSON, the request: `{"version":1,"do":"pause"}`. The VM sends one line of JSON, the
//! answer: `{"ok":…}` or `{"error":"a sentence"}`. That is all, but for `plug`, behind whose request a byte comes with open files
//! (unix(7), SCM_RIGHTS), and for `console` and `exec`: both go on in *frames*, each a byte that
//! says what it is, a length of four bytes, little-endian, and so many bytes. Lines and frames have a largest length, and
//! whoever sends more is not listened to any further.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use device::{Device, ImageFile};

mod device;

/// The version of all this.
pub const VERSION: u32 = 1;
/// The longest line.
pub const LONGEST_LINE: usize = 1 << 20;
/// The most bytes in a frame.
pub const LARGEST_FRAME: usize = 64 << 10;

/// A request with its version.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked for.
    #[serde(flatten)]
    pub request: Request,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// `"running"` or `"paused"`.
    State,
    /// What was counted.
    Stats,
    /// Leave the guest so many bytes of memory.
    Update {
        /// Bytes.
        memory: u64,
    },
    /// Plug a device in; its files follow. The answer is its slot.
    Plug {
        /// What it is.
        device: Device,
    },
    /// Ask the guest to let go of a device, or take it away.
    Unplug {
        /// The slot's name.
        slot: String,
        /// Without asking.
        force: bool,
    },
    /// What is in the slots.
    Slots,
    /// Halt the VM.
    Pause,
    /// Let it go on.
    Resume,
    /// Ask the guest to switch itself off.
    Stop,
    /// End the VM at once.
    Kill,
    /// Wait for its end; the answer is its status.
    Wait,
    /// `true` if commands can be run in the guest, `false` if they cannot yet.
    Listens,
    /// Run a command in the guest; the answer says that it runs.
    Exec {
        /// What and how, as the guest's init encodes it.
        settings: Vec<u8>,
    },
    /// Attach to the console; the answer says whether it takes input.
    Console {
        /// The terminal's height and width, if there is a terminal.
        size: Option<(u16, u16)>,
    },
}

/// An answer.
pub type Answer = Result<Value, String>;

/// An answer as it is sent.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sent {
    Ok(Value),
    Error(String),
}

/// Sends a line.
///
/// # Errors
/// If nobody takes it.
fn send_line(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads a line, and not a byte behind it.
///
/// # Errors
/// If it is too long or has no end.
fn read_line(from: &mut impl Read, longest: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(line),
            _ if line.len() == longest => return Err(io::ErrorKind::InvalidData.into()),
            [byte] => line.push(byte),
        }
    }
}

/// Whether a request fits into a line.
pub fn fits(request: &Request) -> bool {
    let envelope = Envelope { version: VERSION, request: request.clone() };
    serde_json::to_vec(&envelope).is_ok_and(|line| line.len() <= LONGEST_LINE)
}

/// Sends a request.
///
/// # Errors
/// If nobody takes it.
pub fn ask(to: &mut impl Write, request: Request) -> io::Result<()> {
    send_line(to, &Envelope { version: VERSION, request })
}

/// Reads a request; a sentence if it is none.
///
/// # Errors
/// If it cannot be read.
pub fn read_request(from: &mut impl Read) -> io::Result<Result<Request, String>> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let line = read_line(from, LONGEST_LINE)?;
    Ok(match serde_json::from_slice::<Envelope>(&line) {
        Ok(Envelope { version: VERSION, request }) => Ok(request),
        _ => Err(match serde_json::from_slice(&line) {
            Ok(Version { version }) if version != VERSION => {
                format!(
                    "the VM was started by another version of umbra, whose protocol is {VERSION} and not {version}"
                )
            }
            _ => "the VM does not know this request".to_owned(),
        }),
    })
}

/// Sends an answer.
///
/// # Errors
/// If nobody takes it.
pub fn answer(to: &mut impl Write, answer: Answer) -> io::Result<()> {
    send_line(to, &answer.map_or_else(Sent::Error, Sent::Ok))
}

/// Reads an answer.
///
/// # Errors
/// If there is none.
pub fn read_answer(from: &mut impl Read) -> io::Result<Answer> {
    let line = read_line(from, LONGEST_LINE)?;
    Ok(match serde_json::from_slice(&line)? {
        Sent::Ok(value) => Ok(value),
        Sent::Error(why) => Err(why),
    })
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Typed bytes, to the VM.
    Input,
    /// There are no more of them.
    InputEnd,
    /// The terminal's new size, to the VM: two numbers of two bytes, height and width.
    Size,
    /// Printed on standard output, or on the terminal.
    Output,
    /// Printed on standard error.
    Error,
    /// The VM has ended, with the status in one byte.
    End,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Input, Self::InputEnd, Self::Size, Self::Output, Self::Error, Self::End];
}

/// Sends bytes as frames, as many as it takes, at least one.
///
/// # Errors
/// If nobody takes them.
pub fn send_frames(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let parts = bytes.chunks(LARGEST_FRAME);
    for part in parts.chain(bytes.is_empty().then_some(bytes)) {
        let mut frame = Vec::with_capacity(part.len() + 5);
        frame.push(kind as u8);
        frame.extend((part.len() as u32).to_le_bytes());
        frame.extend_from_slice(part);
        to.write_all(&frame)?;
    }
    Ok(())
}

/// Reads a frame; none at the end.
///
/// # Errors
/// If it is no frame, or too large.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0];
    loop {
        match from.read(&mut kind) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let [number] = kind;
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == number);
    let len = u32::from_le_bytes(len) as usize;
    let Some(kind) = kind.filter(|_| len <= LARGEST_FRAME) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(Some((kind, bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_come_back_and_others_are_refused() {
        for request in [
            Request::Stop,
            Request::Listens,
            Request::Plug { device: Device::User { spec: "user".into(), resolvers: Vec::new() } },
            Request::Exec { settings: vec![0, 255] },
            Request::Console { size: Some((24, 80)) },
            Request::Console { size: None },
        ] {
            let mut line = Vec::new();
            ask(&mut line, request.clone()).unwrap();
            line.extend(b"more");
            let mut rest = &line[..];
            assert_eq!(read_request(&mut rest).unwrap(), Ok(request));
            assert_eq!(rest, b"more");
        }
        let exec = |bytes| Request::Exec { settings: vec![200; bytes] };
        assert!(fits(&exec(LONGEST_LINE / 4 - 100)) && !fits(&exec(LONGEST_LINE / 4)));
        let refused = |line: &[u8]| read_request(&mut { line }).unwrap().unwrap_err();
        assert!(refused(b"{\"version\":2,\"do\":\"stop\"}\n").contains("another version"));
        assert!(refused(b"{\"version\":1,\"do\":\"fly\"}\n").contains("does not know"));
        assert!(refused(b"\xff\n").contains("does not know"));
        assert!(read_request(&mut &vec![b'x'; 2 << 20][..]).is_err());
        assert!(read_request(&mut &b"{}"[..]).is_err());
    }

    #[test]
    fn answers_come_back() {
        // One whose last digit is lost on the way if it is read in a hurry.
        let exact = serde_json::json!({"seconds": 14_444_544_444_453.443});
        for given in [Ok(serde_json::json!({"a": [1]})), Ok(exact), Err("it is not".to_owned())] {
            let mut line = Vec::new();
            answer(&mut line, given.clone()).unwrap();
            assert_eq!(read_answer(&mut &line[..]).unwrap(), given);
        }
    }

    #[test]
    fn bytes_go_in_frames_of_a_largest_size() {
        let bytes: Vec<u8> = (0..LARGEST_FRAME + 1).map(|n| n as u8).collect();
        let mut sent = Vec::new();
        send_frames(&mut sent, Kind::Error, &bytes).unwrap();
        let (mut from, mut got) = (&sent[..], Vec::new());
        while let Some((kind, part)) = read_frame(&mut from).unwrap() {
            assert!(kind == Kind::Error && part.len() <= LARGEST_FRAME);
            got.extend(part);
        }
        assert!(got == bytes);
        assert!(read_frame(&mut &[3, 1, 0, 1, 0][..]).is_err(), "too large");
        assert!(read_frame(&mut &[9, 0, 0, 0, 0][..]).is_err(), "no kind");
        assert!(read_frame(&mut &[3, 2, 0, 0, 0, 7][..]).is_err(), "cut off");
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_request(&mut &bytes[..]);
            let _ = read_answer(&mut &bytes[..]);
            let _ = read_frame(&mut &bytes[..]);
        }
    }
}
