//! Errors of this crate.

use crate::result::PluginFailure;
use std::{io, path::PathBuf, time::Duration};

/// A failed operation on the pod network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory contains no configuration.
    #[error("cannot find a network configuration (*.conflist, *.conf, *.json) in {}", dir.display())]
    NoConflist {
        /// The configuration directory.
        dir: PathBuf,
    },
    /// A configuration file is not JSON.
    #[error("cannot parse network configuration {}", path.display())]
    ConflistSyntax {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a configuration file is missing or invalid.
    #[error("cannot use network configuration {}: {field} {reason}", path.display())]
    ConflistField {
        /// The file.
        path: PathBuf,
        /// The field, with its path.
        field: String,
        /// Reason of the failure.
        reason: String,
    },
    /// Reading, writing, renaming or removing a file or directory.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Listing or removing the rules of a kube-proxy.
    #[error("cannot remove the rules that kube-proxy has left in nf_tables")]
    KubeProxyRules {
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Replacing a state file.
    #[error("cannot write the state of the pod network")]
    State {
        /// Cause, with the file.
        #[source]
        source: berth_sys::Error,
    },
    /// An annotation of the pod is not a rate that an interface can be limited to.
    #[error(
        "cannot limit the pod's bandwidth: annotation {annotation} is {value:?}, and must be a quantity of bits a second \
         from 1k to 1P"
    )]
    Bandwidth {
        /// The annotation.
        annotation: &'static str,
        /// Its value, truncated.
        value: String,
    },
    /// The sandbox id cannot be a file name.
    #[error(
        "cannot use sandbox id {0:?}: it must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    SandboxId(String),
    /// The plugin's binary does not exist.
    #[error("cannot find network plugin {plugin} in {}", dir.display())]
    NoPlugin {
        /// The plugin's `type`.
        plugin: String,
        /// The plugin directory.
        dir: PathBuf,
    },
    /// Starting a plugin, or talking to it.
    #[error("cannot run network plugin {plugin} {verb}")]
    Run {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A plugin did not end within its deadline and was killed.
    #[error("network plugin {plugin} {verb} did not end within {timeout:?}")]
    Timeout {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// A plugin wrote more output than is accepted.
    #[error("network plugin {plugin} {verb} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// A plugin reported failure.
    #[error("network plugin {plugin} {verb}")]
    Plugin {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// The reported error.
        #[source]
        source: PluginFailure,
    },
    /// A plugin's result is not JSON.
    #[error("cannot parse the result of network plugin {plugin}")]
    ResultSyntax {
        /// The plugin's `type`.
        plugin: String,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a plugin's result is missing or invalid.
    #[error("cannot use the result of network plugin {plugin}: {field} {reason}")]
    ResultField {
        /// The plugin's `type`.
        plugin: String,
        /// The field, with its path.
        field: String,
        /// Reason of the failure.
        reason: String,
    },
    /// The plugins succeeded but assigned no address to the sandbox.
    #[error("cannot attach sandbox {sandbox}: network {network} gave it no address")]
    NoAddress {
        /// The network.
        network: String,
        /// The sandbox.
        sandbox: String,
    },
    /// CHECK of a sandbox that is not attached.
    #[error("cannot check sandbox {0}: it is not attached to a network")]
    NotAttached(String),
    /// Setting up the loopback device of a sandbox.
    #[error("cannot set up lo in network namespace {}", netns.display())]
    Loopback {
        /// The network namespace.
        netns: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Running `nft`.
    #[error("cannot run nft, which masquerades pod egress; it is in package nftables")]
    Nft(#[source] io::Error),
    /// `nft` rejected the rules or took too long.
    #[error("cannot apply the rules of nft table {table}: {reason}")]
    NftRules {
        /// The table.
        table: String,
        /// Its message.
        reason: String,
    },
    /// GC failed in part; everything else was collected.
    #[error("cannot remove {failed} of the unused network attachments")]
    Collect {
        /// Number of failed steps.
        failed: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
    /// A blocking task panicked.
    #[error("cannot read or write {0}: the thread panicked")]
    Panicked(&'static str),
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { operation, path, source }
    }

    /// Whether the plugin does not know this CNI command.
    pub(crate) fn is_unknown_verb(&self) -> bool {
        // 1: incompatible version, 4: invalid environment variables (an unknown CNI_COMMAND).
        matches!(self, Error::Plugin { source, .. } if matches!(source.code, Some(1 | 4)))
    }
}
