//! What a chip may ask of the whole machine.
//!
//! Power-off, reset and the debug exit are pins that leave the chipset. A device only raises the request; the driver
//! of the VM's states acts on it later, from its own thread, so no device is ever reset while it handles an access.

/// A request that concerns the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest has switched the power off.
    PowerOff,
    /// The guest asks for a machine reset.
    Reset,
    /// The guest ends the run with this value (`isa-debug-exit`).
    DebugExit(u32),
}

/// The receiver of machine events. Called with a device locked: must return at once and call no device.
pub trait MachineControl: Send + Sync {
    /// Notes the request.
    fn request(&self, event: MachineEvent);
}
