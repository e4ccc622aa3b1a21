//! Errors of this crate.

use crate::result::PluginFailure;
use std::{io, path::PathBuf, time::Duration};

/// A failed operation on the pod network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory contains no configuration.
    #[error("no network configuration (*.conflist, *.conf, *.json) in {}", dir.display())]
    NoConflist {
        /// The configuration directory.
        dir: PathBuf,
    },
    /// A configuration file is not JSON.
    #[error("parse network configuration {}", path.display())]
    ConflistSyntax {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a configuration file is missing or invalid.
    #[error("network configuration {}: {field} {reason}", path.display())]
    ConflistField {
        /// The file.
        path: PathBuf,
        /// The field, with its path.
        field: String,
        /// Reason.
        reason: String,
    },
    /// Reading, writing, renaming or removing a file or directory.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Replacing a state file.
    #[error("cannot keep the network's state")]
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
        "sandbox id {0:?} must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    SandboxId(String),
    /// The plugin's binary does not exist.
    #[error("network plugin {plugin} is not in {}", dir.display())]
    NoPlugin {
        /// The plugin's `type`.
        plugin: String,
        /// The plugin directory.
        dir: PathBuf,
    },
    /// Starting a plugin, or talking to it.
    #[error("run network plugin {plugin} {verb}")]
    Run {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// Cause.
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
    #[error("parse the result of network plugin {plugin}")]
    ResultSyntax {
        /// The plugin's `type`.
        plugin: String,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a plugin's result is missing or invalid.
    #[error("result of network plugin {plugin}: {field} {reason}")]
    ResultField {
        /// The plugin's `type`.
        plugin: String,
        /// The field, with its path.
        field: String,
        /// Reason.
        reason: String,
    },
    /// The plugins succeeded but assigned no address to the sandbox.
    #[error("network {network} gave sandbox {sandbox} no address")]
    NoAddress {
        /// The network.
        network: String,
        /// The sandbox.
        sandbox: String,
    },
    /// CHECK of a sandbox that is not attached.
    #[error("sandbox {0} is not attached to a network")]
    NotAttached(String),
    /// Setting up the loopback device of a sandbox.
    #[error("set up lo in network namespace {}", netns.display())]
    Loopback {
        /// The network namespace.
        netns: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Running `nft`.
    #[error("run nft (package nftables), needed to masquerade pod egress")]
    Nft(#[source] io::Error),
    /// `nft` rejected the rules or took too long.
    #[error("nft table {table}: {reason}")]
    NftRules {
        /// The table.
        table: String,
        /// Its message.
        reason: String,
    },
    /// GC failed in part; everything else was collected.
    #[error("collect unused network attachments: {failed} left")]
    Collect {
        /// Number of failed steps.
        failed: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
    /// A blocking task panicked.
    #[error("the thread for {0} panicked")]
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
