//! What workers count, by the kubelet's names.

use berth_core::{
    ids::ContainerName,
    metrics::{Counter, DEFAULT_BUCKETS, Histogram, ReadFamily},
    model::{Container, Pod, ProbeKind},
    plan::{Action, Failure},
    probe::ProbeResult,
};
use std::{collections::BTreeSet, time::Duration};

/// Upper bounds of start times in seconds, as the kubelet has them.
const START_BUCKETS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

pub(crate) static WORKER_DURATION: Histogram = Histogram::histogram(
    "kubelet_pod_worker_duration_seconds",
    "Duration of one decision of a pod's worker, by what the pod does.",
    &["operation_type"],
    DEFAULT_BUCKETS,
);
pub(crate) static WORKER_START: Histogram = Histogram::histogram(
    "kubelet_pod_worker_start_duration_seconds",
    "Time from a pod's worker to its first decision.",
    &[],
    DEFAULT_BUCKETS,
);
pub(crate) static POD_START: Histogram = Histogram::histogram(
    "kubelet_pod_start_duration_seconds",
    "Time from a pod's worker to the pod's first running containers.",
    &[],
    START_BUCKETS,
);
pub(crate) static POD_START_SLI: Histogram = Histogram::histogram(
    "kubelet_pod_start_sli_duration_seconds",
    "Time from a pod's creation to its running containers; no image is pulled meanwhile.",
    &[],
    START_BUCKETS,
);
pub(crate) static STARTED_PODS: Counter =
    Counter::counter("kubelet_started_pods_total", "Sandboxes that were made.", &[]);
pub(crate) static STARTED_PODS_ERRORS: Counter =
    Counter::counter("kubelet_started_pods_errors_total", "Sandboxes that could not be made.", &[]);
pub(crate) static STARTED_CONTAINERS: Counter = Counter::counter(
    "kubelet_started_containers_total",
    "Containers that were started.",
    &["container_type"],
);
pub(crate) static STARTED_CONTAINERS_ERRORS: Counter = Counter::counter(
    "kubelet_started_containers_errors_total",
    "Containers that could not be started.",
    &["container_type", "code"],
);
static PROBES: Counter = Counter::counter(
    "prober_probe_total",
    "Results of probes.",
    &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
);
static PROBE_DURATION: Histogram = Histogram::histogram(
    "prober_probe_duration_seconds",
    "Duration of probes that did not fail.",
    &["probe_type", "container", "pod", "namespace"],
    DEFAULT_BUCKETS,
);

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 8] {
    [
        &WORKER_DURATION,
        &WORKER_START,
        &POD_START,
        &POD_START_SLI,
        &STARTED_PODS,
        &STARTED_PODS_ERRORS,
        &STARTED_CONTAINERS,
        &STARTED_CONTAINERS_ERRORS,
    ]
}

/// The families of `/metrics/probes`.
pub fn probe_families() -> [&'static dyn ReadFamily; 2] {
    [&PROBE_DURATION, &PROBES]
}

/// Whether a worker has counted the start of its pod.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartOf {
    /// No decision was made yet.
    #[default]
    Unknown,
    /// The pod has not run yet.
    Awaited,
    /// Counted, or the start was an earlier agent's.
    Counted,
}

/// What a worker counts once.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// The first decision.
    pub(crate) decided: bool,
    /// The pod's start.
    pub(crate) start: StartOf,
}

/// Counts the end of an action.
pub(crate) fn count_action(pod: &Pod, action: &Action, outcome: &Result<(), Failure>) {
    match (action, outcome) {
        (Action::MakeSandbox(_), Ok(())) => STARTED_PODS.inc(&[]),
        (Action::MakeSandbox(_), Err(_)) => STARTED_PODS_ERRORS.inc(&[]),
        (Action::Start { container, .. }, Ok(())) => {
            STARTED_CONTAINERS.inc(&[container_type(pod, container)])
        }
        (Action::Start { container, .. }, Err(failure)) => {
            STARTED_CONTAINERS_ERRORS.inc(&[container_type(pod, container), &failure.reason]);
        }
        _ => {}
    }
}

/// The kubelet's `container_type` of a container.
pub(crate) fn container_type(pod: &Pod, name: &ContainerName) -> &'static str {
    let of = |list: &[Container]| list.iter().any(|c| &c.name == name);
    match (of(&pod.init_containers), of(&pod.ephemeral_containers)) {
        (true, _) => "init_container",
        (false, true) => "ephemeral_container",
        (false, false) => "container",
    }
}

fn probe_type(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
        ProbeKind::Startup => "Startup",
    }
}

/// Counts a probe's result. The kubelet has no duration of a probe that failed.
pub(crate) fn count_probe(
    pod: &Pod,
    container: &ContainerName,
    kind: ProbeKind,
    result: &ProbeResult,
    took: Duration,
) {
    let (kind, container) = (probe_type(kind), container.as_str());
    let (name, namespace) = (pod.key.name.as_str(), pod.key.namespace.as_str());
    let word = match result {
        ProbeResult::Success | ProbeResult::Warning(_) => "successful",
        ProbeResult::Failure(_) => "failed",
        ProbeResult::Unknown(_) => "unknown",
    };
    PROBES.inc(&[kind, word, container, name, namespace, pod.uid.as_str()]);
    if word != "failed" {
        PROBE_DURATION.observe(&[kind, container, name, namespace], took);
    }
}

/// The series of a pod's probes. They end with the value, which lives as long as the pod's worker.
#[derive(Debug, Default)]
pub(crate) struct ProbeSeries {
    /// Container, pod, namespace and UID.
    probed: BTreeSet<[String; 4]>,
}

impl ProbeSeries {
    /// Notes that a container is probed.
    pub(crate) fn note(&mut self, pod: &Pod, container: &ContainerName) {
        let (name, namespace) = (pod.key.name.to_string(), pod.key.namespace.to_string());
        self.probed.insert([container.to_string(), name, namespace, pod.uid.to_string()]);
    }
}

impl Drop for ProbeSeries {
    fn drop(&mut self) {
        for [container, pod, namespace, uid] in &self.probed {
            for kind in ["Liveness", "Readiness", "Startup"] {
                for result in ["successful", "failed", "unknown"] {
                    PROBES.remove(&[kind, result, container, pod, namespace, uid]);
                }
                PROBE_DURATION.remove(&[kind, container, pod, namespace]);
            }
        }
    }
}
