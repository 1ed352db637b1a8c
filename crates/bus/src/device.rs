//! What a device is.

use state::{Record, StateError};

use crate::GuestTime;

/// The two address spaces that devices live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// I/O ports, 0 to 0xffff.
    Port,
    /// Guest-physical addresses that are not memory.
    Mmio,
}

/// A range that a device claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The address space.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// The length in addresses; at least 1.
    pub len: u64,
}

impl Region {
    /// A range of I/O ports.
    pub const fn ports(base: u16, len: u16) -> Self {
        Self { space: Space::Port, base: base as u64, len: len as u64 }
    }

    /// A range of guest-physical addresses.
    pub const fn mmio(base: u64, len: u64) -> Self {
        Self { space: Space::Mmio, base, len }
    }
}

/// A chip or a paravirtual device.
///
/// Calls are serialised by the [`crate::Router`]: one at a time per device. A device may raise interrupt lines and
/// set its alarm inside any of them.
pub trait Device: Lifecycle {
    /// The ranges the device answers for; asked once, when it is plugged in. The index in this list is the `region`
    /// of [`Device::read`] and [`Device::write`].
    fn regions(&self) -> Vec<Region>;

    /// A guest read of `data.len()` bytes (1 to 8) at `offset` into region `region`. `data` comes filled with ones;
    /// a register that does not exist leaves it so. The access lies within the region.
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]);

    /// A guest write, likewise.
    fn write(&mut self, region: usize, offset: u64, data: &[u8]);

    /// The alarm that the device set has gone off, or may have: does everything that was due by `now`.
    fn advance(&mut self, now: GuestTime) {
        let _ = now;
    }
}

/// A device's life. Who calls: the one driver of the VM's states. In which order:
///
/// 1. `reset` — before the first start and at every machine reset. No vCPU runs.
/// 2. `pause` — after all vCPUs have stopped. When it returns the device is quiet: it touches no guest memory,
///    raises no line and finishes no request until `resume`.
/// 3. `save` — only while paused; changes nothing. `restore` — only before the first start or while paused, on a
///    device of the same configuration; afterwards the device has set its interrupt lines and alarm anew.
/// 4. `resume` — before the vCPUs run again.
pub trait Lifecycle: Send {
    /// The device's name in saved state and messages; unique in a machine.
    fn name(&self) -> &'static str;

    /// Back to the power-on state; configuration stays.
    fn reset(&mut self);

    /// Become quiet.
    fn pause(&mut self) {}

    /// Go on.
    fn resume(&mut self) {}

    /// The saved form.
    fn save(&self) -> Record;

    /// Takes over a saved form.
    ///
    /// # Errors
    /// If the record is not this device's or holds what cannot be; the device is then unchanged.
    fn restore(&mut self, record: &Record) -> Result<(), StateError>;
}
