//! The looks at the pod and the refreshes of its volumes: at most one of each at a time, none that the mailbox waits
//! for. One that failed is tried again after a rest.

use super::Worker;
use crate::{
    hands::{Hands, Sight},
    report::Reports,
};
use berth_core::{
    event::Event,
    plan::{Action, Failure},
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinError, time::timeout};

/// How long a look at the pod is put off after one failed, at first; doubled with each, up to [`LOOK_SELDOM`].
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The longest time between two looks of which the last failed, or left something open.
pub(super) const LOOK_SELDOM: Duration = Duration::from_secs(30);
/// How long a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// How long a refresh that failed rests.
const REFRESH_AGAIN: Duration = Duration::from_secs(10);

impl<H: Hands, R: Reports> Worker<H, R> {
    /// Volumes are refreshed while they are mounted and shall stay so.
    pub(super) fn may_refresh(&self) -> bool {
        self.known.seen.volumes_mounted && self.memory.ending.is_none()
    }

    pub(super) fn begin_what_is_due(&mut self) {
        let now = self.boottime();
        if self.looks.is_empty() && self.look_at.is_some_and(|t| t <= now) {
            self.look_at = None;
            let (hands, uid) = (Arc::clone(&self.hands), self.pod().uid.clone());
            self.looks.spawn(async move {
                let late = || Failure::new("DeadlineExceeded", "the look at the pod did not end in time");
                timeout(LOOK_LIMIT, hands.look(&uid)).await.unwrap_or_else(|_elapsed| Err(late()))
            });
        }
        if self.refreshes.is_empty() && self.may_refresh() && self.refresh_at.is_some_and(|t| t <= now) {
            self.refresh_at = None;
            let (hands, context) = (Arc::clone(&self.hands), self.context(&Action::MountVolumes));
            self.refreshes.spawn(async move { hands.refresh(context).await });
        }
    }

    pub(super) fn looked(&mut self, looked: Result<Result<Sight, Failure>, JoinError>) {
        let failure = match looked {
            Ok(Ok(sight)) => return self.see(sight),
            Ok(Err(failure)) => failure.message,
            Err(error) => error.to_string(),
        };
        tracing::debug!(pod = %self.desired.pod.key, why = failure, "could not look at the pod");
        let factor = 1u32.checked_shl(self.looks_failed.min(8)).unwrap_or(u32::MAX);
        self.looks_failed = self.looks_failed.saturating_add(1);
        let rest = LOOK_AGAIN.saturating_mul(factor).min(LOOK_SELDOM);
        self.look_at.get_or_insert(self.hands.now().boottime + rest);
    }

    pub(super) fn see(&mut self, sight: Sight) {
        self.looks_failed = 0;
        self.looked_at = true;
        // A wish that came after the look began stays.
        self.look_at = self.look_at.filter(|t| *t >= sight.taken);
        if !sight.unsure.is_empty() {
            self.look_at.get_or_insert(self.hands.now().boottime + LOOK_SELDOM);
        }
        let ended = self.known.see(sight, &self.memory.in_flight);
        self.note_ends(ended);
    }

    pub(super) fn refreshed(&mut self, refreshed: Result<Result<(), Failure>, JoinError>) {
        let failure = match refreshed {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(error) => Failure::new("InternalError", error.to_string()),
        };
        tracing::warn!(pod = %self.desired.pod.key, reason = failure.reason, why = failure.message, "volumes not refreshed");
        self.refresh_at.get_or_insert(self.hands.now().boottime + REFRESH_AGAIN);
        self.event(Event::warning(&failure.reason, failure.message));
    }
}
