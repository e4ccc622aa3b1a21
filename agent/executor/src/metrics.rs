//! What the executor counts, by the kubelet's names: operations of the runtime and observations of pods.
//!
//! The kubelet counts calls of the CRI. The agent has none; an action counts as the call that has its effect.

use berth_core::{
    metrics::{Counter, DEFAULT_BUCKETS, Histogram, ReadFamily},
    plan::Action,
    sync::lock,
};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Upper bounds of the durations of operations in seconds: 0.005 times powers of 2.5, as the kubelet has them.
const OPERATION_BUCKETS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];

static OPERATIONS: Counter =
    Counter::counter("kubelet_runtime_operations_total", "Operations of the runtime.", &["operation_type"]);
static ERRORS: Counter = Counter::counter(
    "kubelet_runtime_operations_errors_total",
    "Operations of the runtime that failed.",
    &["operation_type"],
);
static DURATION: Histogram = Histogram::histogram(
    "kubelet_runtime_operations_duration_seconds",
    "Duration of operations of the runtime.",
    &["operation_type"],
    OPERATION_BUCKETS,
);
static SANDBOX_DURATION: Histogram = Histogram::histogram(
    "kubelet_run_podsandbox_duration_seconds",
    "Duration of making a sandbox.",
    &["runtime_handler"],
    DEFAULT_BUCKETS,
);
static RELIST_DURATION: Histogram = Histogram::histogram(
    "kubelet_pleg_relist_duration_seconds",
    "Duration of an observation of one pod or of all.",
    &[],
    DEFAULT_BUCKETS,
);
static RELIST_INTERVAL: Histogram = Histogram::histogram(
    "kubelet_pleg_relist_interval_seconds",
    "Time between two observations. Pods are observed when something happened, not at intervals.",
    &[],
    DEFAULT_BUCKETS,
);
static COLLECTED_IMAGES: Counter = Counter::counter(
    "kubelet_image_garbage_collected_total",
    "Images that image collection removed, by reason: space or age.",
    &["reason"],
);

static PLUGIN_ERRORS: Counter = Counter::counter(
    "kubelet_credential_provider_plugin_errors_total",
    "Calls of credential provider plugins that failed, by plugin.",
    &["plugin_name"],
);
static PLUGIN_DURATION: Histogram = Histogram::histogram(
    "kubelet_credential_provider_plugin_duration",
    "How long calls of credential provider plugins took, in seconds, by plugin.",
    &["plugin_name"],
    DEFAULT_BUCKETS,
);

/// When the last observation began.
static LAST_RELIST: Mutex<Option<Instant>> = Mutex::new(None);

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 9] {
    [
        &OPERATIONS,
        &ERRORS,
        &DURATION,
        &SANDBOX_DURATION,
        &RELIST_DURATION,
        &RELIST_INTERVAL,
        &COLLECTED_IMAGES,
        &PLUGIN_ERRORS,
        &PLUGIN_DURATION,
    ]
}

/// Counts a call of a credential provider plugin.
pub(crate) fn count_plugin_call(plugin: &str, took: Duration, failed: bool) {
    PLUGIN_DURATION.observe(&[plugin], took);
    if failed {
        PLUGIN_ERRORS.inc(&[plugin]);
    }
}

/// Counts an image that image collection removed.
pub fn count_collected_image(too_old: bool) {
    COLLECTED_IMAGES.inc(&[if too_old { "age" } else { "space" }]);
}

/// The kubelet's name of an action; `None` for an action that is no operation of the runtime.
pub(crate) fn operation(action: &Action) -> Option<&'static str> {
    Some(match action {
        Action::MakeSandbox(_) => "run_podsandbox",
        Action::EnsureImage(_) => "image_status",
        Action::Start { .. } => "start_container",
        Action::Signal { .. } | Action::Kill { .. } => "stop_container",
        Action::Remove { .. } => "remove_container",
        Action::TeardownSandbox(_) => "stop_podsandbox",
        Action::ResizePod(_) => "update_container",
        Action::RemovePod => "remove_podsandbox",
        _ => return None,
    })
}

/// Counts an operation.
pub(crate) fn count(operation: &str, took: Duration, failed: bool) {
    OPERATIONS.inc(&[operation]);
    DURATION.observe(&[operation], took);
    if failed {
        ERRORS.inc(&[operation]);
    } else if operation == "run_podsandbox" {
        SANDBOX_DURATION.observe(&[""], took);
    }
}

/// Counts an observation that began at `begun` and has just ended.
pub(crate) fn count_relist(begun: Instant, failed: bool) {
    let took = begun.elapsed();
    count("list_containers", took, failed);
    RELIST_DURATION.observe(&[], took);
    if let Some(last) = lock(&LAST_RELIST).replace(begun) {
        RELIST_INTERVAL.observe(&[], begun.saturating_duration_since(last));
    }
}
