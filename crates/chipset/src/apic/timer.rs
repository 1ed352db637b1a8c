//! The local APIC timer (SDM vol. 3, 11.5.4).
//!
//! Counting is not simulated. A running timer is one number, the guest time at which it next reaches zero; the
//! current count is computed from it when somebody looks. The count falls once every `divide` nanoseconds of guest
//! time: the machine's APIC bus runs at 1 GHz.
//!
//! The divide register scales the count that is left, as the hardware counter does. Switching between one-shot and
//! periodic leaves the counter running; switching to or from TSC-deadline mode stops it.
//!
//! A guest may ask for a period of one nanosecond. The count register tells the truth about it, but expirations are
//! at least [`MIN_PERIOD_NS`] apart, so that a guest cannot keep the thread that serves alarms busy.

use bus::GuestTime;

/// The shortest time between two expirations of a periodic timer.
const MIN_PERIOD_NS: u64 = 20_000;

/// Bits 18:17 of the timer's LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// The reserved encoding counts as one-shot.
    pub(super) const fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) mode: TimerMode,
    /// The divide configuration register: bits 3, 1 and 0.
    pub(super) divide: u32,
    /// The initial-count register.
    pub(super) initial: u32,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub(super) deadline: u64,
    /// When the count reaches zero; `None` while stopped.
    pub(super) due: Option<GuestTime>,
}

impl Timer {
    pub(super) const RESET: Self =
        Self { mode: TimerMode::OneShot, divide: 0, initial: 0, deadline: 0, due: None };

    /// Nanoseconds per count: 2, 4, 8, 16, 32, 64, 128, 1.
    const fn tick_ns(&self) -> u64 {
        let code = (self.divide >> 1 & 4) | (self.divide & 3);
        1 << (code.wrapping_add(1) & 7)
    }

    const fn period_ns(&self) -> u64 {
        self.initial as u64 * self.tick_ns()
    }

    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if (mode == TimerMode::TscDeadline) != (self.mode == TimerMode::TscDeadline) {
            self.initial = 0;
            self.deadline = 0;
            self.due = None;
        }
        self.mode = mode;
    }

    /// A write of the initial count starts the timer; 0 stops it. Ignored in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, count: u32, now: GuestTime) {
        if self.mode != TimerMode::TscDeadline {
            self.initial = count;
            self.due = (count != 0).then(|| now.after_ns(self.period_ns()));
        }
    }

    pub(super) fn set_divide(&mut self, divide: u32, now: GuestTime) {
        let left = self.count(now);
        self.divide = divide & 0xb;
        if self.mode != TimerMode::TscDeadline && self.due.is_some() {
            self.due = Some(now.after_ns(u64::from(left) * self.tick_ns()));
        }
    }

    /// The current-count register. Called after [`Timer::expire`] with the same `now`.
    pub(super) fn count(&self, now: GuestTime) -> u32 {
        let Some(due) = self.due else { return 0 };
        if self.mode == TimerMode::TscDeadline {
            return 0;
        }
        let left = due.since(now).div_ceil(self.tick_ns());
        // More than the initial count is left where expirations of a short period are skipped.
        let initial = u64::from(self.initial).max(1);
        x86::bits::low32(if left == 0 { 0 } else { (left - 1) % initial + 1 })
    }

    /// A write of IA32_TSC_DEADLINE; `due` is the guest time at which the TSC gets there. 0 disarms. Ignored in
    /// other modes.
    pub(super) fn set_deadline(&mut self, tsc: u64, due: GuestTime) {
        if self.mode == TimerMode::TscDeadline {
            self.deadline = tsc;
            self.due = (tsc != 0).then_some(due);
        }
    }

    /// Passes an expiration that was due by `now`; true if there was one. Several missed ones count as one.
    pub(super) fn expire(&mut self, now: GuestTime) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else { return false };
        self.due = None;
        self.deadline = 0;
        let period = self.period_ns();
        if self.mode == TimerMode::Periodic && period != 0 {
            let rest = if period < MIN_PERIOD_NS { MIN_PERIOD_NS } else { 1 };
            let periods = now.after_ns(rest).since(due).div_ceil(period);
            self.due = Some(due.after_ns(periods.saturating_mul(period)));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(mode: TimerMode, divide: u32, initial: u32) -> Timer {
        let mut timer = Timer { mode, ..Timer::RESET };
        timer.set_divide(divide, GuestTime(0));
        timer.set_initial(initial, GuestTime(0));
        timer
    }

    #[test]
    fn divides_as_the_table_says() {
        let ticks = [0, 1, 2, 3, 8, 9, 10, 11].map(|d| Timer { divide: d, ..Timer::RESET }.tick_ns());
        assert_eq!(ticks, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn one_shot_counts_down_and_stops() {
        let mut t = timer(TimerMode::OneShot, 0, 1000);
        assert_eq!([0, 1, 2, 1999].map(|now| t.count(GuestTime(now))), [1000, 1000, 999, 1]);
        assert!(!t.expire(GuestTime(1999)) && t.expire(GuestTime(2000)));
        assert_eq!((t.due, t.count(GuestTime(2000)), t.initial), (None, 0, 1000));
        t.set_mode(TimerMode::Periodic);
        assert_eq!(t.due, None, "a stopped counter stays stopped");
    }

    #[test]
    fn periodic_reloads_and_merges_missed_periods() {
        let mut t = timer(TimerMode::Periodic, 11, 100_000);
        assert!(t.expire(GuestTime(100_000)));
        assert_eq!(t.due, Some(GuestTime(200_000)));
        assert!(t.expire(GuestTime(750_000)));
        assert_eq!((t.due, t.count(GuestTime(750_000))), (Some(GuestTime(800_000)), 50_000));
        t.set_mode(TimerMode::OneShot);
        assert_eq!(t.count(GuestTime(760_000)), 40_000, "the counter runs on");
        assert!(t.expire(GuestTime(800_000)) && t.due.is_none());
    }

    #[test]
    fn short_periods_do_not_flood() {
        let mut t = timer(TimerMode::Periodic, 11, 3);
        assert!(t.expire(GuestTime(3)));
        let due = t.due.unwrap();
        assert!(due >= GuestTime(3 + MIN_PERIOD_NS) && due.0.is_multiple_of(3));
        assert_eq!([3, 4, 5, 6].map(|now| t.count(GuestTime(now))), [3, 2, 1, 3]);
    }

    #[test]
    fn a_new_divider_keeps_the_count() {
        let mut t = timer(TimerMode::OneShot, 11, 100);
        t.set_divide(3, GuestTime(60));
        assert_eq!((t.count(GuestTime(60)), t.due), (40, Some(GuestTime(60 + 40 * 16))));
    }

    #[test]
    fn tsc_deadline_is_its_own_mode() {
        let mut t = timer(TimerMode::OneShot, 11, 100);
        t.set_deadline(5, GuestTime(5));
        assert_eq!(t.deadline, 0, "ignored in one-shot mode");
        t.set_mode(TimerMode::TscDeadline);
        assert_eq!((t.due, t.initial), (None, 0));
        t.set_initial(7, GuestTime(0));
        t.set_deadline(5, GuestTime(50));
        assert_eq!((t.initial, t.deadline, t.count(GuestTime(0))), (0, 5, 0));
        assert!(t.expire(GuestTime(50)));
        assert_eq!((t.deadline, t.due), (0, None));
    }
}
