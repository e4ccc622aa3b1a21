//! What the cgroup tree counts, by the kubelet's names.

use berth_core::metrics::{DEFAULT_BUCKETS, Histogram, ReadFamily};
use std::time::Instant;

static DURATION: Histogram = Histogram::histogram(
    "kubelet_cgroup_manager_duration_seconds",
    "Duration of operations on cgroups of pods.",
    &["operation_type"],
    DEFAULT_BUCKETS,
);

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 1] {
    [&DURATION]
}

/// Runs an operation and counts its duration.
pub(crate) fn timed<T>(operation: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    DURATION.observe(&[operation], begun.elapsed());
    done
}
