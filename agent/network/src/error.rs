//! What can go wrong.

use crate::result::PluginFailure;
use std::{io, path::PathBuf, time::Duration};

/// Why something about the pod network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration at all.
    #[error("no network configuration (*.conflist, *.conf, *.json) in {}", dir.display())]
    NoConflist {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A configuration file is not JSON.
    #[error("parse network configuration {}", path.display())]
    ConflistSyntax {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a configuration file is missing or wrong.
    #[error("network configuration {}: {field} {reason}", path.display())]
    ConflistField {
        /// The file.
        path: PathBuf,
        /// The field, with its path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory could not be read, written, renamed or removed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A state file could not be replaced.
    #[error("cannot keep the network's state")]
    State {
        /// Why, with the file.
        #[source]
        source: berth_sys::Error,
    },
    /// An annotation of the pod names no rate that an interface can be limited to.
    #[error(
        "cannot limit the pod's bandwidth: annotation {annotation} is {value:?}, and must be a quantity of bits a second \
         from 1k to 1P"
    )]
    Bandwidth {
        /// The annotation.
        annotation: &'static str,
        /// Its value, cut.
        value: String,
    },
    /// The sandbox id is not one that may become a file's name.
    #[error(
        "sandbox id {0:?} must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    SandboxId(String),
    /// A plugin is not there.
    #[error("network plugin {plugin} is not in {}", dir.display())]
    NoPlugin {
        /// Its `type`.
        plugin: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A plugin could not be started or talked to.
    #[error("run network plugin {plugin} {verb}")]
    Run {
        /// Its `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin did not end in time and was killed.
    #[error("network plugin {plugin} {verb} did not end within {timeout:?}")]
    Timeout {
        /// Its `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// A plugin said more than any result is long.
    #[error("network plugin {plugin} {verb} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// Its `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A plugin reported failure.
    #[error("network plugin {plugin} {verb}")]
    Plugin {
        /// Its `type`.
        plugin: String,
        /// The CNI command.
        verb: &'static str,
        /// What it reported.
        #[source]
        source: PluginFailure,
    },
    /// A plugin's result is not JSON.
    #[error("parse the result of network plugin {plugin}")]
    ResultSyntax {
        /// Its `type`.
        plugin: String,
        /// Where it breaks.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a plugin's result is missing or wrong.
    #[error("result of network plugin {plugin}: {field} {reason}")]
    ResultField {
        /// Its `type`.
        plugin: String,
        /// The field, with its path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The plugins succeeded and gave the sandbox no address.
    #[error("network {network} gave sandbox {sandbox} no address")]
    NoAddress {
        /// The network.
        network: String,
        /// The sandbox.
        sandbox: String,
    },
    /// CHECK was asked for a sandbox that is not attached.
    #[error("sandbox {0} is not attached to a network")]
    NotAttached(String),
    /// The loopback device of a sandbox could not be set up.
    #[error("set up lo in network namespace {}", netns.display())]
    Loopback {
        /// The namespace.
        netns: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `nft` could not be run.
    #[error("run nft (package nftables), needed to masquerade pod egress")]
    Nft(#[source] io::Error),
    /// `nft` refused the rules or took too long.
    #[error("nft table {table}: {reason}")]
    NftRules {
        /// The table.
        table: String,
        /// What it said.
        reason: String,
    },
    /// GC left something behind; the rest was done.
    #[error("collect unused network attachments: {failed} left")]
    Collect {
        /// How many steps failed.
        failed: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
    /// Work on a thread of its own did not come back.
    #[error("the thread for {0} panicked")]
    Panicked(&'static str),
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { operation, path, source }
    }

    /// Whether the plugin says that it does not know this command at all.
    pub(crate) fn is_unknown_verb(&self) -> bool {
        // 1: incompatible version, 4: invalid environment variables (an unknown CNI_COMMAND).
        matches!(self, Error::Plugin { source, .. } if matches!(source.code, Some(1 | 4)))
    }
}
