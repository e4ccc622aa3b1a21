//! The agent's local socket, and the published state behind it.
//!
//! - [`hub`] holds what is known of the pods and what happened to them, and wakes those who watch.
//! - [`backend`] is what the socket needs of the agent beside that: a small trait that the wiring fills.
//! - [`socket`] owns the listening socket and one task per connection.
//! - [`status_files`] keeps the files by which the command line works while the agent is away.
//!
//! Invariants: publishing never waits, neither for a client nor for a disk; a client that does not read holds up its
//! own connection and a queue no longer than the number of pods; no bytes from a client end anything but its own
//! connection.
#![forbid(unsafe_code)]

pub mod backend;
mod connection;
mod error;
pub mod hub;
pub mod socket;
pub mod status_files;

pub use backend::{Backend, ExecSession, Refusal};
pub use error::Error;
pub use hub::{Hub, Subscription};
pub use socket::{Server, bind};
