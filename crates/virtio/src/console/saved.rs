//! The device's own saved form, beside the transport's: what device and driver know of the ports. Bytes under way are the
//! host's, as those of a serial line, and are not in it.

use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use super::control::Control;

#[derive(Serialize, Deserialize)]
struct ConsoleState {
    control: Control,
}

impl Saved for ConsoleState {
    const NAME: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

pub(super) fn save(control: &Control) -> Record {
    Record::encode(&ConsoleState { control: control.clone() })
}

pub(super) fn restore(control: &mut Control, record: Option<&Record>) -> Result<(), StateError> {
    let damaged = |reason: &str| StateError::Damaged { name: ConsoleState::NAME, reason: reason.to_owned() };
    let saved: ConsoleState = record.ok_or_else(|| damaged("it is missing"))?.decode()?;
    if saved.control.ports.len() != control.ports.len() {
        return Err(damaged("it has another number of ports"));
    }
    *control = saved.control;
    Ok(())
}
