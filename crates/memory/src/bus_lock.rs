//! The bus lock: all other vCPUs stand still while one makes an access that the host cannot make atomic.
//!
//! # The problem
//! A locked instruction is atomic at any alignment (SDM vol. 3A, 10.1.2), also if its operand lies in two pages. These are
//! next to each other for the guest only: no instruction of the host's reaches both.
//!
//! # The scheme
//! Who wants the bus goes *away* from its [`Seat`](crate::Seat), so that nobody waits for it, and takes its turn. Then it
//! says that the bus is locked, raises the epoch, which calls everybody, and waits until all have heard or are away. Who
//! hears a change, or comes in from being away, stands still as long as the bus is locked, and is away meanwhile.
//!
//! # Why it is right
//! *Nobody executes meanwhile.* The lock is set before the epoch is raised, so who has heard that epoch finds the lock (or
//! that it is over). Who comes in publishes that it is there, a full barrier, and looks at the lock; the holder sets the
//! lock, a full barrier, and looks at the seats: one sees the other.
//!
//! *Nobody waits for ever.* The holder waits for vCPUs that execute, and these reach a block boundary soon; those that wait
//! for their turn, or for the lock's end, are away. (They must be: who has heard an older epoch only, and stood still with
//! that, would be waited for by the one it waits for.)
//!
//! Who has held the bus was away: it may have missed the end of a shoot-down, and has to hear changes before it uses a
//! cached translation again. Devices are not held up.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether the bus is locked.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    turn: Mutex<()>,
    locked: AtomicBool,
}

/// The bus, locked as long as this lives.
pub(crate) struct Locked<'a> {
    bus: &'a Bus,
    _turn: MutexGuard<'a, ()>,
}

impl Bus {
    /// Waits for its turn and locks the bus. Whoever executes has to be called and waited for then.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.locked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Locked { bus: self, _turn: turn }
    }

    #[inline]
    pub(crate) fn is_locked(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    /// Waits until the bus is not locked.
    #[inline]
    pub(crate) fn wait(&self) {
        while self.is_locked() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.bus.locked.store(false, Ordering::SeqCst);
    }
}
