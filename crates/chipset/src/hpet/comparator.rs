//! One comparator of the HPET.
//!
//! A comparator fires when the main counter *reaches* its value, not while it is beyond: a value already passed is
//! met again only after the counter has wrapped, which drivers know and check for. In periodic mode the value moves
//! on by the period at each match (IA-PC HPET 1.0a, 2.3.9.2.2).

use serde::{Deserialize, Serialize};

use bus::access;

pub(super) const LEVEL: u64 = 1 << 1;
pub(super) const ENABLE: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const PERIODIC_CAPABLE: u64 = 1 << 4;
const SIZE_64: u64 = 1 << 5;
const SET_VALUE: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const ROUTE_SHIFT: u32 = 9;
const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
const WRITABLE: u64 = LEVEL | ENABLE | PERIODIC | SET_VALUE | MODE_32 | ROUTE;

/// A comparator's state. All of it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Comparator {
    config: u64,
    value: u64,
    period: u64,
}

impl Comparator {
    pub(super) const fn new() -> Self {
        Self { config: 0, value: u64::MAX, period: 0 }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    pub(super) fn is_level(&self) -> bool {
        self.config & LEVEL != 0
    }

    fn is_periodic(&self) -> bool {
        self.config & PERIODIC != 0
    }

    /// The period in ticks, if the comparator fires again and again.
    pub(super) fn period(&self) -> Option<u64> {
        Some(self.period & self.mask()).filter(|period| self.is_periodic() && *period != 0)
    }

    pub(super) fn is_valid(&self) -> bool {
        self.config & !WRITABLE == 0
    }

    /// The interrupt input that the guest has chosen.
    pub(super) fn route(&self) -> u8 {
        x86::bits::low8(self.config >> ROUTE_SHIFT) & 0x1f
    }

    /// The bits that the counter and the value have in common.
    fn mask(&self) -> u64 {
        if self.config & MODE_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }

    /// Ticks until the counter, now at `counter`, reaches the value; a full turn if it is there already.
    pub(super) fn distance(&self, counter: u64) -> u64 {
        match self.value.wrapping_sub(counter) & self.mask() {
            0 => self.mask().saturating_add(1),
            ticks => ticks,
        }
    }

    /// The counter moves on from `counter` by `ticks`; true if it has met the value.
    pub(super) fn pass(&mut self, counter: u64, ticks: u64) -> bool {
        let Some(beyond) = ticks.checked_sub(self.distance(counter)) else { return false };
        if let Some(period) = self.period() {
            let periods = (beyond / period).wrapping_add(1);
            self.value = self.value.wrapping_add(periods.wrapping_mul(period)) & self.mask();
        }
        true
    }

    /// The configuration register; `routes` has a bit for each interrupt input.
    pub(super) fn config(&self, routes: u32) -> u64 {
        self.config | PERIODIC_CAPABLE | SIZE_64 | u64::from(routes) << 32
    }

    pub(super) fn write_config(&mut self, value: u64, mask: u64, routes: u32) {
        let old = self.config;
        self.config = access::merge(old, value, mask) & WRITABLE;
        if routes >> self.route() & 1 == 0 {
            // Not an input of ours: software sees by reading back that it was not taken.
            self.config = self.config & !ROUTE | old & ROUTE;
        }
        if !self.is_periodic() {
            self.config &= !SET_VALUE;
        }
        self.value &= self.mask();
    }

    pub(super) fn value(&self) -> u64 {
        self.value
    }

    pub(super) fn write_value(&mut self, value: u64, mask: u64) {
        if !self.is_periodic() || self.config & SET_VALUE != 0 {
            self.value = access::merge(self.value, value, mask) & self.mask();
        }
        if self.is_periodic() {
            self.period = access::merge(self.period, value, mask);
        }
        self.config &= !SET_VALUE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn periodic(value: u64, period: u64, mode: u64) -> Comparator {
        let mut c = Comparator::new();
        c.write_config(PERIODIC | SET_VALUE | mode, u64::MAX, 1);
        c.write_value(value, u64::MAX);
        c.write_value(period, u64::MAX);
        c
    }

    #[test]
    fn a_value_already_passed_is_met_after_the_wrap() {
        let mut c = Comparator::new();
        c.write_config(MODE_32, u64::MAX, 1);
        c.write_value(100, u64::MAX);
        assert_eq!((c.distance(40), c.distance(100), c.distance(101)), (60, 1 << 32, 0xffff_ffff));
        c.write_config(0, u64::MAX, 1);
        assert_eq!(c.distance(101), u64::MAX);
    }

    #[test]
    fn first_the_value_then_the_period() {
        let c = periodic(1000, 50, 0);
        assert_eq!((c.value, c.period, c.config & SET_VALUE), (1000, 50, 0));
    }

    #[test]
    fn an_unknown_route_is_not_taken() {
        let mut c = Comparator::new();
        c.write_config(20 << ROUTE_SHIFT, u64::MAX, 1 << 20);
        c.write_config(21 << ROUTE_SHIFT, u64::MAX, 1 << 20);
        assert_eq!(c.route(), 20);
    }

    proptest! {
        /// Moving at once or tick by tick is the same.
        #[test]
        fn periods_pass_in_one_step(
            start in any::<u64>(), ahead in 1..50u64, period in 0..20u64, ticks in 0..200u64, narrow in any::<bool>()
        ) {
            let mode = if narrow { MODE_32 } else { 0 };
            let mut whole = periodic(start.wrapping_add(ahead), period, mode);
            let mut slow = whole.clone();
            let fired = whole.pass(start, ticks);
            let mut any = false;
            for tick in 0..ticks {
                any |= slow.pass(start.wrapping_add(tick), 1);
            }
            prop_assert_eq!((fired, whole.value), (any, slow.value));
        }
    }
}
