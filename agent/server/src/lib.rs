//! The servers of the agent. Today there is one, the local socket, in [`local`].
//!
//! [`Backend`] is what the servers need of the rest of the agent: a small trait that the wiring
//! implements.
//!
//! Invariants: publishing never waits for a client or a disk; a client that does not read delays
//! its own connection only, and its queue holds at most one entry a pod; malformed bytes end no
//! other connection than their own.
#![forbid(unsafe_code)]

mod backend;
mod error;
pub mod local;

pub use backend::{ApiError, Backend, ExecSession, PullSession};
pub use error::Error;
pub use local::{
    socket::{Server, bind},
    status_files,
    watch_cache::{Interest, Published, Subscription, WatchCache},
};
