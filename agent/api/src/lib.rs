//! The protocol of the agent's local socket, and the files by which commands work while no agent
//! runs.
//!
//! - [`frame`] is the codec: a length (u32, little endian), then JSON.
//! - [`message`] has the messages: a greeting, then one request at a time and its replies.
//! - [`view`] has the published state of pods, the node and images.
//! - [`files`] has the status files, the same state on a tmpfs: one file a pod and one for the
//!   node.
//! - [`services`] has the file with the names of the Service ports in the kernel's tables.
//! - [`client`] is the client's side.
//!
//! Invariants: unknown fields, requests and replies are no errors; each side accepts the protocol
//! version before its own; no message makes this crate panic or keep more than a frame's limit in
//! memory.
#![forbid(unsafe_code)]

pub mod client;
mod error;
pub mod files;
pub mod frame;
pub mod message;
pub mod services;
pub mod view;

pub use error::Error;
