//! The timer thread: one per VM, it calls everything that set an alarm when the alarm is due.
//!
//! # Scheme
//!
//! Each device has one slot that holds the time it wants to be called. The thread sleeps until the earliest of them.
//! Setting an alarm that is later than the thread's wake-up only writes the slot: guests reprogram their timers
//! thousands of times a second, nearly always to a later time, and the thread, once awake, finds the current times
//! anyway.
//!
//! # Lock order
//!
//! A device sets its alarm while its own lock is held, so the order is *device, then alarms*. The thread therefore
//! never holds the alarm lock when it calls a device: it takes the due slots' targets out under the lock, unlocks,
//! and calls. In between the device may move or clear its alarm; so a call is a hint ("it has gone off, *or may
//! have*") and the device looks at the time itself.
//!
//! # Pause
//!
//! [`Alarms::pause`] returns when no target is being called, and none is called until [`Alarms::resume`]. Alarms may
//! be set while paused. It must not be called by a target.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bus::{Alarm, Clock, GuestTime};
use host::jail::Role;

use crate::VmError;

/// What is called when an alarm goes off.
pub(crate) type Target = Arc<dyn Fn(GuestTime) + Send + Sync>;

/// The alarms of one VM and the thread that watches them.
pub(crate) struct Alarms {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    table: Mutex<Table>,
    /// The thread waits here.
    wake: Condvar,
    /// [`Alarms::pause`] waits here.
    quiet: Condvar,
}

struct Table {
    slots: Vec<Slot>,
    phase: Phase,
    /// The thread is calling targets.
    calling: bool,
    /// The thread sleeps, until this time at the latest. `None` while it is awake: it will look at all slots before
    /// it sleeps again.
    sleeps_until: Option<GuestTime>,
}

#[derive(Default)]
struct Slot {
    at: Option<GuestTime>,
    target: Option<Target>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Paused,
    Running,
    Ended,
}

impl Alarms {
    /// Starts the thread, paused, on a clock. It holds `watch` for as long as it lives.
    ///
    /// # Errors
    /// If the host has no thread for us.
    pub(crate) fn start(clock: Arc<dyn Clock>, watch: impl Send + 'static) -> Result<Self, VmError> {
        let table = Table { slots: Vec::new(), phase: Phase::Paused, calling: false, sleeps_until: None };
        let shared =
            Arc::new(Shared { clock, table: Mutex::new(table), wake: Condvar::new(), quiet: Condvar::new() });
        let watcher = shared.clone();
        let life = move || {
            let _watch = watch;
            watcher.run();
        };
        let thread = host::thread::spawn("timers", Role::Timers, life).map_err(VmError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A new alarm, which calls nobody until it is connected.
    pub(crate) fn alarm(&self) -> AlarmHandle {
        let mut table = self.shared.lock();
        table.slots.push(Slot::default());
        AlarmHandle { shared: self.shared.clone(), index: table.slots.len() - 1 }
    }

    /// Lets alarms go off.
    pub(crate) fn resume(&self) {
        self.shared.enter(Phase::Running);
    }

    /// Holds all alarms back; when it returns, no target is being called.
    pub(crate) fn pause(&self) {
        self.shared.enter(Phase::Paused);
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        self.shared.enter(Phase::Ended);
        if let Some(thread) = self.thread.take() {
            // A target that panicked has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
        // Devices own alarms and targets own devices: without this, neither would ever be freed.
        let slots = std::mem::take(&mut self.shared.lock().slots);
        drop(slots);
    }
}

/// One device's alarm.
#[derive(Clone)]
pub(crate) struct AlarmHandle {
    shared: Arc<Shared>,
    index: usize,
}

impl AlarmHandle {
    /// Says who is called when this alarm goes off.
    pub(crate) fn connect(&self, target: Target) {
        if let Some(slot) = self.shared.lock().slots.get_mut(self.index) {
            slot.target = Some(target);
        }
    }
}

impl Alarm for AlarmHandle {
    fn set(&self, at: Option<GuestTime>) {
        let mut table = self.shared.lock();
        let Some(slot) = table.slots.get_mut(self.index) else {
            return;
        };
        slot.at = at;
        let sooner = match (at, table.sleeps_until) {
            (Some(at), Some(wake_up)) => at < wake_up,
            _ => false,
        };
        if sooner && table.phase == Phase::Running {
            // Others need not wake it once more before it has run.
            table.sleeps_until = at;
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut table = self.lock();
        table.phase = phase;
        self.wake.notify_one();
        while phase != Phase::Running && table.calling {
            table = self.quiet.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread.
    fn run(&self) {
        host::time::precise_waits();
        let mut due: Vec<Target> = Vec::new();
        let mut table = self.lock();
        loop {
            match table.phase {
                Phase::Ended => return,
                Phase::Paused => {
                    table = self.wake.wait(table).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Phase::Running => {}
            }
            let now = self.clock.now();
            table.take_due(now, &mut due);
            if due.is_empty() {
                table = self.sleep(table, now);
                continue;
            }
            table.calling = true;
            drop(table);
            let calls = Calling(self);
            for target in due.drain(..) {
                target(now);
            }
            drop(calls);
            table = self.lock();
        }
    }

    /// Sleeps until the earliest alarm, or until somebody wakes us.
    fn sleep<'a>(&'a self, mut table: MutexGuard<'a, Table>, now: GuestTime) -> MutexGuard<'a, Table> {
        let earliest = table.slots.iter().filter_map(|slot| slot.at).min();
        table.sleeps_until = Some(earliest.unwrap_or(GuestTime(u64::MAX)));
        let mut table = match earliest {
            Some(at) => {
                let wait = Duration::from_nanos(at.since(now));
                let woken = self.wake.wait_timeout(table, wait);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.wake.wait(table).unwrap_or_else(PoisonError::into_inner),
        };
        table.sleeps_until = None;
        table
    }
}

/// Targets are being called; ends even if one of them panics, so that a pause never waits for ever.
struct Calling<'a>(&'a Shared);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.lock().calling = false;
        self.0.quiet.notify_all();
    }
}

impl Table {
    /// Clears the alarms that are due and collects whom to call.
    fn take_due(&mut self, now: GuestTime, due: &mut Vec<Target>) {
        for slot in &mut self.slots {
            if slot.at.is_some_and(|at| at <= now) {
                slot.at = None;
                due.extend(slot.target.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{HostTime, VmClock};
    use std::sync::mpsc;

    fn running() -> (Arc<VmClock>, Alarms) {
        let clock = Arc::new(VmClock::new(HostTime::real()));
        let alarms = Alarms::start(clock.clone(), ()).unwrap();
        clock.resume();
        alarms.resume();
        (clock, alarms)
    }

    fn watched(alarms: &Alarms) -> (AlarmHandle, mpsc::Receiver<GuestTime>) {
        let (sender, receiver) = mpsc::channel();
        let alarm = alarms.alarm();
        let sender = Mutex::new(sender);
        alarm.connect(Arc::new(move |now| {
            let _ = sender.lock().unwrap().send(now);
        }));
        (alarm, receiver)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn goes_off_once_and_not_early() {
        let (clock, alarms) = running();
        let (alarm, calls) = watched(&alarms);
        let at = clock.now().after_ns(2_000_000);
        alarm.set(Some(at));
        assert!(calls.recv_timeout(LONG).unwrap() >= at);
        assert!(calls.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn a_sooner_alarm_wakes_the_thread_and_a_cleared_one_is_silent() {
        let (clock, alarms) = running();
        let (late, late_calls) = watched(&alarms);
        let (soon, soon_calls) = watched(&alarms);
        late.set(Some(clock.now().after_ns(3_600_000_000_000)));
        std::thread::sleep(Duration::from_millis(5));
        soon.set(Some(clock.now().after_ns(1_000)));
        soon_calls.recv_timeout(LONG).unwrap();
        late.set(Some(clock.now().after_ns(1_000_000_000)));
        late.set(None);
        soon.set(Some(clock.now().after_ns(1_000)));
        soon_calls.recv_timeout(LONG).unwrap();
        assert!(late_calls.try_recv().is_err());
    }

    #[test]
    fn a_target_may_set_its_alarm_again() {
        let (clock, alarms) = running();
        let (sender, calls) = mpsc::channel();
        let alarm = alarms.alarm();
        let (again, sender) = (alarm.clone(), Mutex::new(sender));
        alarm.connect(Arc::new(move |now: GuestTime| {
            again.set(Some(now.after_ns(100_000)));
            let _ = sender.lock().unwrap().send(());
        }));
        alarm.set(Some(clock.now()));
        for _ in 0..10 {
            calls.recv_timeout(LONG).unwrap();
        }
    }

    #[test]
    fn a_pause_holds_alarms_back() {
        let (clock, alarms) = running();
        let (alarm, calls) = watched(&alarms);
        alarms.pause();
        alarm.set(Some(clock.now()));
        assert!(calls.recv_timeout(Duration::from_millis(20)).is_err());
        alarms.resume();
        calls.recv_timeout(LONG).unwrap();
    }

    #[test]
    fn dropping_it_frees_the_targets() {
        let (_, alarms) = running();
        let alarm = alarms.alarm();
        let token = Arc::new(());
        let held = token.clone();
        alarm.connect(Arc::new(move |_| {
            let _ = &held;
        }));
        drop(alarms);
        assert_eq!(Arc::strong_count(&token), 1);
        alarm.set(Some(GuestTime(0)));
    }
}
