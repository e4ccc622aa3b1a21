//! Probes of containers: HTTP, TCP, gRPC and exec probes, and the httpGet lifecycle hook.
//!
//! Owns the sending of a probe ([`Prober`]) and the helper process that runs commands in containers
//! ([`exec_helper`]). Scheduling of probes and evaluation of results are in `berth_core::probe`.
//!
//! Tasks: network probes run in the caller's task. One task serves the exec helper's socket. It
//! ends with the last clone of the [`Prober`] or with the helper, and the next exec starts both
//! again.
//!
//! Invariants: every probe has one deadline over all its steps. Only behaviour of the container is
//! [`ProbeResult::Failure`](berth_core::probe::ProbeResult). `Unknown` is everything that this node
//! could not find out: no descriptors, no ports, a dead helper, a delayed agent, a command that
//! could not be started. Dropping the future of a probe ends the connection or the command with all
//! its children.

pub mod action;
mod error;
pub mod exec;
pub mod exec_helper;
mod grpc;
mod http;
mod net;
mod prober;
mod tls;

pub use action::{Endpoint, Host, HttpAction, ResolvedAction, resolve, resolve_http};
pub use error::Error;
pub use exec::{
    ExecOutcome, ExecProcess, ExecTarget, Session, SessionError, Stdio, Unsupported, process_of_spec,
};
pub use http::HookReply;
pub use prober::{Prober, ProberConfig, TRIES, http_hook};
