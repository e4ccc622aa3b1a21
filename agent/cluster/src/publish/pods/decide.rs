//! The next request for one pod. Pure.

use crate::{object::version, publish::PodToPublish, wait::backoff};
use berth_core::time::{Boottime, Now};
use berth_source::{
    cluster::mirrored,
    patch::{PodUpdate, pod_status},
};
use serde_json::Value;
use std::time::Duration;

/// First and longest wait after a request that failed.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Least time between two repairs of a status that other writers change.
const REPAIR_EVERY: Duration = Duration::from_secs(10);

/// Time for which a step on the way waits for the step after it. A pod is often Ready, or gone, within this time, and its
/// status then costs one request.
const SETTLE: Duration = Duration::from_millis(200);

/// The next request for a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// This patch of the status.
    Patch(Value),
    /// The deletion of the object, at once.
    Delete,
    /// None before this time.
    Wait(Boottime),
    /// None until the object or the report changes.
    Nothing,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// The patch was taken. The value is the version of the object before it and after it.
    Patched { before: Option<String>, after: Option<String> },
    /// The object is deleted, or is being deleted with the help of others (finalizers).
    Deleted,
    /// The API server refuses this request for the object of this version: another pod has the name, or a value of the
    /// status is not allowed.
    Refused { version: Option<String> },
    /// The request failed, and may succeed later.
    Failed { retry_after: Option<Duration> },
}

/// What was sent for a pod, and what came back.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The time of the first change of the report since it was last sent.
    fresh: Option<Boottime>,
    in_flight: bool,
    failures: u32,
    not_before: Boottime,
    /// The time before which a status that only other writers changed is left alone.
    repair_at: Boottime,
    /// The version of the object on which the last patch had no effect. The same patch is not sent again on it.
    futile: Option<Option<String>>,
    deleted: bool,
}

impl Entry {
    /// Takes that the report on the pod has changed.
    pub(super) fn report_changed(&mut self, now: Boottime) {
        self.fresh.get_or_insert(now);
        self.futile = None;
    }

    /// The next request. A `Patch` or `Delete` counts as sent.
    pub(super) fn next(&mut self, api: &Value, report: &PodToPublish, now: Now) -> Step {
        if self.in_flight || self.deleted || !report.observed {
            return Step::Nothing;
        }
        if now.boottime < self.not_before {
            return Step::Wait(self.not_before);
        }
        let over = report.reclaimed;
        let deleting = api["metadata"]["deletionTimestamp"].is_string();
        let uid = api["metadata"]["uid"].as_str().unwrap_or_default();
        let update = PodUpdate { uid, pod: &report.pod, may_run: report.may_run && !over, now: now.wall };
        let patch = match pod_status(&update, &api["status"], &report.status) {
            Ok(patch) => patch,
            Err(error) => {
                tracing::warn!(pod = %report.pod.key, %error, "a status update is dropped");
                None
            }
        };
        // The object may go only once the API server itself shows the end of the pod: the owner of the pod starts the next
        // one then (`canBeDeleted`, `pkg/kubelet/status/status_manager.go`).
        // A mirror pod goes by its file alone.
        let may_go = deleting && over && is_terminal(&api["status"]) && mirrored(api).is_none();
        let futile = self.futile.as_ref().is_some_and(|futile| futile.as_deref() == version(api));
        let futile = futile || may_go && !has_finalizers(api) && patch.as_ref().is_some_and(is_of_conditions);
        let passing = !over && is_on_the_way(&api["status"], &report.status, deleting);
        let settles = self.fresh.map(|since| since + SETTLE).filter(|end| passing && now.boottime < *end);
        match patch.filter(|_| !futile) {
            Some(_) if self.fresh.is_none() && now.boottime < self.repair_at => Step::Wait(self.repair_at),
            Some(patch) => {
                if let Some(end) = settles {
                    return Step::Wait(end);
                }
                self.fresh = None;
                self.in_flight = true;
                self.repair_at = now.boottime + REPAIR_EVERY;
                Step::Patch(patch)
            }
            None if may_go => {
                self.in_flight = true;
                Step::Delete
            }
            None => {
                self.fresh = None;
                Step::Nothing
            }
        }
    }

    /// Takes an answer.
    pub(super) fn answered(&mut self, answer: Answer, now: Now) {
        self.in_flight = false;
        self.failures = match answer {
            Answer::Failed { .. } => self.failures.saturating_add(1),
            _ => 0,
        };
        match answer {
            Answer::Patched { before, after } => {
                // The server drops a field that it does not know: to send it again would change nothing either.
                if before == after {
                    self.futile = Some(after);
                }
            }
            Answer::Deleted => self.deleted = true,
            Answer::Refused { version } => self.futile = Some(version),
            Answer::Failed { retry_after } => {
                self.fresh.get_or_insert(now.boottime);
                let wait = backoff(self.failures, WAITS.0, WAITS.1);
                self.not_before = now.boottime + wait.max(retry_after.unwrap_or_default());
            }
        }
    }
}

/// Whether a status is one that a pod only passes: a pod that starts is Pending as before, and one that is deleted has not
/// come to its final phase.
fn is_on_the_way(shown: &Value, new: &Value, deleting: bool) -> bool {
    let phase = new["phase"].as_str();
    phase == shown["phase"].as_str() && (phase == Some("Pending") || deleting && !is_terminal(new))
}

/// Whether the phase of this status is final.
fn is_terminal(status: &Value) -> bool {
    matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Whether the object stays after its deletion until others let it go.
fn has_finalizers(api: &Value) -> bool {
    api["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// Whether a patch changes nothing but conditions. An object that goes within the next request has no reader for those:
/// the last one, `PodReadyToStartContainers`, says only that the sandbox is gone.
fn is_of_conditions(patch: &Value) -> bool {
    patch["status"].as_object().is_some_and(|status| {
        status.keys().all(|field| matches!(field.as_str(), "conditions" | "$setElementOrder/conditions"))
    })
}

#[cfg(test)]
mod tests;
