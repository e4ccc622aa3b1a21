//! One piece of work on a volume at a time.

use berth_core::sync::lock;
use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

/// The longest wait for another pod's work on the same volume; less than the deadline of mounting a pod's volumes.
pub(super) const WAIT: Duration = Duration::from_secs(100);

/// The volumes on which somebody works.
#[derive(Debug, Default)]
pub(super) struct Locks {
    busy: Mutex<BTreeSet<String>>,
    freed: Condvar,
}

/// The turn of one volume. Its end lets the next one in.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    locks: &'a Locks,
    key: String,
}

impl Locks {
    /// Waits until nobody works on the volume; `None` after that time.
    pub(super) fn turn(&self, key: &str, wait: Duration) -> Option<Turn<'_>> {
        let end = Instant::now() + wait;
        let mut busy = lock(&self.busy);
        while busy.contains(key) {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            busy = match self.freed.wait_timeout(busy, left) {
                Ok((busy, _)) => busy,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        busy.insert(key.to_owned());
        Some(Turn { locks: self, key: key.to_owned() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.locks.busy).remove(&self.key);
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_turn_at_a_time_and_others_are_free() {
        let locks = Locks::default();
        let first = locks.turn("a", Duration::ZERO).unwrap();
        assert!(locks.turn("a", Duration::ZERO).is_none());
        assert!(locks.turn("b", Duration::ZERO).is_some());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| locks.turn("a", WAIT).is_some());
            drop(first);
            assert!(waits.join().unwrap());
        });
        assert!(locks.busy.lock().unwrap().is_empty());
    }
}
