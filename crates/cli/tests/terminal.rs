//! The user's terminal: raw while the guest has it, and given back as it was.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{ECHO, KERNELS, Place, debian_kernel, kernel, kernels_that_share, umbra};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// Height and width of the terminal.
const SIZE: Winsize = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };

/// How long to wait for a guest to say something. Never a measure of speed.
const PATIENCE: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };

/// A terminal with a guest on it.
struct Session {
    child: Child,
    /// Where the person sits.
    person: File,
    /// The terminal itself, kept open so that its settings can be looked at.
    terminal: File,
    before: Termios,
}

impl Session {
    /// The echoing guest, once it has answered.
    fn echo(place: &Place) -> Self {
        place.file("guest", &kernel(ECHO));
        let mut session = Self::start(place.umbra(&["run", "guest", "-m", "16M"]), "stops the VM");
        session.type_and_read("!", "!");
        session
    }

    /// Starts a command; the terminal is raw soon after it has said this.
    fn start(mut command: Command, said: &str) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
        tcsetwinsize(&terminal, SIZE).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut session = Self { child, person: File::from(person), terminal, before };
        session.read_until(said);
        session.until_raw();
        session
    }

    fn until_raw(&self) {
        let start = Instant::now();
        while self.modes().intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG) {
            assert!(start.elapsed().as_secs() < 60, "the terminal does not become raw");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut waiting = [PollFd::new(&self.person, PollFlags::IN)];
            let ready = poll(&mut waiting, Some(&PATIENCE)).unwrap();
            assert_ne!(ready, 0, "no '{text}' in {:?}", String::from_utf8_lossy(&seen));
            let mut byte = [0];
            self.person.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    #[track_caller]
    fn type_and_read(&mut self, text: &str, until: &str) -> String {
        self.person.write_all(text.as_bytes()).unwrap();
        self.read_until(until)
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

impl Drop for Session {
    /// Nothing goes on running when a test fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ctrl_right_bracket_stops_the_vm() {
    let place = Place::new();
    let mut session = Session::echo(&place);
    // Ctrl-C and Ctrl-Z are the guest's.
    assert_eq!(session.type_and_read("a\x03\x1ab", "b"), "a\x03\x1ab");
    session.person.write_all(b"\x1d").unwrap();
    session.expect_end(0);
}

#[test]
fn a_power_off_gives_the_terminal_back() {
    let place = Place::new();
    let mut session = Session::echo(&place);
    session.person.write_all(b"q").unwrap();
    session.expect_end(0);
}

#[test]
fn so_does_a_signal() {
    let place = Place::new();
    let session = Session::echo(&place);
    kill_process(Pid::from_child(&session.child), Signal::TERM).unwrap();
    session.expect_end(143);
}

#[test]
fn ctrl_p_ctrl_q_leaves_a_console_and_the_vm_goes_on() {
    let place = Place::new();
    place.file("guest", &kernel(ECHO));
    let run = place.umbra(&["run", "-d", "--rm", "--name", "box", "guest", "-m", "16M"]).output().unwrap();
    assert!(run.status.success());
    for _ in 0..2 {
        let mut session = Session::start(place.umbra(&["console", "box"]), "leaves it");
        // One of the keys alone is the guest's.
        assert!(session.type_and_read("a\x10b\x11c", "c").ends_with("a\x10b\x11c"));
        session.person.write_all(b"\x10\x11").unwrap();
        session.expect_end(0);
    }
    let mut session = Session::start(place.umbra(&["console", "box"]), "leaves it");
    session.person.write_all(b"q").unwrap();
    session.expect_end(0);
    assert!(place.umbra(&["ps", "-aq"]).output().unwrap().stdout.is_empty());
}

/// A shell in the background has the size of the terminal that is attached to it.
#[test]
fn a_console_brings_its_size() {
    let Some(kernel) = debian_kernel(KERNELS[0]) else { return };
    let place = Place::new();
    let here = |args: &[&str]| {
        let mut command = umbra(args);
        command.env("XDG_RUNTIME_DIR", place.path());
        command
    };
    let run =
        here(&["run", "-d", "--name", "box", "--kernel", &kernel, "--timeout", "10m"]).output().unwrap();
    assert!(run.status.success());
    let mut log = here(&["logs", "-f", "box"]).stdout(Stdio::piped()).spawn().unwrap();
    // The shell's first word: it is there.
    log.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let mut session = Session::start(here(&["console", "box"]), "leaves it");
    session.type_and_read("stty size\r", "33 101\r\n");
    let stop = here(&["stop", "--timeout", "5m", "box"]).output().unwrap();
    assert!(stop.status.success());
    session.expect_end(0);
    log.wait().unwrap();
}

/// A second person at a guest, on a terminal of his own.
#[test]
fn exec_brings_a_terminal() {
    let Some(kernel) = kernels_that_share().first() else { return };
    let place = Place::new();
    let here = |args: &[&str]| {
        let mut command = umbra(args);
        command.env("XDG_RUNTIME_DIR", place.path());
        command
    };
    let args =
        ["run", "-d", "--name", "box", "host", "--kernel", kernel, "--timeout", "10m", "--", "sleep", "1000"];
    assert!(here(&args).output().unwrap().status.success());
    let start = Instant::now();
    while !here(&["exec", "box", "true"]).output().unwrap().status.success() {
        assert!(start.elapsed().as_secs() < 120);
    }
    let mut session =
        Session::start(here(&["exec", "-it", "box", "sh", "-c", "echo hello; exec sh"]), "hello\r\n");
    session.type_and_read("stty size\r", "33 101\r\n");
    tcsetwinsize(&session.terminal, Winsize { ws_row: 44, ..SIZE }).unwrap();
    kill_process(Pid::from_child(&session.child), Signal::WINCH).unwrap();
    session.type_and_read(
        "while [ \"$(stty size)\" != '44 101' ]; do :; done; echo fol\"\"lowed\r",
        "followed\r\n",
    );
    // By a program that says by itself that it is there: a shell may lose an interrupt between two of its commands.
    session.type_and_read("echo star\"\"ted >/tmp/said; tail -f /tmp/said\r", "started\r\n");
    session.type_and_read("\x03", "# ");
    session.person.write_all(b"exit 6\r").unwrap();
    session.expect_end(6);
    assert!(here(&["rm", "-f", "box"]).output().unwrap().status.success());
}

/// A person at Debian's shell: size, job control, an editor, power-off.
#[test]
fn a_shell_on_a_terminal() {
    let Some(kernel) = debian_kernel(KERNELS[0]) else { return };
    let mut session =
        Session::start(umbra(&["run", "--kernel", &kernel, "--timeout", "10m"]), "stops the VM");
    session.read_until("# ");
    session.type_and_read("stty size\r", "33 101\r\n");
    // Ctrl-C is meant for what has said that it is there.
    session.type_and_read("sh -c 'echo star\"\"ted; sleep 1000'\r", "started\r\n");
    session.type_and_read("\x03", "# ");
    session.type_and_read("echo status $?\r", "status 130\r\n");
    session.type_and_read("vi /tmp/note\r", "1/1 100%");
    session.type_and_read("ifrom vi\x1b", "- /tmp/note [Modified]");
    session.type_and_read(":wq\r", "# ");
    session.type_and_read("wc -c /tmp/note\r", "8 /tmp/note\r\n");
    session.person.write_all(b"poweroff -f\r").unwrap();
    session.expect_end(0);
}
