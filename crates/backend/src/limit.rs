//! A limit on how much passes: bytes of a network or a disk, requests of a disk.

use std::time::{Duration, Instant};

/// For how long what was quiet may be faster.
const BURST: Duration = Duration::from_millis(100);

/// Time goes on with each unit that passes, and may be ahead of the clock by [`BURST`] before anybody has to wait. So whatever
/// the size of what passes at once, in the long run no more passes than the rate, and nothing is ever cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    per_s: u64,
    /// When everything that has passed would have, at the rate.
    even: Instant,
}

impl Meter {
    /// Lets so many units pass each second.
    pub(crate) fn new(per_s: u64) -> Self {
        Self { per_s, even: Instant::now() }
    }

    /// Whether something may pass.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.even <= now + BURST
    }

    /// Counts what has passed.
    pub(crate) fn count(&mut self, units: u64, now: Instant) {
        let ns = units.saturating_mul(1_000_000_000) / self.per_s.max(1);
        // A rate of a unit a year is as good as none.
        self.even = self.even.max(now) + Duration::from_nanos(ns).min(Duration::from_secs(3600));
    }

    /// How long nothing may pass.
    pub(crate) fn closed_for(&self, now: Instant) -> Duration {
        self.even.saturating_duration_since(now + BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_and_no_less() {
        let start = Instant::now();
        let mut meter = Meter { per_s: 1_000_000, even: start };
        let (mut passed, mut now) = (0u64, start);
        for _ in 0..1000 {
            while meter.is_open(now) {
                meter.count(60_000, now);
                passed += 60_000;
            }
            now += meter.closed_for(now);
        }
        let seconds = now.duration_since(start).as_secs_f64();
        let even = seconds * 1e6;
        assert!(
            passed as f64 >= even && (passed as f64) < even + 0.1 * 1e6 + 2.0 * 60_000.0,
            "{passed} in {seconds}"
        );
        // What was not used is not saved up.
        now += Duration::from_secs(100);
        let before = passed;
        while meter.is_open(now) {
            meter.count(1000, now);
            passed += 1000;
        }
        assert!(passed - before <= 102_000, "{}", passed - before);
    }
}
