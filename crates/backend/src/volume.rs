//! A disk as devices serve it: what is asked for lies on it, and no more passes than its limits allow.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Disk;
use crate::limit::Meter;

/// The unit of addresses on a disk, in bytes.
pub const SECTOR: u64 = 512;

/// A disk with limits on what all its queues do together in a second.
pub struct Volume {
    disk: Arc<dyn Disk>,
    limits: Vec<Mutex<Limit>>,
}

/// What of requests a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Requests.
    Requests,
    /// Bytes that are read and written.
    Bytes,
}

struct Limit {
    counted: Counted,
    meter: Meter,
}

impl Volume {
    /// A disk without limits.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, limits: Vec::new() }
    }

    /// The same with one more limit.
    #[must_use]
    pub fn limited(mut self, counted: Counted, per_s: u64) -> Self {
        self.limits.push(Mutex::new(Limit { counted, meter: Meter::new(per_s) }));
        self
    }

    /// The disk.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.disk.bytes() / SECTOR
    }

    /// The offset of `bytes` bytes at `sector`, if all of them are on the disk and they are whole sectors.
    pub fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(bytes)?;
        (end <= self.disk.bytes() && bytes.is_multiple_of(SECTOR)).then_some(offset)
    }

    /// Counts a request that moves so many bytes.
    pub fn count(&self, bytes: u64) {
        let now = Instant::now();
        for limit in &self.limits {
            let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
            let units = if limit.counted == Counted::Requests { 1 } else { bytes };
            limit.meter.count(units, now);
        }
    }

    /// How long no request is to be served, because of a limit.
    pub fn closed_for(&self) -> Duration {
        if self.limits.is_empty() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let closed =
            |limit: &Mutex<Limit>| limit.lock().unwrap_or_else(PoisonError::into_inner).meter.closed_for(now);
        self.limits.iter().map(closed).max().unwrap_or_default()
    }
}
