//! The user's terminal: raw while the guest has it, and given back as it was.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Stdio};

use common::{ECHO, Place, kernel};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A terminal with the echoing guest on it.
struct Session {
    _place: Place,
    child: Child,
    /// Where the person sits.
    person: File,
    /// The terminal itself, kept open so that its settings can be looked at.
    terminal: File,
    before: Termios,
}

impl Session {
    fn start() -> Self {
        let place = Place::new();
        place.file("guest", &kernel(ECHO));
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let child = place
            .umbra(&["run", "guest", "-m", "16M"])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let mut session = Self { _place: place, child, person: File::from(person), terminal, before };
        session.read_until("stops the VM");
        // From here the terminal is raw; what is typed comes back from the guest, once.
        session.type_and_read("!");
        session
    }

    fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let mut byte = [0];
            self.person.read_exact(&mut byte).unwrap();
            seen.push(char::from(byte[0]));
        }
        seen
    }

    fn type_and_read(&mut self, text: &str) -> String {
        self.person.write_all(text.as_bytes()).unwrap();
        self.read_until(text)
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.terminal).unwrap().local_modes
    }

    #[track_caller]
    fn expect_end(mut self, status: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(status));
        let after = tcgetattr(&self.terminal).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
    }
}

#[test]
fn ctrl_right_bracket_stops_the_vm() {
    let mut session = Session::start();
    assert!(!session.modes().intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    // Ctrl-C and Ctrl-Z are the guest's.
    assert_eq!(session.type_and_read("a\x03\x1ab"), "a\x03\x1ab");
    session.person.write_all(b"\x1d").unwrap();
    session.expect_end(0);
}

#[test]
fn a_power_off_gives_the_terminal_back() {
    let mut session = Session::start();
    session.person.write_all(b"q").unwrap();
    session.expect_end(0);
}

#[test]
fn so_does_a_signal() {
    let session = Session::start();
    kill_process(Pid::from_child(&session.child), Signal::TERM).unwrap();
    session.expect_end(143);
}
