//! Claims: the pods and container runs that this agent process works on, and the leases and output streams
//! that cleanup is releasing. Nothing is claimed and being released at the same time.
//!
//! A start claims its pod and its run before it creates anything of them. Cleanup marks a lease or an output
//! stream while releasing it. A start of that pod or run waits until the release has ended; every other start
//! continues.

use berth_core::{
    ids::{ContainerId, PodUid},
    sync::lock,
};
use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// A resource that a pod or a run may have claimed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claimable {
    /// A pod's lease.
    Pod(PodUid),
    /// A run's output.
    Run(ContainerId),
}

#[derive(Debug, Default)]
struct ClaimTable {
    pods: BTreeSet<PodUid>,
    runs: HashMap<ContainerId, PodUid>,
    leaving: BTreeSet<Claimable>,
}

/// The claims of one agent process.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    state: Mutex<ClaimTable>,
    left: Notify,
}

/// The mark of a resource that is being released. Dropping the mark ends the release.
#[derive(Debug)]
pub(crate) struct Releasing<'a>(&'a Claims, Claimable);

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.0.state().leaving.remove(&self.1);
        self.0.left.notify_waiters();
    }
}

impl Claims {
    fn state(&self) -> MutexGuard<'_, ClaimTable> {
        lock(&self.state)
    }

    /// Claims a pod, and a run of it, once neither is being released.
    pub(crate) async fn claim(&self, pod: &PodUid, run: Option<&ContainerId>) {
        loop {
            let mut left = pin!(self.left.notified());
            // Enabled before the check, so that a release that ends between check and wait is noticed.
            left.as_mut().enable();
            if self.try_claim(pod, run) {
                return;
            }
            left.await;
        }
    }

    fn try_claim(&self, pod: &PodUid, run: Option<&ContainerId>) -> bool {
        let mut state = self.state();
        let run_leaves = run.is_some_and(|id| state.leaving.contains(&Claimable::Run(id.clone())));
        if run_leaves || state.leaving.contains(&Claimable::Pod(pod.clone())) {
            return false;
        }
        state.pods.insert(pod.clone());
        if let Some(id) = run {
            state.runs.insert(id.clone(), pod.clone());
        }
        true
    }

    /// Begins to release a resource. `None` where the resource is claimed or already being released.
    pub(crate) fn leave(&self, thing: Claimable) -> Option<Releasing<'_>> {
        let mut state = self.state();
        let ours = match &thing {
            Claimable::Pod(uid) => state.pods.contains(uid),
            Claimable::Run(id) => state.runs.contains_key(id),
        };
        if ours || !state.leaving.insert(thing.clone()) {
            return None;
        }
        Some(Releasing(self, thing))
    }

    /// The pod of a run, where this agent process has started or observed the run.
    pub(crate) fn owner(&self, run: &ContainerId) -> Option<PodUid> {
        self.state().runs.get(run).cloned()
    }

    /// Records the pod of an observed run.
    pub(crate) fn found(&self, run: &ContainerId, pod: &PodUid) {
        self.state().runs.insert(run.clone(), pod.clone());
    }

    /// Drops the claim of a run of which nothing is left.
    pub(crate) fn forget_run(&self, run: &ContainerId) {
        self.state().runs.remove(run);
    }

    /// Drops the claim of a pod of which nothing is left.
    pub(crate) fn forget(&self, pod: &PodUid) {
        self.state().pods.remove(pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn pod(name: &str) -> PodUid {
        PodUid::new(name).unwrap()
    }

    #[tokio::test]
    async fn what_is_being_let_go_holds_up_its_own_start_alone() {
        let claims = Claims::default();
        let [run, other] = ["1", "2"].map(|c| ContainerId::new(c.repeat(64)).unwrap());
        let lease = claims.leave(Claimable::Pod(pod("a"))).unwrap();
        let output = claims.leave(Claimable::Run(run.clone())).unwrap();
        assert!(claims.leave(Claimable::Pod(pod("a"))).is_none(), "one at a time");
        claims.claim(&pod("b"), None).await;
        claims.claim(&pod("b"), Some(&other)).await;
        let a = pod("a");
        let mut waits = pin!(claims.claim(&a, Some(&run)));
        assert!(tokio::time::timeout(Duration::ZERO, &mut waits).await.is_err());
        drop(lease);
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut waits).await.is_err(),
            "its output is not let go yet"
        );
        drop(output);
        waits.await;
        assert_eq!(claims.owner(&run), Some(pod("a")));
        // A claimed resource is not released.
        assert!(
            claims.leave(Claimable::Pod(pod("a"))).is_none()
                && claims.leave(Claimable::Run(run.clone())).is_none()
        );
        claims.forget_run(&run);
        claims.forget(&pod("a"));
        assert!(
            claims.leave(Claimable::Pod(pod("a"))).is_some()
                && claims.leave(Claimable::Run(run.clone())).is_some()
        );
    }
}
