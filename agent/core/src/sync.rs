//! Locking of mutexes without poisoning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the mutex, even if an earlier holder panicked.
///
/// The protected data must be valid after each single statement (an insert, a removal, an assignment), so
/// that a panic between two statements leaves nothing half written. All mutexes of the workspace protect such
/// data.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{panic, panic::AssertUnwindSafe};

    #[test]
    fn a_mutex_is_locked_also_after_a_panic_of_its_holder() {
        let mutex = Mutex::new(1);
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut held = lock(&mutex);
            *held = 2;
            panic!("while the mutex is held");
        }));
        assert!(panicked.is_err() && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 2);
    }
}
