//! `isa-debug-exit`: a write ends the run with the value written.
//!
//! Test kernels report their result this way; the exit status that a user sees is `(value << 1) | 1`, which never
//! collides with a clean power-off. The device has no state, so its saved form is empty.

use std::sync::Arc;

use bus::{Device, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::control::{MachineControl, MachineEvent};
use bus::access;

/// The port at which test kernels expect the device.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// The debug-exit device: 4 ports from [`DEBUG_EXIT_PORT`].
pub struct DebugExit {
    control: Arc<dyn MachineControl>,
}

#[derive(Serialize, Deserialize)]
struct DebugExitState {}

impl Saved for DebugExitState {
    const NAME: &'static str = "debug-exit";
    const VERSION: u16 = 1;
}

impl DebugExit {
    /// A device that reports to `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self { control }
    }
}

impl Device for DebugExit {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(DEBUG_EXIT_PORT, 4)]
    }

    fn read(&mut self, _region: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _region: usize, _offset: u64, data: &[u8]) {
        let value = x86::bits::low32(access::number(data));
        self.control.request(MachineEvent::DebugExit(value));
    }
}

impl Lifecycle for DebugExit {
    fn name(&self) -> &'static str {
        DebugExitState::NAME
    }

    fn reset(&mut self) {}

    fn save(&self) -> Record {
        Record::encode(&DebugExitState {})
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        record.decode::<DebugExitState>().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Requests, Rig};

    #[test]
    fn a_write_of_any_width_is_the_value() {
        let requests = Requests::default();
        let mut device = DebugExit::new(Arc::new(requests.clone()));
        device.write(0, 0, &[0x10]);
        device.write(0, 0, &[0x34, 0x12, 0, 0]);
        assert_eq!(requests.take(), [MachineEvent::DebugExit(0x10), MachineEvent::DebugExit(0x1234)]);
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let requests = Requests::default();
            Rig::new(DebugExit::new(Arc::new(requests.clone()))).reporting(&requests)
        });
    }
}
