//! Locking that survives a panic elsewhere: a chip whose lock was poisoned is used on, its state is the guest's
//! problem only.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
