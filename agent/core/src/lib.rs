//! Functional core of the node agent: the model of a pod, the decisions over it, and its reported status.
//!
//! Owns the identities ([`ids`]), the one place for paths and names ([`roots`]), the model of a pod
//! ([`model`]), the objects that a pod names ([`mod@refs`], [`value`]), Kubernetes quantities ([`quantity`]), clocks as plain
//! data ([`time`]), statuses and events ([`status`], [`event`]), the admission of pods ([`admit`]), the unsupported parts of a pod
//! ([`unsupported`]), resizes in place ([`resize`]), the kernel's values for requests and limits ([`resources`]),
//! pulls of images and the credentials for them ([`image`]), persistent volumes behind those of pods ([`volume`]), the ranges of the node's ports ([`ports`]), what a process
//! counts about itself ([`metrics`]), sets of objects and their changes ([`shared`]), and the two state machines:
//! [`plan`] for a pod and [`probe`] for one probe. Beside these: printing of errors ([`error`]), elements of certificates
//! ([`der`]), slots that clients share fairly ([`shares`]) and locking of mutexes ([`sync`]).
//!
//! Invariants: the crate does no IO, starts no tasks and reads no clock. Every function gives the same result
//! for the same input, but for the families of [`metrics`], and none panics on any input.
#![forbid(unsafe_code)]

pub mod admit;
pub mod der;
pub mod error;
pub mod event;
pub mod ids;
pub mod image;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod quantity;
pub mod refs;
pub mod resize;
pub mod resources;
pub mod roots;
pub mod shared;
pub mod shares;
pub mod status;
pub mod sync;
pub mod time;
pub mod unsupported;
pub mod value;
pub mod volume;
