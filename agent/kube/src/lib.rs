//! Client of the Kubernetes API server: the agent's access to a control plane, without the API's types and
//! without the agent's logic.
//!
//! [`identity`] loads the agent's identity and the trust in the server, [`certs`] makes requests for
//! certificates and keeps their files. [`pool`] owns the connections, [`request`] has the verbs,
//! [`reflector`] follows sets of objects. Pure modules: [`lines`], [`status`], [`rate_limit`], and the state
//! machines of [`reflector`] and of [`certs::Rotation`]. Invariants, tasks and failures are in the README of
//! this crate.
#![forbid(unsafe_code)]

pub mod certs;
mod connection;
mod error;
pub mod identity;
pub mod lines;
pub mod metrics;
mod null;
pub mod pool;
pub mod rate_limit;
pub mod reflector;
pub mod request;
pub mod status;

pub use connection::{DIAL, PING, PONG, STREAMS};
pub use error::Error;
