//! `berth dns`: cluster DNS, answered on the node itself.
//!
//! The agent builds the zone from Services, EndpointSlices and pods ([`build`]) and publishes it as
//! one file ([`Publisher`]). The helper answers from the last zone that it could read ([`server`])
//! and forwards all other names to the node's upstreams, also while no agent runs. The agent keeps
//! the helper running ([`Client`] is its [`berth_helper::Helper`]).
//!
//! Pure modules: [`build`], [`index`], [`question`], [`resolve`], [`resolv`], [`cache`]. Modules
//! with effects: [`address`], [`publish`], [`forward`], [`server`].
//!
//! Unknown is not "does not exist": without a zone, names of the cluster are answered by SERVFAIL.
#![forbid(unsafe_code)]

pub mod address;
pub mod build;
pub mod cache;
pub mod client;
mod error;
pub mod forward;
pub mod index;
pub mod publish;
pub mod question;
pub mod resolv;
pub mod resolve;
pub mod server;
pub mod zone;

pub use berth_api::dns::{Counts, Status};
pub use build::build;
pub use client::Client;
pub use error::Error;
pub use publish::Publisher;
pub use zone::{PodAddress, PodNames, Zone};
