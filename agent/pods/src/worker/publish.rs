//! Status publishing: a worker's status, events and last actions go to the status manager when they change.

use super::{RunningAction, Worker};
use crate::{
    executor::Executor,
    pod_cache::EndedRun,
    report::{ActionRecord, PodReport, Reports},
    waiting,
};
use berth_core::{
    event::{Event, EventKind, EventRecord, Involved},
    plan::{Action, Desired, Failure, Memory, Observed},
    status::{Phase, PodStatus},
    time::Now,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How many ended actions, and how many decisions, a worker keeps for its reports.
const RECORDS: usize = 32;

/// A decision of the worker that began actions. `plan` over `desired`, `seen` and `memory` at `at` makes the
/// same decision again.
#[derive(Debug, Clone)]
pub struct PlanRecord {
    /// The time of the decision.
    pub at: Now,
    /// The desired state of the pod.
    pub desired: Desired,
    /// The observed state that the decision used.
    pub seen: Observed,
    /// The memory before the decision.
    pub memory: Memory,
    /// The actions that the decision began.
    pub actions: Vec<Action>,
}

impl<H: Executor, R: Reports> Worker<H, R> {
    pub(super) fn record(&mut self, at: Now, memory: Memory, actions: &[Action]) {
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        let (desired, seen) = (self.desired.clone(), self.cache.seen.clone());
        self.records.push_back(Arc::new(PlanRecord { at, desired, seen, memory, actions: actions.to_vec() }));
    }

    pub(super) fn note(
        &mut self,
        flight: &RunningAction,
        took: Duration,
        steps: Vec<(&'static str, Duration)>,
        outcome: &Result<(), Failure>,
    ) {
        let kind = flight.action.kind();
        let container = flight.action.container().map(ToString::to_string);
        // Log lines need no finer unit than a tenth of a millisecond.
        let took_ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
        tracing::debug!(pod = %self.desired.pod.key, container, kind, ?steps, "steps");
        match outcome {
            Ok(()) => tracing::info!(pod = %self.desired.pod.key, container, kind, took_ms, "done"),
            Err(failure) => {
                tracing::warn!(pod = %self.desired.pod.key, container, kind, took_ms, reason = failure.reason, why = failure.message, "failed");
            }
        }
        if self.timeline.len() == RECORDS {
            self.timeline.pop_front();
        }
        self.timeline.push_back(ActionRecord {
            kind,
            container,
            begun: flight.begun_wall,
            took,
            steps,
            failure: outcome.as_ref().err().map(ToString::to_string),
        });
    }

    pub(super) fn note_ends(&self, ended: impl IntoIterator<Item = EndedRun>) {
        for EndedRun { container, exit } in ended {
            tracing::info!(pod = %self.desired.pod.key, %container, code = exit.code, oom = exit.oom, "exited");
        }
    }

    pub(super) fn event(&self, mut event: Event) {
        let at = self.executor.now().wall;
        let pod = self.pod();
        event.init =
            event.container.as_ref().is_some_and(|c| pod.init_containers.iter().any(|i| &i.name == c));
        if event.kind == EventKind::Warning {
            tracing::info!(pod = %pod.key, reason = event.reason, message = event.message, "event");
        }
        let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
        self.reports.event(EventRecord::once(involved, event, at));
    }

    /// Publishes the pod's remembered status, once.
    pub(super) fn publish_remembered(&mut self) {
        if self.last_published.is_none() {
            let report =
                waiting::report(self.pod(), Some(&self.memory), waiting::RUNTIME, self.executor.now());
            self.last_published = Some(Arc::clone(&report.status));
            self.reports.pod(report);
        }
    }

    pub(super) fn publish(&mut self, status: PodStatus, gone: bool) {
        let same = self.last_published.as_deref() == Some(&status) && self.last_gone == gone;
        if same && self.published_observed {
            return;
        }
        let was_ready = self.last_published.as_ref().is_some_and(|s| s.is_ready());
        if was_ready != status.is_ready() {
            tracing::info!(pod = %self.desired.pod.key, ready = status.is_ready(), "readiness");
        }
        let status = Arc::new(status);
        self.last_published = Some(Arc::clone(&status));
        self.last_gone = gone;
        self.published_observed = true;
        self.over.store(matches!(status.phase, Phase::Succeeded | Phase::Failed), Ordering::Relaxed);
        self.reports.pod(PodReport {
            pod: Arc::clone(&self.desired.pod),
            status,
            processes: self.cache.processes.clone(),
            timeline: self.timeline.iter().cloned().collect(),
            decisions: self.records.iter().cloned().collect(),
            observed: true,
            gone,
            as_of: self.executor.now().wall,
        });
    }
}
