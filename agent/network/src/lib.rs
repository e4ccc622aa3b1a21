//! The network of pods: CNI calls for their sandboxes, and what the host needs for them.
//!
//! Owns `<lasting_state>/attachments/<sandbox id>.json` (what each sandbox was attached with, and the result),
//! `<runtime_state>/network/sysctls.json` (what this node changed of the host's sysctls), and one nftables table. No
//! task outlives a call: a plugin is a child process of the call that runs it and dies, with its whole process group,
//! when the call ends or is dropped.
//!
//! Invariants:
//! - The attachment's file is written before the first plugin runs, with the configuration that is used, so that DEL
//!   can be made whatever happened since: the agent died, the conflist was changed or removed, the machine was booted.
//! - A plugin gets a clean environment (`CNI_*` and a `PATH` with the system's tools), a deadline and bounded output; its
//!   answer is parsed as a stranger's.
//! - GC never names an attachment that this process has made or is making: its owner is alive and will take it away.
//! - The host's network that cannot be prepared (no `nft`, a broken configuration list) ends nothing that runs: an ADD
//!   tries again and fails with the reason.
//!
//! On failure: ADD takes back what it made (DEL along the chain); what could not be taken back stays in the file for a
//! later DEL or GC. A torn attachment file is set aside.
//!
//! Attachment files lie in the lasting state, not in `/run`: plugins whose addresses outlive a boot (host-local) need
//! their DEL after it.

mod attachments;
mod capabilities;
mod conflist;
mod default_conflist;
mod error;
mod exec;
mod host;
mod loopback;
#[cfg(test)]
mod mutations;
mod network;
mod result;
mod verbs;

pub use conflist::{Conflist, PluginConfig};
pub use default_conflist::{write_default_conflist, write_default_conflist_with};
pub use error::Error;
pub use network::{MasqueradeConfig, Network, NetworkConfig, NetworkStatus, SandboxNetwork, Unserved};
pub use result::{Attachment, PluginFailure};
