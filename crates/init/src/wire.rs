//! What the host and the first process of a guest say to each other over a port of the virtio console, once both have it: the
//! streams of any number of *sessions*, each a command with its standard streams and its status, in frames.
//!
//! A frame is a session's number (2 bytes), what it is (2), a length (4), all little-endian, and so many bytes. Session 0 is the
//! guest's main command, which the guest begins itself; others are begun by the host.
//!
//! A stream is sent only as far as the receiver has said that it has room: [`WINDOW`] bytes at first, and what it has passed on since
//! ([`Kind::Credit`]). So one stream that nobody reads stops no other, and both ends keep a bounded number of bytes of each.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The port's name.
pub const PORT: &str = "umbra.agent";
/// How many bytes of a session may be under way in one direction.
pub const WINDOW: usize = 256 << 10;
/// The most bytes of a stream in a frame.
pub const PIECE: usize = 32 << 10;
/// The most bytes in any frame.
pub const LARGEST: usize = 1 << 20;
/// The bytes before those.
const HEADER: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the host: the guest listens.
    Hello,
    /// To the guest: begin a session with these [`crate::Settings`].
    Open,
    /// To the guest: standard input.
    Input,
    /// To the guest: that was all of it.
    InputEnd,
    /// To the guest: the terminal's height and width, two bytes each.
    Size,
    /// To the host: standard output, or what a terminal shows.
    Output,
    /// To the host: standard error.
    Error,
    /// The receiver has passed on so many bytes, four of them.
    Credit,
    /// To the host, and a session's last: its status, one byte.
    Exit,
    /// To the guest: everything of session 0 has been passed on.
    Bye,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::Open,
        Self::Input,
        Self::InputEnd,
        Self::Size,
        Self::Output,
        Self::Error,
        Self::Credit,
        Self::Exit,
        Self::Bye,
    ];
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Whose.
    pub session: u16,
    /// What.
    pub kind: Kind,
    /// With what.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// As it is sent.
    pub fn encode(session: u16, kind: Kind, bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER + bytes.len());
        frame.extend(session.to_le_bytes());
        frame.extend((kind as u16).to_le_bytes());
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend_from_slice(bytes);
        frame
    }
}

/// A terminal's height and width as they are sent.
pub fn encode_size((rows, columns): (u16, u16)) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// What [`encode_size`] made of them; none if it did not make these bytes.
pub fn decode_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = bytes else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// What was sent is no frame, or one that is too large. Nothing that follows can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Puts frames together from bytes as they come.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// Takes bytes, and gives the frames that are whole by now.
    ///
    /// # Errors
    /// If they are none.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Broken> {
        self.bytes.extend_from_slice(bytes);
        let (mut frames, mut rest) = (Vec::new(), self.bytes.as_slice());
        while let Some((&[a, b, c, d, e, f, g, h], behind)) = rest.split_first_chunk::<HEADER>() {
            let len = u32::from_le_bytes([e, f, g, h]) as usize;
            let kind = Kind::ALL.get(usize::from(u16::from_le_bytes([c, d])));
            let kind = kind.copied().filter(|_| len <= LARGEST).ok_or(Broken)?;
            let Some((bytes, behind)) = behind.split_at_checked(len) else { break };
            frames.push(Frame { session: u16::from_le_bytes([a, b]), kind, bytes: bytes.to_vec() });
            rest = behind;
        }
        let left = rest.len();
        self.bytes.drain(..self.bytes.len() - left);
        Ok(frames)
    }
}

/// How much of a stream may be sent.
#[derive(Debug)]
pub struct Window {
    state: Mutex<Room>,
    grown: Condvar,
}

#[derive(Debug)]
struct Room {
    bytes: usize,
    closed: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { state: Mutex::new(Room { bytes: WINDOW, closed: false }), grown: Condvar::new() }
    }
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Room> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, and takes `most` bytes of it at most; none once it is closed.
    pub fn take(&self, most: usize) -> usize {
        let mut room = self.lock();
        while room.bytes == 0 && !room.closed {
            room = self.grown.wait(room).unwrap_or_else(PoisonError::into_inner);
        }
        if room.closed {
            return 0;
        }
        let taken = room.bytes.min(most);
        room.bytes -= taken;
        taken
    }

    /// The receiver has passed on so many bytes, as it says. It cannot have had more room than there is.
    pub fn give(&self, bytes: usize) {
        let mut room = self.lock();
        room.bytes = room.bytes.saturating_add(bytes).min(WINDOW);
        self.grown.notify_all();
    }

    /// There is nobody to send to any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.grown.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_any_cut() {
        let sent = [(0, Kind::Output, &b"hello"[..]), (7, Kind::Exit, &[3]), (65535, Kind::Bye, &[])];
        let bytes: Vec<u8> =
            sent.iter().flat_map(|(session, kind, bytes)| Frame::encode(*session, *kind, bytes)).collect();
        for cut in 1..bytes.len() {
            let mut reader = Reader::default();
            let got: Vec<Frame> = bytes.chunks(cut).flat_map(|part| reader.feed(part).unwrap()).collect();
            let got: Vec<_> =
                got.iter().map(|frame| (frame.session, frame.kind, frame.bytes.as_slice())).collect();
            assert_eq!(got, sent);
            assert!(reader.bytes.is_empty());
        }
        for kind in Kind::ALL {
            assert_eq!(Reader::default().feed(&Frame::encode(1, kind, b"x")).unwrap()[0].kind, kind);
        }
    }

    #[test]
    fn sizes_come_back() {
        assert_eq!(decode_size(&encode_size((24, 0x1234))), Some((24, 0x1234)));
        assert_eq!((decode_size(&[1, 2, 3]), decode_size(&[0; 5])), (None, None));
    }

    #[test]
    fn what_is_no_frame_is_not_waited_for() {
        assert_eq!(Reader::default().feed(&[0, 0, 10, 0, 0, 0, 0, 0]), Err(Broken));
        let mut large = Frame::encode(0, Kind::Output, &[]);
        large[4..8].copy_from_slice(&(LARGEST as u32 + 1).to_le_bytes());
        assert_eq!(Reader::default().feed(&large), Err(Broken));
    }

    #[test]
    fn nobody_sends_more_than_there_is_room_for() {
        let window = Window::default();
        assert_eq!(window.take(WINDOW + 1), WINDOW);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| window.take(100));
            window.give(10);
            assert_eq!(waiting.join().unwrap(), 10);
        });
        window.give(usize::MAX);
        assert_eq!(window.take(usize::MAX), WINDOW);
        window.close();
        assert_eq!(window.take(1), 0);
    }
}
