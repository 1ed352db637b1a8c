//! Legacy replacement: the HPET takes over the interrupts of the PIT and the RTC.
//!
//! IRQ 0 and IRQ 8 have two drivers each, of which one is connected at a time (IA-PC HPET 1.0a, table 2). A chip that
//! is not connected keeps its level, so that it counts from the moment it is connected again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::IrqLine;

/// An interrupt line that either the old chip or the HPET drives.
pub struct LegacyRoute {
    target: Arc<dyn IrqLine>,
    inputs: Mutex<Inputs>,
}

#[derive(Default)]
struct Inputs {
    chip: bool,
    hpet: bool,
    hpet_drives: bool,
}

impl LegacyRoute {
    /// A switch in front of `target`, at first driven by the old chip.
    pub fn new(target: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { target, inputs: Mutex::default() })
    }

    /// The line for the old chip.
    pub fn chip_line(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(ChipInput(self.clone()))
    }

    fn inputs(&self) -> MutexGuard<'_, Inputs> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inputs)) {
        // The target is set under the lock, else two threads' levels could arrive in the wrong order.
        let mut inputs = self.inputs();
        change(&mut inputs);
        self.target.set(if inputs.hpet_drives { inputs.hpet } else { inputs.chip });
    }

    pub(super) fn set_hpet(&self, high: bool) {
        self.change(|inputs| inputs.hpet = high);
    }

    pub(super) fn connect_hpet(&self, hpet_drives: bool) {
        self.change(|inputs| inputs.hpet_drives = hpet_drives);
    }
}

struct ChipInput(Arc<LegacyRoute>);

impl IrqLine for ChipInput {
    fn set(&self, high: bool) {
        self.0.change(|inputs| inputs.chip = high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::Latch;

    #[test]
    fn one_driver_at_a_time() {
        let line = Latch::default();
        let route = LegacyRoute::new(Arc::new(line.clone()));
        let chip = route.chip_line();
        route.set_hpet(true);
        assert!(!line.is_high());
        route.connect_hpet(true);
        chip.set(true);
        route.set_hpet(false);
        assert_eq!((line.is_high(), line.edges()), (false, 1));
        route.connect_hpet(false);
        assert!(line.is_high(), "the chip's level was kept");
    }
}
