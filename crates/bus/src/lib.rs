//! Routing of port and MMIO accesses, and the contract that every device keeps.
//!
//! A device is a state machine behind three narrow doors: register accesses ([`Device`]), time ([`Device::advance`],
//! with the clock and the alarm injected) and interrupt lines ([`IrqLine`], injected too). So a device is tested with
//! no VM around it. Guest nonsense is never an error: reads of nothing give all ones, writes to nothing vanish.

pub mod access;
mod device;
mod irq;
pub mod pci;
mod router;
mod time;
mod window;

pub use device::{Device, Lifecycle, Region, Space};
pub use irq::{IrqLine, Latch, MsiTarget, NoIrq};
pub use router::{Router, RouterError, SharedDevice};
pub use time::{Alarm, Clock, GuestTime, ManualClock, NoAlarm};
pub use window::{Opening, Window};
