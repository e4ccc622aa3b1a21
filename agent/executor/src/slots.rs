//! Slots: how many pods carry out one step of their start at once. More work than the processors can do slows
//! down every start.
//!
//! A holder keeps its slot for [`SLOT_TIMEOUT`] at most. A stuck holder (a shim, a plugin) continues without
//! the slot and delays no other pod.

use berth_core::sync::lock;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest time that a holder keeps a slot.
const SLOT_TIMEOUT: Duration = Duration::from_secs(3);

/// The slots for one kind of work on a node.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Semaphore>);

/// A held slot, returned when dropped or after [`SLOT_TIMEOUT`].
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    timer: tokio::task::AbortHandle,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.timer.abort();
        lock(&self.permit).take();
    }
}

impl Slots {
    pub(crate) fn new(at_once: usize) -> Slots {
        Slots(Arc::new(Semaphore::new(at_once.max(1))))
    }

    /// Creates `at_once` slots for each processor.
    pub(crate) fn of_each_processor(at_once: usize) -> Slots {
        Slots::new(std::thread::available_parallelism().map_or(2, |n| n.get()).saturating_mul(at_once))
    }

    /// Waits for a slot. Waiters get slots in the order of their calls.
    pub(crate) async fn acquire(&self) -> Slot {
        // The semaphore is never closed. If it were, the work would continue without a limit.
        let permit = Arc::new(Mutex::new(Arc::clone(&self.0).acquire_owned().await.ok()));
        let lent = Arc::clone(&permit);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(SLOT_TIMEOUT).await;
            lock(&lent).take();
        })
        .abort_handle();
        Slot { permit, timer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stuck_holder_does_not_keep_others_waiting_for_ever() {
        tokio::time::pause();
        let slots = Slots::new(1);
        let stuck = slots.acquire().await;
        let begun = tokio::time::Instant::now();
        let next = slots.acquire().await;
        assert!(begun.elapsed() >= SLOT_TIMEOUT, "a holder keeps its slot for its time");
        drop(next);
        let at_once = slots.acquire().await;
        drop((stuck, at_once));
    }
}
