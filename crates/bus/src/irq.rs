//! Interrupt lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A wire from a device to an interrupt controller. Setting a level twice is the same as setting it once.
pub trait IrqLine: Send + Sync {
    /// Drives the line.
    fn set(&self, high: bool);

    /// A rising edge on a line that rests low.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// Where interrupts that are messages go: a write of `data` to `address`, which interrupt controllers watch for. What is no
/// interrupt to them vanishes.
pub trait MsiTarget: Send + Sync {
    /// Writes.
    fn send(&self, address: u64, data: u32);
}

/// A wire that leads nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoIrq;

impl MsiTarget for NoIrq {
    fn send(&self, _address: u64, _data: u32) {}
}

impl IrqLine for NoIrq {
    fn set(&self, _high: bool) {}
}

/// A wire that remembers: the level and how many rising edges there were. For tests.
#[derive(Clone, Debug, Default)]
pub struct Latch(Arc<AtomicU64>);

impl Latch {
    /// The level.
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::SeqCst) & 1 != 0
    }

    /// The number of rising edges so far.
    pub fn edges(&self) -> u64 {
        self.0.load(Ordering::SeqCst) >> 1
    }
}

impl IrqLine for Latch {
    fn set(&self, high: bool) {
        // One word holds level (bit 0) and edge count, so that a reader never sees one without the other.
        let step = |old: u64| match (old & 1 != 0, high) {
            (false, true) => Some(old + 3),
            (true, false) => Some(old - 1),
            _ => None,
        };
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latch_counts_rising_edges() {
        let latch = Latch::default();
        latch.set(true);
        latch.set(true);
        latch.set(false);
        latch.pulse();
        assert_eq!((latch.is_high(), latch.edges()), (false, 2));
    }
}
