//! One engine with the driver in it: started, told what to do, timed, and ended.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::counters::{self, Control, Counters};
use super::usage;

/// How long a guest may take to power off.
const GRACE: Duration = Duration::from_secs(3);
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_millis(20);

/// Why there is no measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It took too long; the engine has been ended.
    Timeout,
    /// The engine has gone, with these last words.
    Gone(String),
    /// The driver says why.
    Refused(String),
}

impl Failure {
    /// Whether the engine is still of use.
    pub(super) fn leaves_engine(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Gone(words) => write!(f, "ended: {words}"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// What one run of a program took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Seconds between the marks.
    pub(super) seconds: f64,
    /// Seconds from the order to the answer.
    pub(super) busy_seconds: f64,
    /// The processor's time for that, of the whole engine.
    pub(super) cpu_seconds: f64,
    /// The checksum.
    pub(super) sum: String,
    /// What the engine counted, from the order to the answer; nothing where it is not asked.
    pub(super) counters: Counters,
}

/// A line of the console and when its end arrived.
struct Line {
    at: Instant,
    text: String,
}

/// A running engine.
pub(super) struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Line>,
    log: PathBuf,
    control: Option<Control>,
    /// From its start to the driver's first word.
    pub(super) boot: Duration,
}

impl Session {
    /// Starts an engine and waits until the driver is there. What it says aside goes to `log`; what it counts is asked by
    /// `control`, if at all.
    ///
    /// # Errors
    /// If it is not there in time.
    pub(super) fn start(
        mut command: Command,
        log: &Path,
        control: Option<Control>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let gone = |error: std::io::Error| Failure::Gone(error.to_string());
        let errors = File::create(log).map_err(gone)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).process_group(0);
        let begin = Instant::now();
        let mut child = command.spawn().map_err(gone)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::Gone("no pipes".to_owned()));
        };
        let (sender, lines) = channel();
        thread::spawn(move || read_lines(output, &sender));
        let mut session = Self { child, input, lines, log: log.to_owned(), control, boot: Duration::ZERO };
        let ready = session.wait_for("ready", begin + timeout)?;
        session.boot = ready.at - begin;
        Ok(session)
    }

    /// The process at the top of the engine.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the engine has counted so far; nothing where it is not asked.
    ///
    /// # Errors
    /// If it does not say.
    pub(super) fn counters(&self) -> Result<Counters, Failure> {
        let asked = self.control.as_ref().map_or_else(|| Ok(Counters::new()), Control::counters);
        asked.map_err(|error| Failure::Gone(format!("{error:#}")))
    }

    /// Runs a program.
    ///
    /// # Errors
    /// If it cannot be run, or does not end in time.
    pub(super) fn run(&mut self, name: &str, count: u64, timeout: Duration) -> Result<Sample, Failure> {
        self.obey(&format!("run {name} {count}"), timeout)
    }

    /// Has the driver carry out an order, as `bench/guest/main.c` has them.
    ///
    /// # Errors
    /// If it cannot, or does not come to an end in time.
    pub(super) fn obey(&mut self, order: &str, timeout: Duration) -> Result<Sample, Failure> {
        let before = self.counters()?;
        let ordered = Instant::now();
        let deadline = ordered + timeout;
        let cpu = usage::cpu_seconds(self.pid());
        if writeln!(self.input, "{order}").and_then(|()| self.input.flush()).is_err() {
            return Err(self.gone());
        }
        let start = self.wait_for("start", deadline)?;
        let end = self.wait_for("end", deadline)?;
        let sum = self.wait_for("sum", deadline)?;
        Ok(Sample {
            seconds: (end.at - start.at).as_secs_f64(),
            busy_seconds: (sum.at - ordered).as_secs_f64(),
            cpu_seconds: usage::cpu_seconds(self.pid()) - cpu,
            sum: sum.text,
            counters: counters::between(&before, &self.counters()?),
        })
    }

    /// The next mark, which must be `word`; its text is what follows that.
    fn wait_for(&mut self, word: &str, deadline: Instant) -> Result<Line, Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Err(Failure::Timeout),
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            };
            // Whatever else is on the console is a kernel's.
            let Some((_, mark)) = line.text.split_once("@ ") else { continue };
            let (found, rest) = mark.split_once(' ').unwrap_or((mark, ""));
            match found {
                "error" => return Err(Failure::Refused(rest.to_owned())),
                _ if found == word => return Ok(Line { at: line.at, text: rest.to_owned() }),
                _ => return Err(Failure::Refused(format!("said '{mark}' instead of '{word}'"))),
            }
        }
    }

    /// That the engine has gone, with what it said last.
    fn gone(&mut self) -> Failure {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        Failure::Gone(last.unwrap_or("without a word").to_owned())
    }

    /// Asks the driver to end the machine; true if it did in time.
    fn quit(&mut self) -> bool {
        if writeln!(self.input, "quit").and_then(|()| self.input.flush()).is_err() {
            return false;
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.quit() {
            // The group is the child's own. If it has gone in between, that is what is wanted.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Takes the console's output apart. A line's time is that of the read that brought its end.
fn read_lines(mut output: ChildStdout, sender: &Sender<Line>) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut chunk) {
        let at = Instant::now();
        pending.extend_from_slice(&chunk[..count]);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if sender.send(Line { at, text }).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn session(script: &str) -> Result<Session, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(command, &dir.path().join("log"), None, SECOND)
    }

    #[test]
    fn marks_among_noise_are_found() {
        let mut session = session(
            "echo noise; echo '@ ready'; read x; echo '@ start'; echo '@ end'; echo \"[1] @ sum 7f\"; read x",
        )
        .unwrap();
        let sample = session.run("x", 1, SECOND).unwrap();
        assert_eq!(sample.sum, "7f");
        assert!(sample.seconds < 1.0);
    }

    #[test]
    fn each_way_to_fail_has_its_name() {
        assert!(matches!(session("exit 3"), Err(Failure::Gone(_))));
        assert!(matches!(session("sleep 5"), Err(Failure::Timeout)));
        let mut refusing = session("echo '@ ready'; read x; echo '@ error no AVX2'; read x").unwrap();
        assert_eq!(refusing.run("x", 1, SECOND), Err(Failure::Refused("no AVX2".to_owned())));
    }
}
