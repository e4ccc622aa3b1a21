//! The client of the Kubernetes API server: what the agent needs of a control plane, without the API's
//! types and without the agent's logic.
//!
//! [`identity`] says who the agent is and how it knows the server. [`pool`] has the connections, [`request`] the verbs,
//! [`reflector`] follows sets of objects. Pure modules: [`lines`], [`status`], [`rate_limit`], and the machine of
//! [`reflector`]. Invariants, tasks and failures stand in the README beside this crate.
#![forbid(unsafe_code)]

mod connection;
mod error;
pub mod identity;
pub mod lines;
mod null;
pub mod pool;
pub mod rate_limit;
pub mod reflector;
pub mod request;
pub mod status;

pub use connection::{DIAL, PING, PONG, STREAMS};
pub use error::Error;
