//! Guest time. A stopped VM's clock stops, so devices never look at the host's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Nanoseconds of guest time: since the VM was first started, not counting the time it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GuestTime(pub u64);

impl GuestTime {
    /// The time `ns` nanoseconds later, held at the end of time (after 584 years).
    #[must_use]
    pub const fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`, 0 if that is in the future.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The source of guest time.
pub trait Clock: Send + Sync {
    /// The time now; never goes back.
    fn now(&self) -> GuestTime;
}

/// A device's one alarm: after it is set, [`crate::Device::advance`] is called at that time or a little later.
pub trait Alarm: Send + Sync {
    /// Sets the alarm, replacing an earlier setting; `None` turns it off.
    fn set(&self, at: Option<GuestTime>);
}

/// An alarm that never goes off.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAlarm;

impl Alarm for NoAlarm {
    fn set(&self, _at: Option<GuestTime>) {}
}

/// A clock that moves when told, and an alarm that remembers its setting. For tests.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<[AtomicU64; 2]>);

impl ManualClock {
    /// Moves the clock on.
    pub fn step(&self, ns: u64) -> GuestTime {
        GuestTime(self.0[0].fetch_add(ns, Ordering::SeqCst) + ns)
    }

    /// The time that the alarm is set to.
    pub fn alarm(&self) -> Option<GuestTime> {
        self.0[1].load(Ordering::SeqCst).checked_sub(1).map(GuestTime)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> GuestTime {
        GuestTime(self.0[0].load(Ordering::SeqCst))
    }
}

impl Alarm for ManualClock {
    fn set(&self, at: Option<GuestTime>) {
        self.0[1].store(at.map_or(0, |t| t.0.saturating_add(1)), Ordering::SeqCst);
    }
}
