//! What the guest that Umbra makes and the host tell each other, over the second serial port.
//!
//! Lines of text. From the guest: `ready` when its side of the console is set up (`ready port` if a
//! command's streams do not go through serial ports, see [`super::agent`]), `exit N` when the command has ended
//! with status N. To the guest: `size ROWS COLUMNS` when the terminal has changed, `stop` when it is to end. The guest may say anything:
//! what is not one of its lines is ignored, and a line too long to be one is not kept.

/// What the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromGuest {
    /// Input may be sent, this way.
    Ready(Way),
    /// The command has ended.
    Exit(u8),
}

/// Which way a command's streams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the serial ports.
    Serial,
    /// As the main session of the [`super::agent`].
    Port,
}

/// No line is longer than this.
const LONGEST_LINE: usize = 32;

/// Puts the guest's lines together.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
}

impl Reader {
    /// Takes bytes from the guest and gives what they say.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<FromGuest> {
        let mut said = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                said.extend(parse(&self.line));
                self.line.clear();
            } else if self.line.len() <= LONGEST_LINE {
                self.line.push(byte);
            }
        }
        said
    }
}

fn parse(line: &[u8]) -> Option<FromGuest> {
    match std::str::from_utf8(line).ok()?.trim_end().split_once(' ') {
        None if line.trim_ascii_end() == b"ready" => Some(FromGuest::Ready(Way::Serial)),
        Some(("ready", "port")) => Some(FromGuest::Ready(Way::Port)),
        Some(("exit", status)) => status.parse().ok().map(FromGuest::Exit),
        _ => None,
    }
}

/// Asks the guest to end whatever runs there.
pub(super) const STOP_LINE: &str = "stop\n";

/// Tells the guest the size of the terminal.
pub(crate) fn size_line(rows: u16, columns: u16) -> String {
    format!("size {rows} {columns}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_pieces() {
        let mut reader = Reader::default();
        assert_eq!(reader.read(b"rea"), []);
        assert_eq!(reader.read(b"dy\nexit 3\r\nexit"), [FromGuest::Ready(Way::Serial), FromGuest::Exit(3)]);
        assert_eq!(reader.read(b" 255\nready port\n"), [FromGuest::Exit(255), FromGuest::Ready(Way::Port)]);
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut reader = Reader::default();
        assert_eq!(reader.read(b"\n\xff\xfe\nexit 256\nexit -1\nexit\nready now\nREADY\n"), []);
        assert_eq!(reader.read(&[b'x'; 1 << 16]), []);
        assert!(reader.line.len() <= LONGEST_LINE + 1);
        assert_eq!(reader.read(b"\nready\n"), [FromGuest::Ready(Way::Serial)]);
    }
}
