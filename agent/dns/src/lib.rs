//! `berth dns`: the cluster's names, answered on the node itself.
//!
//! The agent builds the zone from Services, slices and pods ([`build`]) and publishes it as one file ([`Publisher`]); the
//! helper answers from the last one it could read ([`server`]) and asks the node's own upstreams for all other names,
//! also while there is no agent. The agent keeps the helper running ([`client::supervise`]).
//!
//! Pure: [`build`], [`index`], [`question`], [`resolve`], [`resolv`], [`cache`]. What is done to the machine:
//! [`address`], [`publish`], [`forward`], [`server`].
//!
//! Not known is not "does not exist": without a zone, names of the cluster are answered by SERVFAIL.
#![forbid(unsafe_code)]

pub mod address;
pub mod build;
pub mod cache;
pub mod client;
mod error;
pub mod forward;
pub mod index;
mod proto;
pub mod publish;
pub mod question;
pub mod resolv;
pub mod resolve;
pub mod server;
pub mod zone;

pub use build::build;
pub use client::Client;
pub use error::Error;
pub use proto::{Counts, Status};
pub use publish::Publisher;
pub use zone::{PodAddress, PodNames, Zone};
