//! The shoot-down: taking cached writable translations of a frame away from all vCPUs before its code is cached.
//!
//! # The problem
//! A vCPU that writes a frame through a cached translation tells nobody. If another vCPU begins to cache the frame's
//! code, the writer hears of it at its next block boundary; and until then its stores are not noted. So:
//!
//! ```text
//!   writer, inside a block               reader
//!                                        watches the frame, decodes it
//!   changes the code
//!   says that it has (a flag)
//!                                        sees the flag, executes CPUID
//!                                        finds the version unchanged, runs the old code
//!   reaches the block's end, notes the write
//! ```
//!
//! The manual promises that the reader runs the new code (SDM vol. 3A, 10.1.3, cross-modifying code).
//!
//! # The scheme
//! Every vCPU takes a [`Seat`]. There it says up to which epoch it has *heard* all changes of memory, that is, has noted
//! what it may have written through translations that they concern, and has dropped those; or that it is *away*, not
//! running guest code at all. By the seat it can be *called*: made to reach a block boundary soon.
//!
//! Who wants to cache code of a frame *watches* it first. If writable translations of it may be cached somewhere, then
//! that, raising the epoch to *e*, and calling everybody who has not heard *e* is the begin of a shoot-down, which is
//! *pending* until all have heard *e* or are away. As long as it is pending the frame's code may be executed, but nothing
//! that is made of it may be kept: each instruction is decoded from the bytes as they are. When it is over, the frame is
//! *settled*, until a write ends the watch.
//!
//! Nobody ever waits: the reader goes on at the speed of a decoder, and it asks again the next time it gets there. So
//! there is nothing to deadlock, and a vCPU that the host does not let run delays nobody.
//!
//! # Why it is right
//! *What is kept of a settled frame is never stale unnoticed.* Let the reader keep what it made of bytes that it read
//! after the frame was settled, under the version of its watch; and let a writer store to the frame without the version
//! having been raised by its next instruction, so through a cached translation. The translation was made before the
//! frame was watched, because making one is refused since ([`CodeWatch`](crate::code_watch), one atomic word). The writer
//! dropped it before it heard *e*, so the store was before it heard *e*, and by then the whole frame had been noted. The reader
//! found *e* heard (which synchronizes) before it took its version for settled and before it read the bytes; so either the
//! version was raised before and is not the one that it keeps, or the bytes are the new ones.
//!
//! *A writer that was away* when the reader looked has not stored since, until it comes in. It comes in by publishing
//! what it has heard, a full barrier, and a look at the epoch; the reader raised the epoch, a full barrier, and looked at
//! the seats. One of them sees the other (Dekker): either the reader finds the writer present, or the writer catches up
//! before it executes anything.
//!
//! *Several readers.* That translations may be cached is a bit of the frame's word, and whoever finds it set does not keep
//! anything; it is cleared only when the shoot-down of this very watch is over, by an exchange that fails if the frame has
//! been written (and perhaps cached for writing again) in between.
//!
//! *The reader's end.* A write that is noted raises the version and the epoch, and calls everybody, before the writer's next
//! instruction; x86 keeps stores in order, so who sees the flag finds the version, the epoch, and itself called. An
//! engine has to look at one of them whenever it executes a serializing instruction.
//!
//! # What it costs
//! Nothing where no frame is both code and data. A vCPU that is alone hears its own shoot-down before it decodes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use x86::Mfn;

use crate::bus_lock::Bus;

/// "Heard" by who is away: everything, since it will catch up before it does anything.
const AWAY: u64 = u64::MAX;

/// A vCPU's place in the protocol. Away when new; gives itself up when dropped.
#[derive(Debug)]
pub struct Seat {
    chair: Arc<Chair>,
    bus: Arc<Bus>,
}

struct Chair {
    heard: AtomicU64,
    /// Makes the vCPU reach a block boundary soon.
    call: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Chair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chair({})", self.heard.load(Ordering::Relaxed))
    }
}

impl Seat {
    /// The vCPU is about to run guest code, and has heard all up to epoch `heard`. It has to look at the epoch, and to
    /// hear what is newer, after this and before it does anything.
    pub fn enter(&self, heard: u64) {
        loop {
            self.chair.heard.store(heard, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.bus.is_locked() {
                return;
            }
            self.leave();
            self.bus.wait();
        }
    }

    /// The vCPU, between two instructions, has heard all up to this epoch. Stands still, away, while somebody has locked the
    /// bus; so it has to look at the epoch again, as after [`Seat::enter`].
    pub fn hear(&self, epoch: u64) {
        self.chair.heard.store(epoch, Ordering::Release);
        if self.bus.is_locked() {
            self.enter(epoch);
        }
    }

    /// The vCPU runs no guest code until it enters again.
    pub fn leave(&self) {
        self.chair.heard.store(AWAY, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// All seats of a guest's vCPUs.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    chairs: RwLock<Vec<Arc<Chair>>>,
    bus: Arc<Bus>,
}

impl Seats {
    /// A new seat, by which the vCPU is called like that.
    pub(crate) fn take(&self, call: Box<dyn Fn() + Send + Sync>) -> Seat {
        let chair = Arc::new(Chair { heard: AtomicU64::new(AWAY), call });
        let mut chairs = self.chairs.write().unwrap_or_else(PoisonError::into_inner);
        // Seats that were given up.
        chairs.retain(|chair| Arc::strong_count(chair) > 1);
        chairs.push(chair.clone());
        Seat { chair, bus: self.bus.clone() }
    }

    /// Calls everybody who has not heard all up to this epoch.
    pub(crate) fn call(&self, epoch: u64) {
        fence(Ordering::SeqCst);
        let chairs = self.chairs.read().unwrap_or_else(PoisonError::into_inner);
        chairs.iter().filter(|chair| chair.heard.load(Ordering::Relaxed) < epoch).for_each(|c| (c.call)());
    }

    /// Runs `access` while all other vCPUs stand still. `announce` raises the epoch and returns it.
    pub(crate) fn alone<R>(
        &self,
        seat: &Seat,
        announce: impl FnOnce() -> u64,
        access: impl FnOnce() -> R,
    ) -> R {
        let heard = seat.chair.heard.swap(AWAY, Ordering::SeqCst);
        let locked = self.bus.lock();
        let epoch = announce();
        while self.heard() < epoch {
            std::thread::yield_now();
        }
        let result = access();
        drop(locked);
        seat.enter(heard);
        result
    }

    /// The epoch that everybody has heard who is not away.
    pub(crate) fn heard(&self) -> u64 {
        fence(Ordering::SeqCst);
        let chairs = self.chairs.read().unwrap_or_else(PoisonError::into_inner);
        chairs.iter().map(|chair| chair.heard.load(Ordering::Acquire)).min().unwrap_or(AWAY)
    }
}

/// A watch that is not settled yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) mfn: Mfn,
    pub(crate) version: u32,
    /// When everybody has heard this, it is.
    pub(crate) epoch: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Shootdowns(Mutex<Vec<Pending>>);

impl Shootdowns {
    /// Hands those that are over to `settle`, then continues or begins one. True if it is over.
    ///
    /// `is_unsettled` says whether it has to be at all; `announce` raises the epoch and returns it.
    pub(crate) fn advance(
        &self,
        seats: &Seats,
        (mfn, version): (Mfn, u32),
        settle: impl Fn(&Pending),
        is_unsettled: impl Fn() -> bool,
        announce: impl FnOnce() -> u64,
    ) -> bool {
        let mut pending = self.lock();
        sweep(&mut pending, seats, &settle);
        if !is_unsettled() {
            return true;
        }
        if pending.iter().any(|known| (known.mfn, known.version) == (mfn, version)) {
            return false;
        }
        // One of the frame's earlier lives is of no interest any more.
        pending.retain(|known| known.mfn != mfn);
        let epoch = announce();
        pending.push(Pending { mfn, version, epoch });
        sweep(&mut pending, seats, &settle);
        !is_unsettled()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(pending: &mut Vec<Pending>, seats: &Seats, settle: impl Fn(&Pending)) {
    if pending.is_empty() {
        return;
    }
    let heard = seats.heard();
    pending.retain(|one| {
        let over = one.epoch <= heard;
        if over {
            settle(one);
        }
        !over
    });
}

#[cfg(test)]
mod tests;
