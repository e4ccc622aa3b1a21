//! The looks at the pod and the refreshes of its volumes: at most one of each at a time, none that the mailbox waits
//! for. One that failed is tried again after a rest.

use super::Worker;
use crate::{
    executor::{Executor, PodSnapshot},
    report::Reports,
};
use berth_core::{
    event::Event,
    plan::{Action, Failure},
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinError, time::timeout};

/// How long a look at the pod is put off after one failed, at first; doubled with each, up to [`OBSERVE_RETRY_MAX`].
const OBSERVE_RETRY: Duration = Duration::from_secs(1);
/// The longest time between two looks of which the last failed, or left something open.
pub(super) const OBSERVE_RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a look may take.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a refresh that failed rests.
const REFRESH_AGAIN: Duration = Duration::from_secs(10);

impl<H: Executor, R: Reports> Worker<H, R> {
    /// Volumes are refreshed while they are mounted and shall stay so.
    pub(super) fn may_refresh(&self) -> bool {
        self.cache.seen.volumes_mounted && self.memory.ending.is_none()
    }

    pub(super) fn spawn_due(&mut self) {
        let now = self.boottime();
        if self.observations.is_empty() && self.observe_at.is_some_and(|t| t <= now) {
            self.observe_at = None;
            let (executor, uid) = (Arc::clone(&self.executor), self.pod().uid.clone());
            self.observations.spawn(async move {
                let late = || Failure::new("DeadlineExceeded", "the look at the pod did not end in time");
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
        tracing::debug!(pod = %self.desired.pod.key, why = failure, "could not look at the pod");
        let factor = 1u32.checked_shl(self.observe_failures.min(8)).unwrap_or(u32::MAX);
        self.observe_failures = self.observe_failures.saturating_add(1);
        let rest = OBSERVE_RETRY.saturating_mul(factor).min(OBSERVE_RETRY_MAX);
        self.observe_at.get_or_insert(self.executor.now().boottime + rest);
    }

    pub(super) fn take_snapshot(&mut self, snapshot: PodSnapshot) {
        self.observe_failures = 0;
        self.observed_once = true;
        // A wish that came after the look began stays.
        self.observe_at = self.observe_at.filter(|t| *t >= snapshot.taken);
        if !snapshot.unsure.is_empty() {
            self.observe_at.get_or_insert(self.executor.now().boottime + OBSERVE_RETRY_MAX);
        }
        let ended = self.cache.merge(snapshot, &self.memory.in_flight);
        self.note_ends(ended);
    }

    pub(super) fn refreshed(&mut self, refreshed: Result<Result<(), Failure>, JoinError>) {
        let failure = match refreshed {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(error) => Failure::new("InternalError", error.to_string()),
        };
        tracing::warn!(pod = %self.desired.pod.key, reason = failure.reason, why = failure.message, "volumes not refreshed");
        self.refresh_at.get_or_insert(self.executor.now().boottime + REFRESH_AGAIN);
        self.event(Event::warning(&failure.reason, failure.message));
    }
}
