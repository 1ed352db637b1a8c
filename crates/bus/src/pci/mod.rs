//! PCI functions, apart from the bridge that leads to them.
//!
//! | module | concept |
//! |---|---|
//! | `config` | configuration space: header, base addresses, capabilities |
//! | `endpoint` | what every function has: place, configuration space, interrupts |
//! | `msix` | interrupts as messages, a table of them |
//! | `slot` | a slot with nothing else around it, for tests |

mod config;
mod endpoint;
mod msix;
mod slot;

pub use config::{Command, ConfigSpace, Identity};
pub use endpoint::{Endpoint, EndpointState, Layout, Socket};
pub use msix::{Msix, MsixState};
pub use slot::Slot;

use crate::Device;

/// Where a function is on its segment: bus in bits 15:8, device in 7:3, function in 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct FunctionId(pub u16);

impl FunctionId {
    /// Function 0 of a device (0 to 31) on the root bus.
    pub const fn on_root(device: u8) -> Self {
        Self((device as u16 & 0x1f) << 3)
    }
}

/// A PCI function. As a [`Device`] it claims no fixed addresses: it places its base address registers in the bridge's
/// [`crate::Window`] itself, and the `region` of an access is the number of the register.
///
/// Lock order: the bridge's lock is held during accesses to configuration space.
pub trait Function: Device {
    /// A guest read of configuration space at `register` (0 to 0xfff), not crossing its end. `data` comes filled with ones.
    fn read_config(&mut self, register: u64, data: &mut [u8]);

    /// A guest write, likewise.
    fn write_config(&mut self, register: u64, data: &[u8]);
}
