//! The network of pods: CNI calls for their sandboxes, and the preparation of the host.
//!
//! Owns `<lasting_state>/attachments/<sandbox id>.json` (each sandbox's configuration and result),
//! `<runtime_state>/network/sysctls.json` (the host's sysctls before this node changed them), and
//! one nftables table. No task outlives a call: a plugin is a child process of the call that runs
//! it, and dies with its whole process group when the call ends or is dropped.
//!
//! Invariants:
//! - The attachment file is written before the first plugin runs, with the configuration in use, so
//!   that DEL works even if the agent died, the conflist was changed or removed, or the machine was
//!   booted since.
//! - A plugin gets a clean environment (`CNI_*` and a `PATH` with the system's tools), a deadline
//!   and bounded output. Its answer is parsed as untrusted input.
//! - GC never names an attachment that this process has made or is making: its owner is alive and
//!   will remove it.
//! - A failed preparation of the host (no `nft`, an invalid configuration list) ends nothing that
//!   runs: each ADD retries it and fails with the reason.
//!
//! Failures: ADD undoes its work (DEL along the chain). What could not be undone stays in the
//! attachment file for a later DEL or GC. A torn attachment file is renamed.
//!
//! Attachment files are in the lasting state and not in `/run`, because plugins whose addresses
//! survive a boot (host-local) need their DEL after it.

mod attachments;
mod capabilities;
mod conflist;
mod default_conflist;
mod error;
mod exec;
mod host;
mod kube_proxy;
mod loopback;
#[cfg(test)]
mod mutations;
mod network;
mod result;
mod verbs;

pub use conflist::{Conflist, PluginConfig};
pub use default_conflist::{write_default_conflist, write_default_conflist_with};
pub use error::Error;
pub use kube_proxy::{
    end_kube_proxy_handover, forget_kube_proxy_connections, legacy_kube_proxy_tables,
    remove_kube_proxy_handover, remove_kube_proxy_rules,
};
pub use network::{MasqueradeConfig, Network, NetworkConfig, NetworkStatus, SandboxNetwork, Unserved};
pub use result::{Attachment, PluginFailure};
