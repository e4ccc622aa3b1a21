//! The node as a worker of a control plane: desired state from the API server, and what the node reports to
//! it.
//!
//! [`ClusterSource`] follows the objects that the node runs and serves. [`ApiPods`] has the API server's
//! newest version of each pod of this node. The source fills it from its watch, the publisher reads it and
//! adds the answers of its own requests. [`Tokens`] has the tokens of service accounts. [`certificates`]
//! keeps the node's own certificates valid. [`publish`] reports to the API server.
#![forbid(unsafe_code)]

mod api_pods;
pub mod certificates;
mod claim_sizes;
mod image_accounts;
mod inputs;
mod object;
pub mod publish;
mod refs;
mod rights;
mod source;
mod task;
mod tokens;
mod wait;

pub use api_pods::ApiPods;
pub use claim_sizes::ClaimSizes;
pub use image_accounts::ImageAccounts;
pub use rights::foreign_certificate;
pub use source::{ClusterSource, SourceHealth};
pub use task::Task;
pub use tokens::{TokenValues, Tokens};
