//! A range of addresses whose claims move while the machine runs.
//!
//! The [`crate::Router`] is read-only once vCPUs run, but a guest may move a PCI function's registers at any time. So a
//! bridge claims its whole window once, and what lies where inside is looked up here. An access clones the device's
//! handle under a read lock and lets go of it before it locks the device: a device may move its own registers while it
//! handles an access. An access that meets a move goes to the old place or the new, as on a bus.
//!
//! Lock order: device → window. Nobody calls a device while the window is locked.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::{Device, Region, SharedDevice};

/// The window.
pub struct Window {
    region: Region,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    /// By number of the opening.
    devices: Vec<Option<Weak<Mutex<dyn Device>>>>,
    claims: Vec<Claim>,
}

#[derive(Clone, Copy)]
struct Claim {
    opening: usize,
    region: usize,
    base: u64,
    last: u64,
}

/// What lies at an address of a window.
pub(crate) struct Place {
    pub(crate) device: SharedDevice,
    pub(crate) region: usize,
    pub(crate) base: u64,
    pub(crate) last: u64,
}

impl Window {
    /// A window with nothing in it.
    pub fn new(region: Region) -> Arc<Self> {
        Arc::new(Self { region, table: RwLock::default() })
    }

    /// The addresses it covers.
    pub fn region(&self) -> Region {
        self.region
    }

    /// A new device's way to place its registers; it leads to nobody until it is connected.
    pub fn opening(self: &Arc<Self>) -> Opening {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.devices.push(None);
        Opening { window: self.clone(), number: table.devices.len() - 1 }
    }

    /// What claims an address. Where claims overlap, the device that was given its opening first.
    pub(crate) fn find(&self, address: u64) -> Option<Place> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let claim = table.claims.iter().find(|claim| (claim.base..=claim.last).contains(&address))?;
        let device = table.devices.get(claim.opening)?.as_ref()?.upgrade()?;
        Some(Place { device, region: claim.region, base: claim.base, last: claim.last })
    }
}

/// One device's way to place its registers in a window. Clones are the same way.
#[derive(Clone)]
pub struct Opening {
    window: Arc<Window>,
    number: usize,
}

impl Opening {
    /// Says whose registers these are.
    pub fn connect(&self, device: &SharedDevice) {
        let mut table = self.window.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = table.devices.get_mut(self.number) {
            *place = Some(Arc::downgrade(device));
        }
    }

    /// Says that nobody has registers here any more. An access that has begun may still reach the device.
    pub fn disconnect(&self) {
        let mut table = self.window.table.write().unwrap_or_else(PoisonError::into_inner);
        table.claims.retain(|claim| claim.opening != self.number);
        if let Some(place) = table.devices.get_mut(self.number) {
            *place = None;
        }
    }

    /// Places `len` bytes of registers, `region` to the device, at `base`; without a base, or where they do not lie wholly
    /// in the window, they are nowhere.
    pub fn place(&self, region: usize, base: Option<u64>, len: u64) {
        let whole = &self.window.region;
        let fits = |base: &u64| {
            let end = base.checked_add(len);
            len != 0 && *base >= whole.base && end.is_some_and(|end| end <= whole.base + whole.len)
        };
        let claim = base.filter(fits).map(|base| Claim {
            opening: self.number,
            region,
            base,
            last: base + (len - 1),
        });
        let mut table = self.window.table.write().unwrap_or_else(PoisonError::into_inner);
        table.claims.retain(|claim| (claim.opening, claim.region) != (self.number, region));
        if let Some(claim) = claim {
            let at = table.claims.partition_point(|c| (c.opening, c.region) < (self.number, region));
            table.claims.insert(at, claim);
        }
    }
}
