//! The pure heart of the node: what a pod is, what should happen to it next, and what is told about it.
//!
//! Owns: the identities ([`ids`]), the one place for paths and names ([`roots`]), the pod as the node sees it
//! ([`model`]), Kubernetes quantities ([`quantity`]), clocks as plain data ([`time`]), what is reported
//! ([`status`], [`event`]), whether a node takes a pod on ([`admit`]) and what of it the node does not give ([`unsupported`]), what requests and limits mean to the kernel ([`resources`]), and the two state machines, [`plan`] for
//! a pod and [`probe`] for one probe; whose the node's ports are ([`ports`]). Beside these: how errors are printed
//! ([`error`]) and mutexes locked ([`sync`]).
//!
//! Invariants: no IO, no tasks, no clock is read here; every function gives the same answer for the same input.
//! Nothing here panics on any input.
#![forbid(unsafe_code)]

pub mod admit;
pub mod error;
pub mod event;
pub mod ids;
pub mod model;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod quantity;
pub mod resources;
pub mod roots;
pub mod status;
pub mod sync;
pub mod time;
pub mod unsupported;
