//! `umbra plug` and `umbra unplug`: devices that come to a VM that runs, and go.
//!
//! The VM answers at once; how far its guest is, is asked again and again until it is far enough, so that no thread of the VM's waits for a
//! guest that may never do what it is asked for.

use std::io::{Write, stdout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spec::SlotName;
use vm::{SlotFigures, SlotState};

use super::args::{PlugArgs, UnplugArgs};
use super::client;
use super::device;
use super::home::{Registry, Vm};
use crate::message;
use crate::status::Status;
use control::Request;

/// How long a guest may take to notice a device before that is worth a sentence.
const NOTICE: Duration = Duration::from_secs(5);
/// How often it is asked how far the guest is.
const LOOK: Duration = Duration::from_millis(20);

/// A slot as it is sent, and as `umbra inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Its name.
    slot: String,
    /// What is in it, as it was typed.
    device: Option<String>,
    /// How it stands with that.
    state: State,
    /// How many devices the VM had been given when it was given this one.
    ordinal: u64,
}

/// See [`SlotState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Free,
    Opening,
    Unnoticed,
    Plugged,
    Leaving,
    Closing,
    Vacated,
}

impl From<SlotFigures> for Slot {
    fn from(figures: SlotFigures) -> Self {
        let state = match figures.state {
            SlotState::Free => State::Free,
            SlotState::Opening => State::Opening,
            SlotState::New => State::Unnoticed,
            SlotState::Known => State::Plugged,
            SlotState::Leaving => State::Leaving,
            SlotState::Closing => State::Closing,
            SlotState::Vacated => State::Vacated,
        };
        Self { slot: figures.slot.to_string(), device: figures.device, state, ordinal: figures.ordinal }
    }
}

/// `umbra plug`.
///
/// # Errors
/// If there is no such VM, the device cannot be had, or the VM has no place for it.
pub(super) fn plug(args: &PlugArgs) -> Result<Status> {
    let vm = Registry::of_user()?.find(&args.name)?;
    let (device, files) = match (&args.disk, &args.net) {
        (Some(disk), _) => device::disk(disk)?,
        (None, Some(network)) => device::network(network)?,
        (None, None) => bail!("nothing to plug in: give --disk or --net"),
    };
    let mut stream = client::connect(&vm, Request::Plug { device })?;
    if !files.is_empty() {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        host::socket::send_files(&stream, &files)
            .with_context(|| format!("the VM '{}' does not take the device's files", args.name))?;
    }
    let slot: String = serde_json::from_value(client::answer(&vm, &mut stream)?)?;
    // It is the VM's from now on.
    drop(files);
    let seen = client::ask(&vm, Request::State)? == "paused"
        || until(&vm, &slot, NOTICE, |slot| slot.is_none_or(|slot| slot.state != State::Unnoticed))?;
    if !seen {
        message::note(&format!(
            "the guest has not taken notice of {slot} yet: it still boots, or its kernel knows nothing of ACPI hot-plug"
        ));
    }
    writeln!(stdout(), "{slot}").context("cannot write to standard output")?;
    Ok(Status::OK)
}

/// `umbra unplug`.
///
/// # Errors
/// If there is no such VM or device, or the guest does not let go of it.
pub(super) fn unplug(args: &UnplugArgs) -> Result<Status> {
    let vm = Registry::of_user()?.find(&args.name)?;
    let slot = args.slot.to_string();
    let ordinal = slots(&vm)?.into_iter().find(|found| found.slot == slot).map_or(0, |found| found.ordinal);
    client::ask(&vm, Request::Unplug { slot: slot.clone(), force: args.force })?;
    let gone =
        |found: Option<&Slot>| found.is_none_or(|found| found.device.is_none() || found.ordinal != ordinal);
    if !until(&vm, &slot, args.timeout, gone)? {
        bail!("the guest of the VM '{}' has not let go of {slot} (yet): --force takes it away", args.name);
    }
    writeln!(stdout(), "{slot}").context("cannot write to standard output")?;
    Ok(Status::OK)
}

/// The slots of a VM that runs.
pub(super) fn slots(vm: &Vm) -> Result<Vec<Slot>> {
    Ok(serde_json::from_value(client::ask(vm, Request::Slots)?)?)
}

/// Waits until a slot is as it is expected to be; false if it is not after this time.
fn until(vm: &Vm, name: &str, limit: Duration, is: impl Fn(Option<&Slot>) -> bool) -> Result<bool> {
    let since = Instant::now();
    loop {
        if is(slots(vm)?.iter().find(|slot| slot.slot == name)) {
            return Ok(true);
        }
        if since.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

/// What the VM's end makes of its slots.
pub(super) fn listed(figures: Vec<SlotFigures>) -> Value {
    let slots: Vec<Slot> = figures.into_iter().map(Slot::from).collect();
    serde_json::to_value(slots).unwrap_or_default()
}

/// What somebody calls a slot.
pub(super) fn named(text: &str) -> Result<SlotName, String> {
    text.parse().map_err(|error: spec::SpecError| error.to_string())
}
