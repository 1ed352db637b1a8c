//! From a device's interrupt line to the controllers.
//!
//! A global system interrupt is a pin of the IOAPIC; the first sixteen are also inputs of the 8259 pair, as on every
//! PC, so that a guest may use either. ISA IRQ 0 (the PIT) is GSI 2, which the ACPI tables announce as an override;
//! 8259 input 2 is the cascade and GSI 0 is not connected. The 8259's INTR goes to LINT0 of the local APICs: the
//! "virtual wire".
//!
//! Several sources may share a GSI: each has a handle with its own level, and the pins see their OR. Handles of one
//! GSI are serialised by its counter's lock, so the pins see the levels in the order in which they were combined.
//!
//! Lock order: device → the GSI's counter → 8259 or IOAPIC → local APIC. The router keeps no level of its own in
//! saved state: the chips save their pins, the devices set their lines anew after a restore, and a level that is
//! already there makes no edge.

use std::sync::{Arc, Mutex};

use bus::IrqLine;

use crate::apic::{BehindApics, InterruptFabric};
use crate::ioapic::{IoApic, PINS};
use crate::pic::Pic;
use crate::sync::lock;

/// The GSI of the PIT's ISA IRQ 0, to be announced in the MADT.
pub const TIMER_GSI: u8 = 2;

/// The GSI of an ISA interrupt.
pub const fn gsi_of_isa(irq: u8) -> u8 {
    if irq == 0 { TIMER_GSI } else { irq }
}

/// The wiring of the interrupt controllers.
pub struct IrqRouter {
    pic: Pic,
    ioapic: IoApic,
    /// How many handles of each GSI are high.
    high: [Mutex<u32>; PINS],
}

impl IrqRouter {
    /// Makes the 8259 pair and the IOAPIC and connects them with the local APICs.
    pub fn new(fabric: &Arc<InterruptFabric>) -> Arc<Self> {
        let router = Arc::new(Self {
            pic: Pic::new(fabric.intr_line()),
            ioapic: IoApic::new(fabric.clone()),
            high: Default::default(),
        });
        let behind: Arc<dyn BehindApics> = router.clone();
        fabric.connect(Arc::downgrade(&behind));
        router
    }

    /// The 8259 pair, to be plugged into the bus.
    pub fn pic(&self) -> Pic {
        self.pic.clone()
    }

    /// The IOAPIC, to be plugged into the bus.
    pub fn ioapic(&self) -> IoApic {
        self.ioapic.clone()
    }

    /// A new source on a GSI, resting low. A GSI past the IOAPIC's last pin leads nowhere.
    pub fn line(self: &Arc<Self>, gsi: u8) -> Arc<dyn IrqLine> {
        Arc::new(Source { router: self.clone(), gsi, high: Mutex::new(false) })
    }

    /// A new source on an ISA interrupt.
    pub fn isa_line(self: &Arc<Self>, irq: u8) -> Arc<dyn IrqLine> {
        self.line(gsi_of_isa(irq))
    }

    fn drive(&self, gsi: u8, high: bool) {
        match gsi {
            0 => {}
            TIMER_GSI => self.pic.set_line(0, high),
            _ => self.pic.set_line(gsi, high),
        }
        self.ioapic.set_line(usize::from(gsi), high);
    }
}

impl BehindApics for IrqRouter {
    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }

    fn acknowledge_extint(&self) -> u8 {
        self.pic.acknowledge()
    }
}

/// One source's handle on a GSI.
struct Source {
    router: Arc<IrqRouter>,
    gsi: u8,
    high: Mutex<bool>,
}

impl IrqLine for Source {
    fn set(&self, high: bool) {
        let mut own = lock(&self.high);
        let Some(counter) = self.router.high.get(usize::from(self.gsi)) else { return };
        if *own == high {
            return;
        }
        *own = high;
        let mut count = lock(counter);
        let was_high = *count != 0;
        *count = if high { *count + 1 } else { *count - 1 };
        if was_high != (*count != 0) {
            self.router.drive(self.gsi, high);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests;
