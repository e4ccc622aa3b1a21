//! Desired state in, status and events out. Kubernetes' API types stop in this crate: what leaves it is the checked
//! model of `berth-core`, and the raw object as JSON for those who show it.
//!
//! - [`manifest`] is pure: bytes of a file become a checked model, or an error that names file, document, field and
//!   reason.
//! - [`directory`] is the shell around it: a directory is watched, and a [`Snapshot`] is published for every change.
//! - [`cluster`] is pure: JSON of the API server becomes the model.
//! - [`merge`] holds the node's sources and merges their snapshots into one desired state.
//! - [`controllers`] plays the controllers of a control plane where there is none: ClusterIPs and EndpointSlices.
//! - [`status`] turns what is reported about a pod back into Kubernetes' JSON, and [`event`] its events.
//! - [`node`] and [`lease`] make the objects by which the node itself is known to the API.
//! - [`patch`] makes the patch that brings an object's status in the API to that of the node.
//!
//! Invariants: an unreadable file or a missing directory is never taken for a deletion; nothing here panics on any
//! input; an object that did not change keeps its [`std::sync::Arc`], so that consumers see change by pointer; a change
//! costs what it changes, not what is there.
#![forbid(unsafe_code)]

pub mod claim_size;
pub mod cluster;
pub mod controllers;
mod convert;
pub mod csi_node;
pub mod directory;
mod error;
pub mod event;
pub mod lease;
pub mod manifest;
pub mod merge;
pub mod node;
pub mod patch;
pub mod provisioned;
mod raw;
mod snapshot;
mod state_file;
pub mod status;

pub use controllers::cluster_ips::ServiceRanges;
pub use error::{Error, ManifestError};
pub use merge::{Source, SourceKind, SourceState, Sources};
pub use raw::RawPod;
pub use snapshot::{DesiredPod, DesiredService, Snapshot, UnallocatedService};
