//! Locks of a worker's threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A poisoned lock means that a thread panicked while it held it; what it guards is still whole (single assignments).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
