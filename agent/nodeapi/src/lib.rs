//! The node's API on :10250, which the API server, kubectl, metrics-server and Prometheus talk to. Paths, methods,
//! texts and codes are the kubelet's (Kubernetes 1.36, `pkg/kubelet/server`).
//!
//! [`server`] owns the sockets: TLS, limits, the end. [`tls`] has certificates, `auth` says who asks and whether it is
//! allowed, `logs` and `node_logs` serve output and files, [`health`] the checks, [`metrics`] counts requests. Pure
//! modules: [`path`] decodes a request's path, [`routes`] is the table of paths, `head` refuses a request with two
//! readings, [`attributes()`] says what a request asks to do. [`NodeBackend`], [`Statistics`] and [`Reviewer`] are what
//! the server needs of the rest of the agent; the wiring implements them. `streams` serves exec, attach, run and
//! port-forward.
#![forbid(unsafe_code)]

mod attributes;
mod auth;
mod backend;
mod error;
mod head;
pub mod health;
mod logs;
pub mod metrics;
mod node_logs;
pub mod path;
mod peer;
pub mod proxy;
mod query;
mod response;
mod reviewer;
pub mod routes;
mod serve;
pub mod server;
mod streams;
#[cfg(test)]
mod testing;
pub mod tls;

pub use attributes::{Attributes, attributes};
pub use auth::{Authenticator, Authorizer};
pub use backend::{
    Boxed, LogReader, LogRecord, LogRun, LogStart, NodeBackend, PodState, Statistics, Unavailable,
};
pub use error::Error;
pub use response::{Cut, ResponseBody};
pub use reviewer::{AccessReview, Caller, ReviewError, Reviewer};
pub use serve::Routes;
pub use server::{Connection, Limits, NodeApi, listen};
pub use streams::{
    Process, ProcessControl, RunningContainer, StreamBackend, StreamRefusal, Streams, TerminalSize,
    WantedStreams,
};
