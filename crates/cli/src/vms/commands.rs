//! The commands that act on VMs: each does what it does to one VM after the other, and says of each that it was done (its
//! name, on standard output) or why not. If one was not, the status is 1, as docker's.

use std::io::{self, Write, stderr, stdout};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::args::{CpArgs, ExecArgs, LogsArgs, Names, PlugArgs, RmArgs, StopArgs, UnplugArgs, UpdateArgs};
use super::client::{self, Waiter};
use super::home::{Registry, Vm};
use super::log::{self, Reader};
use super::{attach, copy, detach, disk, exec, plug};
use crate::message;
use crate::status::Status;
use control::{Kind, Request};

/// How often a log is looked at for more.
const LOOK: Duration = Duration::from_millis(100);

/// Does something to each VM; prints what that gives.
fn each(vms: &Names, act: impl Fn(&Vm) -> Result<String>) -> Result<Status> {
    let registry = Registry::of_user()?;
    each_name(vms, |name| registry.find(name).and_then(|vm| act(&vm)))
}

/// Does something under each name; prints what that gives.
fn each_name(vms: &Names, act: impl Fn(&str) -> Result<String>) -> Result<Status> {
    let mut status = Status::OK;
    for name in &vms.names {
        match act(name) {
            Ok(text) => writeln!(stdout(), "{text}").context("cannot write to standard output")?,
            Err(error) => status = refused(&error),
        }
    }
    Ok(status)
}

/// Says why something was not done.
pub(super) fn refused(error: &anyhow::Error) -> Status {
    message::error(&format!("{error:#}"));
    Status::REFUSED
}

fn name(vm: &Vm) -> String {
    vm.description.name.clone()
}

fn ask(vms: &Names, request: &Request) -> Result<Status> {
    each(vms, |vm| client::ask(vm, request.clone()).map(|_| name(vm)))
}

/// `umbra pause`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn pause(vms: &Names) -> Result<Status> {
    ask(vms, &Request::Pause)
}

/// `umbra resume`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn resume(vms: &Names) -> Result<Status> {
    ask(vms, &Request::Resume)
}

/// `umbra update`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn update(args: &UpdateArgs) -> Result<Status> {
    ask(&args.vms, &Request::Update { memory: args.memory.bytes() })
}

/// `umbra plug`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn plug(args: &PlugArgs) -> Result<Status> {
    plug::plug(args).or_else(|error| Ok(refused(&error)))
}

/// `umbra unplug`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn unplug(args: &UnplugArgs) -> Result<Status> {
    plug::unplug(args).or_else(|error| Ok(refused(&error)))
}

/// `umbra stop`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn stop(args: &StopArgs) -> Result<Status> {
    each(&args.vms, |vm| {
        if vm.ended.is_none() {
            gone(vm, ask_to_stop(vm, args.timeout))?;
        }
        Ok(name(vm))
    })
}

/// Asks a VM to switch itself off, and ends it if it has not done so in this time.
fn ask_to_stop(vm: &Vm, timeout: Duration) -> Result<()> {
    let mut waiter = Waiter::new(vm)?;
    client::ask(vm, Request::Stop)?;
    match waiter.status(Some(timeout))? {
        Some(_) => Ok(()),
        None => end(vm),
    }
}

/// Ends a VM.
fn end(vm: &Vm) -> Result<()> {
    gone(vm, client::ask(vm, Request::Kill).map(drop))
}

/// Waits until a VM that was told to end has gone. One that could not be told may have ended by itself just then.
fn gone(vm: &Vm, told: Result<()>) -> Result<()> {
    match (told, client::until_gone(vm)) {
        (Err(error), Err(_)) => Err(error),
        (_, gone) => gone,
    }
}

/// `umbra kill`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn kill(vms: &Names) -> Result<Status> {
    each(vms, |vm| {
        ensure!(vm.ended.is_none(), "the VM '{}' has ended", vm.description.name);
        end(vm)?;
        Ok(name(vm))
    })
}

/// `umbra wait`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn wait(vms: &Names) -> Result<Status> {
    each(vms, |vm| {
        let status = match vm.ended {
            Some(ended) => ended.status,
            None => {
                let status = Waiter::new(vm)?.status(None)?;
                client::until_gone(vm)?;
                status.unwrap_or(Status::KILLED.0)
            }
        };
        Ok(status.to_string())
    })
}

/// `umbra rm`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn rm(args: &RmArgs) -> Result<Status> {
    let registry = Registry::of_user()?;
    each_name(&args.vms, |name| {
        let found = registry.find(name).and_then(|vm| {
            if args.force && vm.ended.is_none() {
                end(&vm)?;
            }
            vm.remove()
        });
        // A disk stays when the host is restarted, and what was noted of its VM does not.
        match name.parse() {
            Ok(name) if args.disk && (found.is_ok() || registry.is_free(&name)) && disk::remove(&name)? => {}
            _ => found?,
        }
        Ok(name.to_owned())
    })
}

/// `umbra inspect`.
///
/// # Errors
/// If VMs cannot be looked for.
pub(crate) fn inspect(vms: &Names) -> Result<Status> {
    let registry = Registry::of_user()?;
    let (mut found, mut status) = (Vec::new(), Status::OK);
    for name in &vms.names {
        match registry.find(name).and_then(|vm| all_of(&vm)) {
            Ok(all) => found.push(all),
            Err(error) => status = refused(&error),
        }
    }
    let text = serde_json::to_string_pretty(&Value::Array(found))?;
    writeln!(stdout(), "{text}").context("cannot write to standard output")?;
    Ok(status)
}

/// Everything that is known of a VM.
fn all_of(vm: &Vm) -> Result<Value> {
    let mut all = serde_json::to_value(&vm.description)?;
    all["directory"] = json!(vm.path);
    all["state"] = match vm.ended {
        Some(_) => json!("exited"),
        None => client::ask(vm, Request::State)?,
    };
    all["slots"] = match vm.ended {
        Some(_) => json!([]),
        None => json!(plug::slots(vm)?),
    };
    all["ended"] = json!(vm.ended);
    Ok(all)
}

/// `umbra logs`.
///
/// # Errors
/// If there is no such VM, or nobody takes its output.
pub(crate) fn logs(args: &LogsArgs) -> Result<Status> {
    let found = Registry::of_user()?.find(&args.name).and_then(|vm| {
        let reader = Reader::open(&vm.path).map_err(|_| {
            anyhow::anyhow!(
                "the VM '{}' prints where it was started: only VMs in the background have logs",
                args.name
            )
        })?;
        Ok((vm, reader))
    });
    let (vm, mut reader) = match found {
        Ok(found) => found,
        Err(error) => return Ok(refused(&error)),
    };
    match print_log(&vm, &mut reader, args) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::BROKEN_PIPE),
        other => other.map(|()| Status::OK).context("cannot print the log"),
    }
}

fn print_log(vm: &Vm, reader: &mut Reader, args: &LogsArgs) -> io::Result<()> {
    let mut frames = Vec::new();
    while let Some(frame) = reader.next()? {
        frames.push(frame);
    }
    if let Some(lines) = args.tail {
        frames = log::tail(frames, lines);
    }
    frames.iter().try_for_each(print_frame)?;
    if args.follow {
        follow(vm, reader)?;
    }
    // What umbra itself had to say.
    match std::fs::read(vm.path.join(detach::MESSAGES)) {
        Ok(messages) => stderr().write_all(&messages),
        Err(_) => Ok(()),
    }
}

/// Prints what comes, until the VM has gone.
fn follow(vm: &Vm, reader: &mut Reader) -> io::Result<()> {
    loop {
        // Asked before the rest is read: one that has gone prints no more.
        let gone = vm.is_gone();
        while let Some(frame) = reader.next()? {
            print_frame(&frame)?;
        }
        if gone {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn print_frame((kind, bytes): &(Kind, Vec<u8>)) -> io::Result<()> {
    match kind {
        Kind::Error => stderr().write_all(bytes),
        _ => stdout().write_all(bytes).and_then(|()| stdout().flush()),
    }
}

/// `umbra exec`.
///
/// # Errors
/// If this terminal cannot be used.
pub(crate) fn exec(args: ExecArgs) -> Result<Status> {
    exec::run(args).or_else(|error| Ok(refused(&error)))
}

/// `umbra cp`.
///
/// # Errors
/// If the VMs cannot be looked for.
pub(crate) fn cp(args: &CpArgs) -> Result<Status> {
    copy::run(args).or_else(|error| Ok(refused(&error)))
}

/// `umbra console`.
///
/// # Errors
/// If this terminal cannot be used.
pub(crate) fn console(name: &str) -> Result<Status> {
    attach::run(name).or_else(|error| Ok(refused(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::home::tests::{description, registry};

    #[test]
    fn who_ends_just_before_being_told_to_has_ended() {
        let (_dir, registry) = registry();
        for act in [|vm: &Vm| gone(vm, ask_to_stop(vm, Duration::ZERO)), end] {
            let (mut home, listener) = registry.create(Some("box"), description(false)).unwrap();
            home.start();
            let vm = registry.find("box").unwrap();
            // As a process that ends: nobody listens any more, and a little later it is gone.
            drop(listener);
            assert!(client::ask(&vm, Request::Stop).is_err());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(LOOK);
                    home.end(Status(3));
                    drop(home);
                });
                act(&vm).unwrap();
            });
            assert_eq!(registry.find("box").unwrap().ended.unwrap().status, 3);
            vm.remove().unwrap();
        }
    }
}
