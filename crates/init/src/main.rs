//! The first process of a guest whose root is shared from the host, or on a disk ([`disk`]).
//!
//! It loads drivers, puts the root together ([`root`]), sets the network ([`network`]) and the console up ([`console`]), runs the user's command
//! ([`command`]) and those that the host begins later ([`agent`]), says on the control port what became of it, and powers the machine off. Whatever fails is said in one
//! sentence on the kernel's console, and is status 125.
//!
//! In a system that boots by itself it becomes that system's own first process, and stays as a service that runs commands for the host
//! ([`service`]).
//!
//! # Two processes of one program
//! Between fork and exec only a single thread's system calls are allowed, which Rust leaves to unsafe code. So the program
//! starts itself again as a *session* ([`session`]), which becomes what the command needs (session leader, user, groups)
//! and then the command.

mod account;
mod agent;
mod command;
mod console;
mod copying;
mod disk;
mod network;
mod root;
mod service;
mod session;

use std::fmt;

use init::{Copying, Root, SETTINGS, Settings};
use rustix::system::RebootCommand;

use agent::Agent;
use console::Console;

/// What could not be done, in a sentence.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    /// Of a system call.
    fn new(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// The status of our own failures, as umbra has it.
const OURS: u8 = 125;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().unwrap_or_default();
    if first == session::NAME {
        std::process::exit(session::become_command(arguments));
    }
    if first == service::NAME {
        std::process::exit(agent::serve());
    }
    if let Some(what) = Copying::of(&first) {
        std::process::exit(copying::run(what, arguments));
    }
    if rustix::process::getpid().is_init() {
        run();
    } else {
        eprintln!("umbra-init: this is the first process of guests of 'umbra run', which starts it");
        std::process::exit(i32::from(OURS));
    }
}

/// Is the first process. Whatever happens, the machine is powered off.
fn run() {
    let prepared = prepare();
    let quiet = match &prepared {
        Ok((settings, console)) => {
            let agent = Agent::start(settings);
            let status = command::run(settings, console, agent.as_ref()).unwrap_or_else(|Failure(why)| {
                console.complain(&why);
                OURS
            });
            console.report(status);
            if let Root::Disk { .. } = settings.root {
                disk::settle();
            }
            settings.quiet
        }
        Err(Failure(why)) => {
            Console::emergency(why);
            true
        }
    };
    if quiet {
        // "reboot: Power down" is nobody's output.
        let _ = std::fs::write("/proc/sys/kernel/printk", "0");
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
}

/// Prepares a system that boots by itself.
fn boot(settings: &Settings) -> Result<(), Failure> {
    // Its file goes with the root that it is in.
    let program =
        std::fs::read("/init").map_err(|error| Failure::new("cannot read the first process", error))?;
    root::enter(settings)?;
    service::install(&program, settings)
}

fn prepare() -> Result<(Settings, Console), Failure> {
    let text =
        std::fs::read(SETTINGS).map_err(|error| Failure::new("cannot read the guest's settings", error))?;
    let settings =
        Settings::decode(&text).ok_or_else(|| Failure("the guest's settings are damaged".to_owned()))?;
    if let Root::Disk { boot: true, .. } = settings.root {
        let failure = boot(&settings).err().unwrap_or_else(disk::become_init);
        disk::complain(&failure);
        return Err(failure);
    }
    root::enter(&settings)?;
    root::kernels_file_systems()?;
    // Before anything writable of the host is there: files of the root that this changes may lie below a shared directory.
    network::set_up(settings.network.as_ref(), &settings.root)?;
    root::add_shares(&settings)?;
    let console = Console::open(settings.terminal.as_ref())?;
    Ok((settings, console))
}
