//! The executor of a real node: carries out the actions of pods through containerd, logd, the CNI, volumes,
//! cgroups and probes.
//!
//! [`NodeExecutor`] implements the trait [`berth_pods::Executor`] and joins the adapters, which do not know
//! each other. [`pump`] keeps the executor connected to containerd and passes containerd's events to the
//! manager of pods.

mod claims;
mod cleanup;
mod collection;
mod command;
mod credential_plugins;
mod events;
mod foreground;
mod hooks;
mod image_users;
pub mod metrics;
mod node_executor;
mod observe;
mod pod_locks;
mod probe;
mod pull_credentials;
mod pull_records;
mod pulls;
mod resize;
mod sandbox;
mod service_lister;
mod slots;
mod start;
mod stop;
mod stop_signal;
mod stopwatch;
#[cfg(test)]
mod testing;

pub use collection::CollectableImage;
pub use credential_plugins::{Asked, CredentialPlugins, ServiceAccount, ServiceAccounts};
pub use events::pump;
pub use node_executor::{NodeConfig, NodeExecutor, recursive_read_only};
pub use pulls::{PullByHand, PullState, PulledImage};
pub use service_lister::ServiceLister;
