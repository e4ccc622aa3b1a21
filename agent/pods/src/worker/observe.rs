//! Observations of the pod and refreshes of its volumes: at most one of each at a time. The mailbox waits for
//! neither. A failed observation or refresh is tried again after a pause.

use super::Worker;
use crate::{
    executor::{Executor, PodSnapshot},
    report::Reports,
};
use berth_core::{
    event::Event,
    plan::{Action, Failure},
    volume::{wants_expansion, wants_republish},
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinError, time::timeout};

/// Pause after the first failed observation. Each further failure doubles the pause, up to
/// [`OBSERVE_RETRY_MAX`].
const OBSERVE_RETRY: Duration = Duration::from_secs(1);
/// The longest pause after a failed observation, and the pause after an observation that left a container's
/// state unsure.
pub(super) const OBSERVE_RETRY_MAX: Duration = Duration::from_secs(30);
/// Deadline of an observation.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time from a refresh to the next of a pod whose driver wants its volumes published again, or whose volume has grown; the
/// kubelet does it at each sync of the pod, 60 to 90 s apart.
const REPUBLISH: Duration = Duration::from_secs(75);
/// Pause after a failed refresh.
const REFRESH_AGAIN: Duration = Duration::from_secs(10);

impl<H: Executor, R: Reports> Worker<H, R> {
    /// Whether volumes may be refreshed: they are mounted, and the pod is not ending.
    pub(super) fn may_refresh(&self) -> bool {
        // Files of an object that is unknown again, such as after a restart of the agent, stay as they are.
        let known = !self.desired.unknown.keys().any(|r| r.used_for.is_file());
        self.cache.seen.volumes_mounted && self.memory.ending.is_none() && known
    }

    pub(super) fn spawn_due(&mut self) {
        let now = self.boottime();
        if self.observations.is_empty() && self.observe_at.is_some_and(|t| t <= now) {
            self.observe_at = None;
            let (executor, uid) = (Arc::clone(&self.executor), self.pod().uid.clone());
            self.observations.spawn(async move {
                let late =
                    || Failure::new("DeadlineExceeded", "the observation of the pod did not end in time");
                timeout(OBSERVE_TIMEOUT, executor.observe(&uid)).await.unwrap_or_else(|_elapsed| Err(late()))
            });
        }
        if self.refreshes.is_empty() && self.may_refresh() && self.refresh_at.is_some_and(|t| t <= now) {
            self.refresh_at = None;
            let (executor, context) = (Arc::clone(&self.executor), self.context(&Action::MountVolumes));
            self.refreshes.spawn(async move { executor.refresh(context).await });
        }
    }

    pub(super) fn observation_ended(&mut self, observed: Result<Result<PodSnapshot, Failure>, JoinError>) {
        let failure = match observed {
            Ok(Ok(snapshot)) => return self.take_snapshot(snapshot),
            Ok(Err(failure)) => failure.message,
            Err(error) => error.to_string(),
        };
        tracing::debug!(pod = %self.desired.pod.key, why = failure, "cannot observe the pod");
        let factor = 1u32.checked_shl(self.observe_failures.min(8)).unwrap_or(u32::MAX);
        self.observe_failures = self.observe_failures.saturating_add(1);
        let rest = OBSERVE_RETRY.saturating_mul(factor).min(OBSERVE_RETRY_MAX);
        self.observe_at.get_or_insert(self.executor.now().boottime + rest);
    }

    pub(super) fn take_snapshot(&mut self, snapshot: PodSnapshot) {
        self.observe_failures = 0;
        self.observed_once = true;
        // An observation that was requested after this snapshot began stays requested.
        self.observe_at = self.observe_at.filter(|t| *t >= snapshot.taken);
        if !snapshot.unsure.is_empty() {
            self.observe_at.get_or_insert(self.executor.now().boottime + OBSERVE_RETRY_MAX);
        }
        let ended = self.cache.merge(snapshot, &self.memory.in_flight);
        self.note_ends(ended);
    }

    pub(super) fn refreshed(&mut self, refreshed: Result<Result<(), Failure>, JoinError>) {
        let failure = match refreshed {
            Ok(Ok(())) => {
                let again =
                    wants_republish(self.pod(), &self.objects) || wants_expansion(self.pod(), &self.objects);
                if again {
                    self.refresh_at.get_or_insert(self.executor.now().boottime + REPUBLISH);
                }
                return;
            }
            Ok(Err(failure)) => failure,
            Err(error) => Failure::new("InternalError", error.to_string()),
        };
        tracing::warn!(pod = %self.desired.pod.key, reason = failure.reason, why = failure.message, "cannot refresh the volumes");
        self.refresh_at.get_or_insert(self.executor.now().boottime + REFRESH_AGAIN);
        self.event(Event::warning(&failure.reason, failure.message));
    }
}
