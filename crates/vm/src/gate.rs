//! The gate that vCPU threads pass to execute guest code, and the bench on which idle ones sit.
//!
//! The driver opens the gate, shuts it and waits until everybody is out. Anybody else (a device that met a power-off,
//! on some vCPU's thread) may *hold* it, which does not wait: no vCPU passes any more, whether the driver opens the
//! gate or not, and those inside leave at their next look. Only the driver ends a hold, once it has dealt with the
//! reason.
//!
//! # Why no wake-up is lost
//!
//! Whoever shuts or holds the gate writes that first, then rouses every vCPU ([`engine::Kick::leave`], then
//! [`Bench::rouse`]). A vCPU that had passed before the write is in one of three places: inside `run`, which the kick
//! ends; on the bench, which the rousing ends; or on its way to either, where the kick and the rousing wait for it,
//! for both are remembered until they are seen.
//!
//! The same holds for interrupts: the fabric publishes the event, kicks and rouses; a vCPU that halts has looked at
//! the pending events inside `run`, and an event published after that look has left its mark on the bench. So a
//! halted vCPU never needs to poll, and an idle guest costs nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::Kick;

/// Where a halted vCPU waits.
#[derive(Default)]
pub(crate) struct Bench {
    roused: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Bench {
    /// Sits until roused. Returns at once if that has happened since the last time.
    pub(crate) fn sit(&self) {
        if self.roused.swap(false, Ordering::Acquire) {
            return;
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.roused.swap(false, Ordering::Acquire) {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the present or the next sitting.
    pub(crate) fn rouse(&self) {
        if !self.roused.swap(true, Ordering::AcqRel) {
            // The sitter tests the flag under the lock: taking it means that he has not yet tested, or waits already.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_one();
        }
    }
}

/// How others reach one vCPU: interrupts it in `run`, and on the bench. Exists before the vCPU does, because the
/// interrupt fabric needs it and the vCPU needs the fabric.
#[derive(Default)]
pub(crate) struct Doorbell {
    kick: OnceLock<Kick>,
    bench: Bench,
}

impl Doorbell {
    /// Tells which vCPU to kick. The first call counts.
    pub(crate) fn connect(&self, kick: Kick) {
        let _ = self.kick.set(kick);
    }

    /// An event has been published: look at it.
    pub(crate) fn look(&self) {
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
        self.bench.rouse();
    }

    /// Leave `run`.
    pub(crate) fn leave(&self) {
        if let Some(kick) = self.kick.get() {
            kick.leave();
        }
        self.bench.rouse();
    }

    /// Waits for either.
    pub(crate) fn sit(&self) {
        self.bench.sit();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open,
    Ended,
}

struct Inside {
    phase: Phase,
    /// An event waits for the driver; whatever the phase, nobody passes before it has been dealt with.
    held: bool,
    vcpus: u32,
}

impl Inside {
    fn passable(&self) -> bool {
        self.phase == Phase::Open && !self.held
    }
}

/// The gate of one VM. Made closed.
pub(crate) struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
    /// Mirrors `phase == Open && !held`, for a look without the lock.
    open: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            inside: Mutex::new(Inside { phase: Phase::Closed, held: false, vcpus: 0 }),
            changed: Condvar::new(),
            open: AtomicBool::new(false),
        }
    }
}

/// A vCPU is inside as long as it holds this.
pub(crate) struct Pass<'a>(&'a Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inside)) {
        let mut inside = self.lock();
        change(&mut inside);
        self.open.store(inside.passable(), Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn set(&self, phase: Phase) {
        self.change(|inside| {
            // The end is final, so that a late resume cannot undo it.
            if inside.phase != Phase::Ended {
                inside.phase = phase;
            }
        });
    }

    /// Lets vCPUs in, unless the gate is held.
    pub(crate) fn open(&self) {
        self.set(Phase::Open);
    }

    /// Lets none in any more. The caller then rouses those inside.
    pub(crate) fn shut(&self) {
        self.set(Phase::Closed);
    }

    /// Keeps the gate from being passed, open or not. The caller then rouses those inside.
    pub(crate) fn hold(&self) {
        self.change(|inside| inside.held = true);
    }

    /// Ends the hold.
    pub(crate) fn release(&self) {
        self.change(|inside| inside.held = false);
    }

    /// Lets none in ever again, and sends the waiting ones home. The caller then rouses those inside.
    pub(crate) fn end(&self) {
        self.set(Phase::Ended);
    }

    /// Waits until nobody is inside. Only after [`Gate::shut`] or [`Gate::end`], and the rousing.
    pub(crate) fn wait_empty(&self) {
        let mut inside = self.lock();
        while inside.vcpus > 0 {
            inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the gate opens; `None` when it never will.
    pub(crate) fn enter(&self) -> Option<Pass<'_>> {
        let mut inside = self.lock();
        loop {
            match inside.phase {
                Phase::Open if inside.passable() => {
                    inside.vcpus += 1;
                    return Some(Pass(self));
                }
                Phase::Ended => return None,
                Phase::Open | Phase::Closed => {}
            }
            inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether those inside may stay.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().vcpus -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_rousing_before_the_sitting_counts() {
        let bench = Bench::default();
        bench.rouse();
        bench.rouse();
        bench.sit();
        assert!(!bench.roused.load(Ordering::SeqCst));
    }

    #[test]
    fn sitters_are_roused() {
        let bell = Arc::new(Doorbell::default());
        let sitter = bell.clone();
        let thread = std::thread::spawn(move || (0..1000).for_each(|_| sitter.sit()));
        while !thread.is_finished() {
            bell.look();
            std::thread::yield_now();
        }
        thread.join().unwrap();
    }

    /// How long a thread may need to be scheduled.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn closing_waits_and_the_end_is_final() {
        let gate = Arc::new(Gate::default());
        let visitor = gate.clone();
        let (entered, visit) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut visits = 0;
            while let Some(pass) = visitor.enter() {
                visits += 1;
                let _ = entered.send(());
                while visitor.is_open() {
                    std::thread::yield_now();
                }
                drop(pass);
            }
            visits
        });
        for _ in 0..3 {
            gate.open();
            assert!(visit.recv_timeout(PATIENCE).is_ok());
            gate.shut();
            gate.wait_empty();
        }
        gate.end();
        gate.open();
        gate.wait_empty();
        assert!(gate.enter().is_none());
        assert_eq!(thread.join().unwrap(), 3);
    }

    #[test]
    fn a_hold_outlasts_an_opening() {
        let gate = Gate::default();
        gate.hold();
        gate.open();
        assert!(!gate.is_open());
        gate.release();
        assert!(gate.is_open() && gate.enter().is_some());
        gate.wait_empty();
    }
}
