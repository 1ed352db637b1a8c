//! The clock of one VM: guest time and the guest's time stamp counter, which both stand still while the VM does, and
//! the wall clock that guest time is counted from.
//!
//! Guest time is the host's monotonic clock minus all the time that the VM was stopped; the guest's TSC is the host's
//! plus an offset, which is set anew at each resume so that the counter goes on from where it stood. Both are frozen
//! and released under one write lock, and readers read the host's clock under the read lock, so a reader sees either
//! the running or the stopped clock and time never goes back. The TSC offset alone can be read without the lock:
//! engines ask for it at each RDTSC, and it changes only while no vCPU runs.
//!
//! The host's TSC and its monotonic clock tick at slightly different rates (the kernel slews the latter), so a TSC
//! value is converted by its distance from *now*, never from a fixed point in the past: the error stays proportional
//! to the distance and does not grow with the VM's age.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use bus::{Clock, GuestTime};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

/// Where time comes from. Injected, so that the clock is tested with no real time passing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostTime {
    /// Nanoseconds of a clock that never goes back.
    pub(crate) monotonic_ns: fn() -> u64,
    /// The processor's time stamp counter.
    pub(crate) rdtsc: fn() -> u64,
    /// The counter's rate.
    pub(crate) tsc_khz: u64,
    /// Nanoseconds since 1970.
    pub(crate) wall_clock_ns: fn() -> u64,
}

impl HostTime {
    /// The real host.
    pub(crate) fn real() -> Self {
        Self {
            monotonic_ns: host::time::monotonic_ns,
            rdtsc: host::time::rdtsc,
            tsc_khz: host::time::tsc_khz(),
            wall_clock_ns: host::time::wall_clock_ns,
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Stopped {
        time: GuestTime,
        tsc: u64,
    },
    Running {
        /// Host time at guest time 0.
        origin_ns: u64,
    },
}

/// The clock of one VM. Made stopped, at time 0.
pub(crate) struct VmClock {
    host: HostTime,
    tsc_khz: AtomicU64,
    tsc_offset: AtomicU64,
    /// What the wall clock showed at guest time 0, in ns since 1970.
    epoch_unix_ns: AtomicU64,
    phase: RwLock<Phase>,
}

impl VmClock {
    /// A stopped clock at time 0.
    pub(crate) fn new(host: HostTime) -> Self {
        Self {
            tsc_khz: AtomicU64::new(host.tsc_khz.max(1)),
            host,
            tsc_offset: AtomicU64::new(0),
            epoch_unix_ns: AtomicU64::new((host.wall_clock_ns)()),
            phase: RwLock::new(Phase::Stopped { time: GuestTime(0), tsc: 0 }),
        }
    }

    /// Lets the clock run. Does nothing if it does already.
    pub(crate) fn resume(&self) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Stopped { time, tsc } = *phase {
            // Wrapping: a restored VM may be older than its host.
            let origin_ns = (self.host.monotonic_ns)().wrapping_sub(time.0);
            self.tsc_offset.store(tsc.wrapping_sub((self.host.rdtsc)()), Ordering::Release);
            *phase = Phase::Running { origin_ns };
        }
    }

    /// Freezes the clock. No vCPU may run. Does nothing if it is frozen already.
    pub(crate) fn stop(&self) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        let (time, tsc) = self.read(*phase);
        *phase = Phase::Stopped { time, tsc };
    }

    fn read(&self, phase: Phase) -> (GuestTime, u64) {
        match phase {
            Phase::Stopped { time, tsc } => (time, tsc),
            Phase::Running { origin_ns } => {
                let (host_ns, host_tsc) = self.read_host();
                (GuestTime(host_ns.wrapping_sub(origin_ns)), host_tsc.wrapping_add(self.tsc_offset()))
            }
        }
    }

    /// Both clocks of the host, close together. The TSC is read first, so that a deadline computed from the pair is
    /// never early. A thread that loses the processor in between tries again.
    fn read_host(&self) -> (u64, u64) {
        let close = self.host.tsc_khz * SAMPLE_NS / 1_000_000;
        let attempts = std::iter::repeat_with(|| {
            let tsc = (self.host.rdtsc)();
            let ns = (self.host.monotonic_ns)();
            ((self.host.rdtsc)().wrapping_sub(tsc), (ns, tsc))
        });
        let mut best = (u64::MAX, (0, 0));
        for attempt in attempts.take(SAMPLE_ATTEMPTS) {
            best = best.min(attempt);
            if best.0 <= close {
                break;
            }
        }
        best.1
    }

    /// Guest time and the guest's TSC (without IA32_TSC_ADJUST) of the same moment.
    pub(crate) fn sample(&self) -> (GuestTime, u64) {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
        self.read(*phase)
    }

    /// What to add to the host's TSC to get the guest's, while the clock runs.
    #[inline]
    pub(crate) fn tsc_offset(&self) -> u64 {
        self.tsc_offset.load(Ordering::Acquire)
    }

    /// The rate of the guest's TSC.
    pub(crate) fn tsc_khz(&self) -> u64 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    /// When the guest's TSC reaches `tsc`: now for values of the past.
    pub(crate) fn time_of_tsc(&self, tsc: u64) -> GuestTime {
        let (now, current) = self.sample();
        // A distance with the top bit set is one into the past (SDM vol. 3, 11.5.4.1: the deadline compares as
        // passed), or a deadline in more than 50 years.
        let ahead = tsc.saturating_sub(current);
        now.after_ns(self.tsc_to_ns(ahead))
    }

    /// TSC ticks as nanoseconds, rounded up; held at the end of time.
    pub(crate) fn tsc_to_ns(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * 1_000_000).div_ceil(u128::from(self.tsc_khz()));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// What the wall clock showed at guest time 0, in ns since 1970.
    pub(crate) fn epoch_unix_ns(&self) -> u64 {
        self.epoch_unix_ns.load(Ordering::Relaxed)
    }

    /// The saved form. A running clock is saved as of now.
    pub(crate) fn save(&self) -> Record {
        let (time, tsc) = self.sample();
        let (tsc_khz, epoch_unix_ns) = (self.tsc_khz(), self.epoch_unix_ns());
        Record::encode(&SavedClock { time, tsc, tsc_khz, epoch_unix_ns })
    }

    /// Takes over a saved form; the clock is stopped afterwards.
    ///
    /// # Errors
    /// If the record is not a clock's, or the host's TSC ticks at another rate: a guest computes with the rate that
    /// it has once been told, and the counter is not scaled.
    pub(crate) fn restore(&self, record: &Record) -> Result<(), StateError> {
        let saved: SavedClock = record.decode()?;
        if saved.tsc_khz.abs_diff(self.host.tsc_khz) > self.host.tsc_khz / CALIBRATION_ERROR {
            let reason = format!(
                "the guest's TSC ticks at {} kHz, this host's at {} kHz",
                saved.tsc_khz, self.host.tsc_khz
            );
            return Err(StateError::Damaged { name: SavedClock::NAME, reason });
        }
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        self.tsc_khz.store(saved.tsc_khz.max(1), Ordering::Relaxed);
        self.epoch_unix_ns.store(saved.epoch_unix_ns, Ordering::Relaxed);
        *phase = Phase::Stopped { time: saved.time, tsc: saved.tsc };
        Ok(())
    }
}

/// How far apart the two clocks are read at most, if the host lets us, and how often we try.
const SAMPLE_NS: u64 = 1000;
const SAMPLE_ATTEMPTS: usize = 5;

/// Two measurements of one TSC's rate differ by less than one part in this many.
const CALIBRATION_ERROR: u64 = 1000;

impl Clock for VmClock {
    fn now(&self) -> GuestTime {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
        match *phase {
            Phase::Stopped { time, .. } => time,
            Phase::Running { origin_ns } => GuestTime((self.host.monotonic_ns)().wrapping_sub(origin_ns)),
        }
    }
}

/// The saved form of the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedClock {
    time: GuestTime,
    tsc: u64,
    tsc_khz: u64,
    epoch_unix_ns: u64,
}

impl Saved for SavedClock {
    const NAME: &'static str = "clock";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NS: Cell<u64> = const { Cell::new(1_000_000) };
    }

    /// A host whose TSC ticks at 2 GHz.
    fn clock() -> VmClock {
        VmClock::new(HostTime {
            monotonic_ns: || NS.get(),
            rdtsc: || NS.get() * 2 + 77,
            tsc_khz: 2_000_000,
            wall_clock_ns: || 1_000_000_000 + NS.get(),
        })
    }

    fn pass(ns: u64) {
        NS.set(NS.get() + ns);
    }

    #[test]
    fn time_and_tsc_stand_still_while_stopped() {
        let clock = clock();
        pass(500);
        assert_eq!(clock.sample(), (GuestTime(0), 0));
        clock.resume();
        pass(100);
        assert_eq!(clock.sample(), (GuestTime(100), 200));
        clock.stop();
        pass(1 << 40);
        assert_eq!(clock.sample(), (GuestTime(100), 200));
        clock.resume();
        clock.resume();
        pass(5);
        assert_eq!(clock.sample(), (GuestTime(105), 210));
        assert_eq!(clock.now(), GuestTime(105));
        assert_eq!((NS.get() * 2 + 77).wrapping_add(clock.tsc_offset()), 210);
    }

    #[test]
    fn converts_relative_to_now() {
        let clock = clock();
        clock.resume();
        pass(1000);
        assert_eq!(clock.time_of_tsc(2000 + 3), GuestTime(1002), "rounded up");
        assert_eq!(clock.time_of_tsc(5), GuestTime(1000), "the past is now");
        assert_eq!(clock.time_of_tsc(u64::MAX), GuestTime(1000 + (u64::MAX - 2000).div_ceil(2)));
    }

    #[test]
    fn a_restored_clock_goes_on_even_on_a_younger_host() {
        let old = clock();
        old.resume();
        pass(1 << 50);
        let record = old.save();
        NS.set(10);
        let new = clock();
        new.restore(&record).unwrap();
        assert_eq!(new.save(), record);
        assert_eq!(new.epoch_unix_ns(), old.epoch_unix_ns(), "and with it the guest's wall clock");
        new.resume();
        pass(3);
        assert_eq!(new.sample(), (GuestTime((1 << 50) + 3), (1 << 51) + 6));
    }

    #[test]
    fn refuses_a_host_of_another_speed() {
        let saved =
            |tsc_khz| Record::encode(&SavedClock { time: GuestTime(0), tsc: 0, tsc_khz, epoch_unix_ns: 0 });
        assert!(matches!(clock().restore(&saved(2_100_000)), Err(StateError::Damaged { .. })));
        let clock = clock();
        clock.restore(&saved(2_000_100)).unwrap();
        assert_eq!(clock.tsc_khz(), 2_000_100, "the guest keeps the rate it was told");
    }
}
