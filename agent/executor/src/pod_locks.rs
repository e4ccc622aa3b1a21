//! Pod locks: one piece of blocking work of a pod at a time. Stuck work takes one thread, however often it is
//! tried again, and two pieces of work never change the same files at once.

use berth_core::{ids::PodUid, plan::Failure, sync::lock};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::task::spawn_blocking;

/// The area of a pod that a piece of work changes. Work in different areas does not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Area {
    /// The pod's directory: volumes and files.
    Files,
    /// The pod's cgroups, namespaces and pause process.
    Sandbox,
}

type PodLock = Arc<tokio::sync::Mutex<()>>;

/// The locks of all pods.
#[derive(Debug, Default)]
pub(crate) struct PodLocks(Mutex<HashMap<(PodUid, Area), PodLock>>);

impl PodLocks {
    fn of(&self, pod: &PodUid, area: Area) -> PodLock {
        let mut pod_locks = lock(&self.0);
        Arc::clone(pod_locks.entry((pod.clone(), area)).or_default())
    }

    /// Runs blocking work after earlier work in the same area of the pod has ended. Work whose future is
    /// dropped before that does not begin.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        pod: &PodUid,
        area: Area,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let guard = self.of(pod, area).lock_owned().await;
        let done = spawn_blocking(move || {
            let done = work();
            drop(guard);
            done
        });
        done.await.map_err(|e| Failure::new("InternalError", format!("blocking work ended early: {e}")))
    }

    /// Removes the locks of a pod of which nothing is left.
    pub(crate) fn forget(&self, pod: &PodUid) {
        let mut pod_locks = lock(&self.0);
        pod_locks.retain(|(uid, _), pod_lock| uid != pod || Arc::strong_count(pod_lock) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        time::Duration,
    };

    #[tokio::test]
    async fn stuck_work_takes_one_thread_and_keeps_nobody_else() {
        let pod_locks = PodLocks::default();
        let (pod, other) = (PodUid::new("a").unwrap(), PodUid::new("b").unwrap());
        let (release, stuck) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicU32::new(0));
        let (is_in, mut in_it) = tokio::sync::mpsc::channel(1);
        let count = Arc::clone(&begun);
        let work = pod_locks.blocking(&pod, Area::Files, move || {
            count.fetch_add(1, Ordering::SeqCst);
            is_in.blocking_send(()).unwrap();
            // The stuck work ends when the test releases it.
            stuck.recv().ok();
        });
        tokio::select! {
            _ = work => panic!("the work is stuck"),
            _ = in_it.recv() => {}
        }
        // The caller has given up, and the work still runs.
        for _ in 0..100 {
            let count = Arc::clone(&begun);
            let again = pod_locks.blocking(&pod, Area::Files, move || count.fetch_add(1, Ordering::SeqCst));
            assert!(tokio::time::timeout(Duration::ZERO, again).await.is_err());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "tries that wait take no thread");
        assert_eq!(pod_locks.blocking(&pod, Area::Sandbox, || 1).await.unwrap(), 1);
        assert_eq!(pod_locks.blocking(&other, Area::Files, || 2).await.unwrap(), 2);
        release.send(()).unwrap();
        assert_eq!(pod_locks.blocking(&pod, Area::Files, || 3).await.unwrap(), 3);
        assert_eq!(
            begun.load(Ordering::SeqCst),
            1,
            "a try whose caller gave up before its lock was free never runs"
        );
        // The first work's thread drops its reference to the lock a moment after it has released the lock.
        while pod_locks.0.lock().unwrap().keys().any(|(uid, _)| uid == &pod) {
            pod_locks.forget(&pod);
            tokio::task::yield_now().await;
        }
        assert_eq!(pod_locks.0.lock().unwrap().len(), 1);
    }
}
