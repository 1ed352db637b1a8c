//! The user's command: where, as whom and with what it runs, and what becomes of it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use init::{Directory, Settings};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};

use crate::account::{Account, Accounts};
use crate::agent::Agent;
use crate::console::{Console, Way, carry};
use crate::{Failure, session};

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What runs where nobody says what.
const SHELL: &str = "/bin/sh";

/// Runs the command to its end; returns its status, as a shell has it.
pub(crate) fn run(settings: &Settings, console: &Console, agent: Option<&Arc<Agent>>) -> Result<u8, Failure> {
    let mut command = prepare(settings, console.is_terminal)?;
    let cannot = |error: io::Error| Failure::new("cannot start the command", error);
    let is_shell = settings.command.is_empty();
    let stop = move || ask_to_end(is_shell);
    if let Some(agent) = agent.filter(|_| !console.is_terminal) {
        // Input for a session that has not begun would be nobody's.
        let begun = agent.begin(0, settings)?;
        console.ready(Way::Port, stop)?;
        let status = await_end(begun.process, Some(agent))?;
        signal_everybody(Signal::KILL);
        agent.farewell(begun, status);
        return Ok(status);
    }
    console.ready(Way::Serial, stop)?;
    let streams = Streams::start(&mut command, console).map_err(cannot)?;
    let status = await_end(streams.child.id(), agent)?;
    streams.finish();
    Ok(status)
}

/// The command, as the settings say, but for its streams.
pub(crate) fn prepare(settings: &Settings, is_terminal: bool) -> Result<Command, Failure> {
    let account = Accounts::read().find(settings.user.as_deref().unwrap_or("0"))?;
    let directory = directory(settings, &account)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(session::arguments(&account, is_terminal))
        .args(words(settings, &account))
        .current_dir(&directory)
        .env_clear()
        .envs(environment(settings, &account))
        .env("PWD", &directory)
        .envs(settings.environment.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// The account's shell.
fn shell(account: &Account) -> &str {
    if account.shell.is_empty() { SHELL } else { &account.shell }
}

/// The command, or a shell.
fn words(settings: &Settings, account: &Account) -> Vec<OsString> {
    if !settings.command.is_empty() {
        return settings.command.clone();
    }
    let mut words = vec![OsString::from(shell(account))];
    if settings.terminal.is_some() {
        words.push("-l".into());
    }
    words
}

fn directory(settings: &Settings, account: &Account) -> Result<PathBuf, Failure> {
    let home = PathBuf::from(&account.home);
    let home = if home.is_dir() { home } else { PathBuf::from("/") };
    match &settings.directory {
        Directory::Rather(path) if path.is_dir() => Ok(path.clone()),
        Directory::Home | Directory::Rather(_) => Ok(home),
        Directory::Exactly(path) if path.is_dir() => Ok(path.clone()),
        Directory::Exactly(path) => {
            Err(Failure(format!("there is no directory '{}' in the guest", path.display())))
        }
    }
}

/// The variables that every command has.
fn environment(settings: &Settings, account: &Account) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("PATH", PATH.to_owned()),
        ("HOME", account.home.clone()),
        ("USER", account.name.clone()),
        ("LOGNAME", account.name.clone()),
        ("SHELL", shell(account).to_owned()),
    ];
    if let Some(terminal) = &settings.terminal {
        variables.push(("TERM", terminal.kind.clone()));
    }
    variables
}

/// A running command and those who carry its output.
struct Streams {
    child: Child,
    carriers: Vec<JoinHandle<()>>,
}

impl Streams {
    fn start(command: &mut Command, console: &Console) -> io::Result<Self> {
        let port = || Ok::<_, io::Error>(Stdio::from(console.main.try_clone()?));
        if console.is_terminal {
            let child = command.stdin(port()?).stdout(port()?).stderr(port()?).spawn()?;
            return Ok(Self { child, carriers: Vec::new() });
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(stdin) = child.stdin.take() {
            let from = console.main.try_clone()?;
            // Ends with the machine: nobody interrupts a read of a terminal line.
            std::thread::spawn(move || carry(from, stdin));
        }
        let mut carriers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            carriers.push(carrier(stdout, console.main.try_clone()?));
        }
        if let Some(stderr) = child.stderr.take() {
            carriers.push(carrier(stderr, console.log.try_clone()?));
        }
        Ok(Self { child, carriers })
    }

    /// The command has ended, and so does everything that it left behind: what was written until then is carried out.
    fn finish(self) {
        signal_everybody(Signal::KILL);
        for carrier in self.carriers {
            let _ = carrier.join();
        }
    }
}

/// Asks everybody to end, as a system that shuts down does. A shell at a terminal hears of that by its hanging up only.
fn ask_to_end(is_shell: bool) {
    signal_everybody(Signal::TERM);
    if is_shell {
        signal_everybody(Signal::HUP);
    }
}

fn signal_everybody(signal: Signal) {
    // The group of the first process is everybody but that (kill(2)).
    let _ = kill_process_group(Pid::INIT, signal);
}

fn carrier(from: impl io::Read + Send + 'static, to: File) -> JoinHandle<()> {
    std::thread::spawn(move || carry(from, to))
}

/// Buries children until there are none.
pub(crate) fn bury(agent: &Agent) -> Result<(), Failure> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                agent.buried(pid.as_raw_nonzero().get().cast_unsigned(), status_of(status));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(error) => return Err(Failure::new("cannot wait for commands", error)),
        }
    }
}

/// Waits for the end of the command, and buries whoever else dies meanwhile, as a first process has to.
fn await_end(process: u32, agent: Option<&Arc<Agent>>) -> Result<u8, Failure> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let (pid, status) = (pid.as_raw_nonzero().get().cast_unsigned(), status_of(status));
                if pid == process {
                    return Ok(status);
                }
                if let Some(agent) = agent {
                    agent.buried(pid, status);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::new("cannot wait for the command", error)),
        }
    }
}

/// A status as a shell has it: 128 and the signal for who died of one.
fn status_of(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 | signal));
    u8::try_from(code.unwrap_or(255) & 0xff).unwrap_or(255)
}
