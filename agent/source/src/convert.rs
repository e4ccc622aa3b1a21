//! Kubernetes' API types to the checked model of `berth-core`, with the API server's checks and defaults.
//!
//! Pure, and independent of where an object comes from: neither a file nor the rules of a manifest directory
//! are known here. The metadata must be complete: name, namespace, and for pods and Services a UID.
//! [`crate::manifest`] completes it for objects of files.

mod affinity;
pub(crate) mod check;
mod container;
mod context;
mod dns;
mod endpoint_slice;
mod env;
mod ephemeral;
pub(crate) mod field;
mod keyed_data;
pub(crate) mod metadata;
mod mounts;
mod pod;
mod ports;
mod probe;
mod projected;
mod resources;
mod security;
mod service;
mod storage;
mod volume;

pub(crate) use context::IgnoredValues;
pub(crate) use endpoint_slice::endpoint_slice;
pub(crate) use keyed_data::{config_map, secret};
pub(crate) use pod::{PodSource, pod};
pub(crate) use service::{service, service_key};
pub(crate) use storage::{claim, csi_driver, persistent_volume, storage_class, volume_attachment};
