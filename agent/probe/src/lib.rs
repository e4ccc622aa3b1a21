//! Asks containers whether they are alive: HTTP, TCP, gRPC and exec probes, and the httpGet lifecycle hook.
//!
//! Owns: the wire side of a question ([`Prober`]) and the helper process that runs commands in containers
//! ([`exec_helper`]). When to ask and what answers amount to is `berth_core::probe`'s.
//!
//! Tasks: network probes run in the caller's task and spawn none. One task serves the exec helper's socket; it ends
//! with the last clone of the [`Prober`] or with the helper, and the next exec starts both anew.
//!
//! Invariants: every question has a deadline over all of its steps. Only what the container did is
//! [`ProbeResult::Failure`](berth_core::probe::ProbeResult); what this node could not find out (no descriptors, no
//! ports, the helper died, the agent was held up, the command could not be started) is `Unknown`. Dropping the future
//! of a question ends the connection or the command with all its children.

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
pub use exec::{ExecOutcome, ExecProcess, ExecTarget, Unsupported};
pub use http::HookReply;
pub use prober::{Prober, ProberConfig, TRIES, http_hook};
