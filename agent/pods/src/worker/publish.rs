//! Status publishing: a worker's status, events and last actions go to the status manager when they change.

use super::{RunningAction, Worker};
use crate::{
    executor::Executor,
    metrics,
    pod_cache::EndedRun,
    report::{ActionRecord, PodReport, Reports},
    waiting::{self, WaitReason},
};
use berth_core::{
    event::{Event, EventKind, EventRecord, Involved},
    model::Container,
    plan::Failure,
    status::{ContainerState, Phase, PodStatus},
    time::Now,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How many ended actions a worker keeps for its reports.
const RECORDS: usize = 32;

impl<H: Executor, R: Reports> Worker<H, R> {
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

    /// Counts a decision, and once the pod's start.
    pub(super) fn count_decision(&mut self, status: &PodStatus, now: Now, begun: Instant) {
        let first = !std::mem::replace(&mut self.counted.decided, true);
        let operation = match (status.terminating, first) {
            (true, _) => "terminating",
            (false, true) => "create",
            (false, false) => "sync",
        };
        metrics::WORKER_DURATION.observe(&[operation], begun.elapsed());
        if first {
            metrics::WORKER_START.observe(&[], begun.saturating_duration_since(self.begun));
        }
        if self.counted.start == metrics::StartOf::Unknown {
            // A pod that an earlier agent started has no start here.
            let had_a_run = self.memory.containers.values().any(|c| c.run.is_some());
            self.counted.start =
                if had_a_run { metrics::StartOf::Counted } else { metrics::StartOf::Awaited };
        }
        let runs = status.phase == Phase::Running
            && status.containers.iter().all(|c| matches!(c.state, ContainerState::Running { .. }));
        if self.counted.start == metrics::StartOf::Awaited && runs {
            self.counted.start = metrics::StartOf::Counted;
            metrics::POD_START.observe(&[], self.begun.elapsed());
            let since = u64::try_from(now.wall.0.saturating_sub(self.pod().created.0)).unwrap_or(0);
            metrics::POD_START_SLI.observe(&[], Duration::from_nanos(since));
        }
    }

    pub(super) fn note_ends(&self, ended: impl IntoIterator<Item = EndedRun>) {
        for EndedRun { container, exit } in ended {
            tracing::info!(pod = %self.desired.pod.key, %container, code = exit.code, oom = exit.oom, "exited");
        }
    }

    pub(super) fn event(&self, mut event: Event) {
        let at = self.executor.now().wall;
        let pod = self.pod();
        let of =
            |list: &[Container]| event.container.as_ref().is_some_and(|c| list.iter().any(|i| &i.name == c));
        (event.init, event.ephemeral) = (of(&pod.init_containers), of(&pod.ephemeral_containers));
        if event.kind == EventKind::Warning {
            tracing::info!(pod = %pod.key, reason = event.reason, message = event.message, "event");
        }
        let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
        self.reports.event(EventRecord::once(involved, event, at));
    }

    /// Publishes the pod's remembered status, once.
    pub(super) fn publish_remembered(&mut self) {
        if self.published.borrow().is_none() {
            let report =
                waiting::report(self.pod(), Some(&self.memory), WaitReason::Runtime, self.executor.now());
            self.published.send_replace(Some(Arc::clone(&report.status)));
            self.reports.pod(report);
        }
    }

    pub(super) fn publish(&mut self, status: PodStatus, gone: bool, reclaimed: bool) {
        let last = self.published.borrow().clone();
        let same = last.as_deref() == Some(&status) && self.last_ends == (gone, reclaimed);
        if same && self.published_observed {
            return;
        }
        let ended = |s: &PodStatus| matches!(s.phase, Phase::Succeeded | Phase::Failed);
        let frees = ended(&status) && !last.as_deref().is_some_and(ended);
        let was_ready = last.is_some_and(|s| s.is_ready());
        if was_ready != status.is_ready() {
            tracing::info!(pod = %self.desired.pod.key, ready = status.is_ready(), "readiness");
        }
        let status = Arc::new(status);
        self.published.send_replace(Some(Arc::clone(&status)));
        self.last_ends = (gone, reclaimed);
        if frees {
            self.freed.notify_one();
        }
        self.published_observed = true;
        self.reports.pod(PodReport {
            pod: Arc::clone(&self.desired.pod),
            status,
            processes: self.cache.processes.clone(),
            timeline: self.timeline.iter().cloned().collect(),
            observed: true,
            gone,
            reclaimed,
            as_of: self.executor.now().wall,
        });
    }
}
