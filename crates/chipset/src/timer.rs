//! Ticks of a fixed rate, and a device's hold on its alarm.
//!
//! A timer chip is a pure function of guest time: it never counts, it is *asked*. [`Rate`] turns guest time into the
//! number of ticks since time 0 and back, exactly, with no sum of rounded periods that could drift. [`Timer`] keeps
//! the alarm at the device's next event and spares the owner of the alarm repeated settings.

use std::sync::Arc;

use bus::{Alarm, GuestTime};

const NS_PER_S: u128 = 1_000_000_000;

/// The shortest time between two alarms of a timer with a shorter period than that: guests can program periods below a
/// microsecond. Events that fall between two alarms merge into one, as they do on an interrupt line nobody serves.
pub(crate) const MIN_PERIODIC_GAP_NS: u64 = 20_000;

/// A clock of a whole number of ticks a second, at most 10^9, that ticked first at time 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    hz: u64,
}

impl Rate {
    pub(crate) const fn hz(hz: u64) -> Self {
        Self { hz }
    }

    /// The number of whole ticks up to `time`.
    pub(crate) fn ticks_at(self, time: GuestTime) -> u64 {
        x86::bits::low64(u128::from(time.0) * u128::from(self.hz) / NS_PER_S)
    }

    /// The first time at which `ticks_at` gives `tick`; the end of time if that is later.
    pub(crate) fn time_of(self, tick: u64) -> GuestTime {
        let ns = (u128::from(tick) * NS_PER_S).div_ceil(u128::from(self.hz));
        GuestTime(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// A device's alarm.
pub(crate) struct Timer {
    alarm: Arc<dyn Alarm>,
    /// What the alarm is set to, if that is known.
    armed: Option<Option<GuestTime>>,
}

impl Timer {
    pub(crate) fn new(alarm: Arc<dyn Alarm>) -> Self {
        Self { alarm, armed: None }
    }

    /// Sets the alarm to the next event.
    pub(crate) fn arm(&mut self, at: Option<GuestTime>) {
        if self.armed != Some(at) {
            self.alarm.set(at);
            self.armed = Some(at);
        }
    }

    /// The alarm may have gone off and must be set again even to the same time.
    pub(crate) fn forget(&mut self) {
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::ManualClock;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_begins_when_it_is_said_to(tick in 0..1u64 << 40, hz in 1..1_000_000_000u64) {
            let rate = Rate::hz(hz);
            let time = rate.time_of(tick);
            prop_assume!(time.0 > 0 && time.0 < u64::MAX);
            prop_assert_eq!(rate.ticks_at(time), tick);
            prop_assert!(rate.ticks_at(GuestTime(time.0 - 1)) < tick);
        }
    }

    #[test]
    fn the_same_setting_is_repeated_only_after_the_alarm() {
        let clock = ManualClock::default();
        let mut timer = Timer::new(Arc::new(clock.clone()));
        timer.arm(Some(GuestTime(5)));
        clock.set(None);
        timer.arm(Some(GuestTime(5)));
        assert_eq!(clock.alarm(), None);
        timer.forget();
        timer.arm(Some(GuestTime(5)));
        assert_eq!(clock.alarm(), Some(GuestTime(5)));
    }
}
