//! Standard input to the guest's first serial port.

use std::io::{self, Read, stdin};
use std::os::fd::AsFd;

use super::encode::Encoder;
use super::{Event, Events, Wanted, wait_for};

/// Ctrl-], which stops the VM.
const DETACH: u8 = 0x1d;

/// What is done to the bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A person types: Ctrl-] is for us, everything else for the guest.
    Terminal,
    /// A pipe to the guest that Umbra made: quoted, with an end (see [`super::encode`]).
    Quoted,
    /// A pipe to any other guest: as they are. A serial port cannot say that there is no more.
    Plain,
}

/// Sends standard input until it ends or `send` says that nobody listens.
pub(super) fn pump(style: Style, send: &dyn Fn(&[u8]) -> bool, events: &Events) {
    let mut input = match stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => std::fs::File::from(fd),
        // A closed standard input is an empty one.
        Err(_) => return end(style, &mut Encoder::default(), send),
    };
    let mut encoder = Encoder::default();
    let mut buffer = [0; 4096];
    loop {
        let read = match input.read(&mut buffer) {
            // A terminal that has gone reads as an error; both are the end.
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && wait_for(&input, Wanted::Read).is_ok() =>
            {
                continue;
            }
            Err(_) => break,
        };
        let goes_on = match style {
            Style::Plain => send(read),
            Style::Quoted => {
                let mut typed = Vec::with_capacity(read.len());
                encoder.encode(read, &mut typed);
                send(&typed)
            }
            Style::Terminal => send_typed(read, send, events),
        };
        if !goes_on {
            return;
        }
    }
    end(style, &mut encoder, send);
}

/// Sends what was typed up to Ctrl-]; false if that is where it ends.
fn send_typed(read: &[u8], send: &dyn Fn(&[u8]) -> bool, events: &Events) -> bool {
    let mut parts = read.splitn(2, |byte| *byte == DETACH);
    let before = parts.next().unwrap_or_default();
    let listening = before.is_empty() || send(before);
    let detached = parts.next().is_some();
    if detached {
        events.send(Event::Detach);
    }
    listening && !detached
}

/// Tells a guest that understands it that there is no more.
pub(super) fn end(style: Style, encoder: &mut Encoder, send: &dyn Fn(&[u8]) -> bool) {
    if style == Style::Quoted {
        let mut typed = Vec::new();
        encoder.end(&mut typed);
        send(&typed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn ctrl_right_bracket_detaches() {
        let (events, queue) = Events::queue();
        let sent = RefCell::new(Vec::new());
        let send = |bytes: &[u8]| {
            sent.borrow_mut().extend_from_slice(bytes);
            true
        };
        assert!(send_typed(b"ls\r", &send, &events));
        assert!(queue.try_recv().is_err());
        assert!(!send_typed(b"ab\x1dcd", &send, &events));
        assert!(matches!(queue.try_recv(), Ok(Event::Detach)));
        assert!(!send_typed(b"\x1d", &send, &events));
        assert_eq!(*sent.borrow(), b"ls\rab");
    }
}
