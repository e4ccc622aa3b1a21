//! What volumes count, by the kubelet's names.

use berth_core::{
    metrics::{Histogram, ReadFamily},
    model::VolumeSource,
};
use std::time::Duration;

/// Upper bounds of operations in seconds, as the kubelet has them.
const BUCKETS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

static DURATION: Histogram = Histogram::histogram(
    "storage_operation_duration_seconds",
    "Duration of setting up volumes and taking them down, by plugin and result.",
    &["migrated", "operation_name", "status", "volume_plugin"],
    BUCKETS,
);

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 1] {
    [&DURATION]
}

/// The kubelet's name of a volume's plugin.
pub fn plugin_name(source: &VolumeSource) -> &'static str {
    match source {
        VolumeSource::EmptyDir { .. } => "kubernetes.io/empty-dir",
        VolumeSource::HostPath { .. } => "kubernetes.io/host-path",
        VolumeSource::ConfigMap(_) => "kubernetes.io/configmap",
        VolumeSource::Secret(_) => "kubernetes.io/secret",
        VolumeSource::DownwardApi { .. } => "kubernetes.io/downward-api",
        VolumeSource::Projected { .. } => "kubernetes.io/projected",
        VolumeSource::Nfs(_) => "kubernetes.io/nfs",
        VolumeSource::Csi(_) => "kubernetes.io/csi",
        // The plugin is that of the volume bound to the claim.
        VolumeSource::PersistentVolumeClaim { .. } | VolumeSource::Ephemeral => {
            "kubernetes.io/persistent-claim"
        }
        VolumeSource::NotYet { .. } => "N/A",
    }
}

/// Counts the set-up of a volume.
pub(crate) fn count_mount(source: &VolumeSource, took: Duration, failed: bool) {
    let status = if failed { "fail-unknown" } else { "success" };
    DURATION.observe(&["false", "volume_mount", status, plugin_name(source)], took);
}
