//! What the agent and its command line say to each other on the agent's local socket, and what the agent leaves in
//! files for the time when it is not there.
//!
//! - [`frame`] is the codec: a length (u32, little endian), then JSON.
//! - [`message`] is what is said: a greeting, then one request at a time and its answers.
//! - [`view`] is what is shown: pods, the node, images.
//! - [`files`] is the same on disk (on a tmpfs): one file a pod and one for the node, replaced at every change.
//! - [`services`] names what the kernel's Service tables hold.
//! - [`client`] is the asking side.
//!
//! Invariants: neither side fails over a field, a request or an answer that it does not know; both accept the protocol
//! before their own; no message of the other side, whatever it holds, makes this crate panic or keep more than a
//! frame's limit in memory.
#![forbid(unsafe_code)]

pub mod client;
mod error;
pub mod files;
pub mod frame;
pub mod message;
pub mod services;
pub mod view;

pub use error::Error;
