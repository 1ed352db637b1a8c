//! The guest's side of the console: three serial ports, each with one job.
//!
//! | port | job |
//! |---|---|
//! | ttyS0 | the terminal; or standard input and standard output |
//! | ttyS1 | control: lines of text. To the host `ready` (or `ready port`) and `exit N`, from it `size ROWS COLUMNS` and `stop` |
//! | ttyS2 | the kernel's console; without a terminal also standard error |
//!
//! On a terminal the command has ttyS0 itself, as its session's terminal. Otherwise its three streams are pipes, as they
//! would be on the host, and threads carry the bytes between these and the ports. A serial line has no end of input but
//! in canonical mode, so input stays in that; every special character is off but the two that the host quotes data
//! with. Flow control keeps the line discipline from dropping what is not read yet.
//!
//! Where the kernel has a driver for a virtio console, a command's streams go that way instead ([`crate::agent`]), which is
//! a hundred times as fast.
//!
//! Ports are opened before `ready` is said, for a driver empties a port's buffers when it is opened first.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};

use init::Terminal;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize,
    tcdrain, tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::{Failure, OURS};

/// What ends input, and what quotes that and itself.
const EOF: u8 = 0x04;
const LNEXT: u8 = 0x16;
/// A serial port that nobody waits for.
const SPEED: u32 = 115_200;

/// Which way the command's streams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the serial ports.
    Serial,
    /// As session 0 of the [`crate::agent`].
    Port,
}

/// The open ports.
pub(crate) struct Console {
    /// The terminal, or input and output.
    pub(crate) main: File,
    control: File,
    /// Where complaints go.
    pub(crate) log: File,
    pub(crate) is_terminal: bool,
}

fn open(path: &str) -> Result<File, Failure> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Failure::new(format_args!("cannot open {path}"), error))
}

fn set(port: &File, change: impl FnOnce(&mut Termios)) -> Result<(), Failure> {
    let failed = |error| Failure::new("cannot set a serial port up", error);
    let mut modes = tcgetattr(port).map_err(failed)?;
    modes.set_speed(SPEED).map_err(failed)?;
    change(&mut modes);
    tcsetattr(port, OptionalActions::Now, &modes).map_err(failed)
}

/// Lines as they are: no echo, no signals, no translation.
fn plain(modes: &mut Termios) {
    modes.input_modes = InputModes::empty();
    modes.output_modes -= OutputModes::OPOST;
    modes.local_modes = LocalModes::ICANON;
}

/// Any byte, and an end.
fn quoted(modes: &mut Termios) {
    use SpecialCodeIndex as Code;
    plain(modes);
    modes.local_modes |= LocalModes::IEXTEN;
    modes.control_modes |= ControlModes::CRTSCTS;
    let off = [
        Code::VINTR,
        Code::VQUIT,
        Code::VERASE,
        Code::VKILL,
        Code::VSTART,
        Code::VSTOP,
        Code::VSUSP,
        Code::VEOL,
        Code::VREPRINT,
        Code::VDISCARD,
        Code::VWERASE,
        Code::VEOL2,
    ];
    for code in off {
        modes.special_codes[code] = 0;
    }
    modes.special_codes[Code::VEOF] = EOF;
    modes.special_codes[Code::VLNEXT] = LNEXT;
}

/// What every terminal is like: `stty sane`.
fn sane(modes: &mut Termios) {
    modes.input_modes =
        InputModes::BRKINT | InputModes::ICRNL | InputModes::IXON | InputModes::IMAXBEL | InputModes::IUTF8;
    modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    modes.local_modes = LocalModes::ISIG
        | LocalModes::ICANON
        | LocalModes::IEXTEN
        | LocalModes::ECHO
        | LocalModes::ECHOE
        | LocalModes::ECHOK
        | LocalModes::ECHOCTL
        | LocalModes::ECHOKE;
}

impl Console {
    /// Opens the ports and sets them up.
    pub(crate) fn open(terminal: Option<&Terminal>) -> Result<Self, Failure> {
        let (main, control, log) = (open("/dev/ttyS0")?, open("/dev/ttyS1")?, open("/dev/ttyS2")?);
        set(&control, plain)?;
        match terminal {
            Some(Terminal { size, .. }) => {
                set(&main, sane)?;
                resize(&main, *size);
            }
            None => {
                set(&main, quoted)?;
                set(&log, |modes| modes.output_modes -= OutputModes::OPOST)?;
            }
        }
        Ok(Self { main, control, log, is_terminal: terminal.is_some() })
    }

    /// Says that input may come, and follows the host from then on: the size of its terminal, and its wish that all end, of
    /// which `stop` hears.
    pub(crate) fn ready(&self, way: Way, stop: impl Fn() + Send + 'static) -> Result<(), Failure> {
        let failed = |error| Failure::new("cannot use a serial port", error);
        let (control, main) =
            (self.control.try_clone().map_err(failed)?, self.main.try_clone().map_err(failed)?);
        let is_terminal = self.is_terminal;
        std::thread::spawn(move || {
            for line in BufReader::new(control).lines().map_while(Result::ok) {
                match new_size(&line) {
                    Some(size) if is_terminal => resize(&main, size),
                    None if line == "stop" => stop(),
                    _ => {}
                }
            }
        });
        self.say(match way {
            Way::Serial => "ready\n",
            Way::Port => "ready port\n",
        });
        Ok(())
    }

    /// Says what became of the command, after everything that it wrote.
    pub(crate) fn report(&self, status: u8) {
        self.drain();
        self.say(&format!("exit {status}\n"));
        self.drain();
    }

    /// Waits until everything has been sent.
    fn drain(&self) {
        for port in [&self.main, &self.log, &self.control] {
            let _ = tcdrain(port);
        }
    }

    fn say(&self, line: &str) {
        let _ = (&self.control).write_all(line.as_bytes());
    }

    /// Says a sentence where standard error goes.
    pub(crate) fn complain(&self, why: &str) {
        let port = if self.is_terminal { &self.main } else { &self.log };
        let end = if self.is_terminal { "\r\n" } else { "\n" };
        let _ = { port }.write_all(format!("umbra: in the guest: {why}{end}").as_bytes());
    }

    /// Says why there is no console at all.
    pub(crate) fn emergency(why: &str) {
        match Self::open(None) {
            Ok(console) => {
                console.complain(why);
                console.report(OURS);
            }
            Err(_) => eprintln!("umbra: in the guest: {why}"),
        }
    }
}

/// Carries bytes until there are no more, or nobody takes them.
pub(crate) fn carry(mut from: impl Read, mut to: impl Write) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => {
                if to.write_all(bytes.get(..len).unwrap_or_default()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn new_size(line: &str) -> Option<(u16, u16)> {
    let mut words = line.split_ascii_whitespace();
    let ("size", rows, columns) = (words.next()?, words.next()?, words.next()?) else { return None };
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

/// Tells a terminal its height and width.
pub(crate) fn resize(terminal: &File, (ws_row, ws_col): (u16, u16)) {
    let _ = tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood_and_nothing_else_is() {
        assert_eq!(new_size("size 24 80"), Some((24, 80)));
        for other in ["size 24", "sizes 1 2", "", "size -1 2", "size 70000 1"] {
            assert_eq!(new_size(other), None, "{other}");
        }
    }

    #[test]
    fn everything_is_carried() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut to = Vec::new();
        carry(&bytes[..], &mut to);
        assert!(to == bytes);
    }
}
