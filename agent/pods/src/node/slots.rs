//! How many pods work on a step of their start at once: more than the processors can do only makes every one of them slower.
//!
//! A turn is lent for [`LENT`] at most: whoever is stuck (a shim, a plugin) goes on without it and holds up nobody.

use berth_core::sync::lock;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest a turn is lent.
const LENT: Duration = Duration::from_secs(3);

/// The slots of one kind of work on a node.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Semaphore>);

/// A slot; given back when dropped, or after [`LENT`].
#[derive(Debug)]
pub(super) struct Slot {
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
    pub(super) fn new(at_once: usize) -> Slots {
        Slots(Arc::new(Semaphore::new(at_once.max(1))))
    }

    /// That many at once for each processor.
    pub(super) fn of_each_processor(at_once: usize) -> Slots {
        Slots::new(std::thread::available_parallelism().map_or(2, |n| n.get()).saturating_mul(at_once))
    }

    /// Waits for a turn, in order of asking.
    pub(super) async fn acquire(&self) -> Slot {
        // The semaphore is never closed; were it, everybody would simply go on.
        let permit = Arc::new(Mutex::new(Arc::clone(&self.0).acquire_owned().await.ok()));
        let lent = Arc::clone(&permit);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(LENT).await;
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
        assert!(begun.elapsed() >= LENT, "the turn is lent for its time");
        drop(next);
        let at_once = slots.acquire().await;
        drop((stuck, at_once));
    }
}
