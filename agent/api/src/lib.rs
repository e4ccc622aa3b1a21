//! The protocols of the local sockets of agent and helpers, and the files by which commands work
//! while no agent runs.
//!
//! - [`frame`] is the codec of all protocols: a length (u32, little endian), then JSON.
//! - [`message`] has the messages of the agent's socket: a greeting, then one request at a time and
//!   its replies. [`client`] is its client.
//! - [`logd`], [`dns`] and [`exec`] have the messages of the helpers `berth logd`, `berth dns` and
//!   `berth probe-exec`.
//! - [`view`] has the published state of pods, the node and images.
//! - [`files`] has the status files, the same state on a tmpfs: one file a pod and one for the
//!   node.
//! - [`services`] has the file with the names of the Service ports in the kernel's tables.
//!
//! Invariants: unknown fields, requests and replies are no errors; each side accepts the protocol
//! version before its own; no message makes this crate panic or keep more than a frame's limit in
//! memory.
#![forbid(unsafe_code)]

pub mod client;
pub mod dns;
mod error;
pub mod exec;
pub mod files;
pub mod frame;
pub mod logd;
pub mod message;
pub mod services;
pub mod view;

pub use error::Error;
