//! The commands' end of a VM's control socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::home::Vm;
use control::Request;

/// How long a VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a process whose VM has ended may take to go.
const LEAVING: Duration = Duration::from_secs(10);

/// Asks a VM for something and waits for the answer.
///
/// # Errors
/// If it has ended, does not answer, or refuses.
pub(super) fn ask(vm: &Vm, request: Request) -> Result<Value> {
    let mut stream = connect(vm, request)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    answer(vm, &mut stream)
}

/// Connects and asks.
///
/// # Errors
/// If the VM has ended.
pub(super) fn connect(vm: &Vm, request: Request) -> Result<UnixStream> {
    let mut stream = vm.connect()?;
    control::ask(&mut stream, request).with_context(|| unanswered(vm))?;
    Ok(stream)
}

/// The answer.
///
/// # Errors
/// If there is none, or it is a refusal.
pub(super) fn answer(vm: &Vm, stream: &mut UnixStream) -> Result<Value> {
    control::read_answer(stream)
        .with_context(|| unanswered(vm))?
        .map_err(|why| anyhow!("the VM '{}': {why}", vm.description.name))
}

fn unanswered(vm: &Vm) -> String {
    format!("the VM '{}' does not answer", vm.description.name)
}

/// Somebody who waits for the end of a VM.
pub(super) struct Waiter<'a> {
    vm: &'a Vm,
    stream: UnixStream,
}

impl<'a> Waiter<'a> {
    /// Waits from now on.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn new(vm: &'a Vm) -> Result<Self> {
        Ok(Self { vm, stream: connect(vm, Request::Wait)? })
    }

    /// Its status; none if the VM has not ended in this time, where there is a limit.
    ///
    /// # Errors
    /// If its process died without a word.
    pub(super) fn status(&mut self, limit: Option<Duration>) -> Result<Option<u8>> {
        self.stream.set_read_timeout(limit)?;
        match control::read_answer(&mut self.stream) {
            Ok(Ok(status)) => {
                let status = status.as_u64().and_then(|status| status.try_into().ok());
                Ok(Some(status.with_context(|| unanswered(self.vm))?))
            }
            Ok(Err(why)) => bail!("the VM '{}': {why}", self.vm.description.name),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(_) => bail!("the process of the VM '{}' was killed", self.vm.description.name),
        }
    }
}

/// Waits until the process of an ended VM has gone, with its name.
///
/// # Errors
/// If it does not go.
pub(super) fn until_gone(vm: &Vm) -> Result<()> {
    let deadline = Instant::now() + LEAVING;
    while !vm.is_gone() {
        if Instant::now() > deadline {
            bail!("the process {} of the VM '{}' does not end", vm.description.pid, vm.description.name);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
