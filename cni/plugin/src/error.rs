//! Errors of the plugin, with the codes of the CNI specification.

use std::{fmt, io, path::PathBuf};

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration has an unsupported version of the specification.
    #[error("cannot use cniVersion {0:?}: the supported versions are {all}", all = crate::version::VERSIONS.join(", "))]
    Version(String),
    /// A `CNI_*` variable is missing or invalid.
    #[error("environment variable {name} {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Reason of the failure.
        reason: String,
    },
    /// Reading the configuration from standard input.
    #[error("cannot read the configuration from standard input")]
    Input(#[source] io::Error),
    /// The configuration is not JSON.
    #[error("cannot parse the configuration")]
    Decode(#[source] serde_json::Error),
    /// A key of the configuration is missing or invalid.
    #[error("configuration key {field} {reason}")]
    Config {
        /// The key, with its path.
        field: String,
        /// Reason of the failure.
        reason: String,
    },
    /// Allocating or releasing addresses.
    #[error("cannot allocate or release addresses of network {network:?}")]
    Addresses {
        /// The network.
        network: String,
        /// Cause of the failure.
        #[source]
        source: berth_cni_ipam::Error,
    },
    /// STATUS: no address is left.
    #[error("cannot attach more pods to network {network:?}")]
    Full {
        /// The network.
        network: String,
        /// The exhausted ranges.
        #[source]
        source: berth_cni_ipam::Exhausted,
    },
    /// Opening or entering the pod's network namespace.
    #[error("cannot {operation} network namespace {}", path.display())]
    Namespace {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A netlink request that the kernel refused.
    #[error("cannot {operation} {subject}")]
    Netlink {
        /// The operation.
        operation: &'static str,
        /// Subject of the operation.
        subject: String,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Setting a sysctl of our own device.
    #[error("cannot write {value:?} to {}", path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value.
        value: &'static str,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Another interface has the name of the pod's interface.
    #[error("cannot create interface {ifname}: the container already has one that is not of this network")]
    Taken {
        /// The name.
        ifname: String,
    },
    /// CHECK: the container's network differs from what ADD made.
    #[error("the container's network is not as ADD made it: {subject} {found}")]
    Changed {
        /// The checked object.
        subject: String,
        /// The difference.
        found: String,
    },
    /// GC failed in part; everything else was removed.
    #[error("cannot remove {failed} of the unused attachments of network {network:?}")]
    Collect {
        /// The network.
        network: String,
        /// Number of failed removals.
        failed: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
}

impl Error {
    /// The code of the CNI specification. Codes from 100 on are our own.
    pub(crate) fn code(&self) -> u32 {
        use berth_cni_ipam::Error as Ipam;
        match self {
            Error::Version(_) => 1,
            Error::Environment { .. } => 4,
            Error::Input(_) => 5,
            Error::Decode(_) => 6,
            Error::Config { .. } => 7,
            // Another process's lock and a full range are temporary, because pods come and go.
            Error::Addresses { source: Ipam::Locked { .. } | Ipam::Exhausted { .. }, .. } => 11,
            Error::Addresses { .. } => 5,
            Error::Full { .. } => 50,
            Error::Netlink { .. } => 100,
            Error::Namespace { .. } => 101,
            Error::Sysctl { .. } => 102,
            Error::Taken { .. } => 103,
            Error::Changed { .. } => 104,
            Error::Collect { source, .. } => source.code(),
        }
    }
}

/// The causes of an error, joined: `details` of the specification.
pub(crate) struct Sources<'a>(pub(crate) &'a Error);

impl fmt::Display for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = std::error::Error::source(self.0);
        let mut separator = "";
        while let Some(source) = next {
            write!(f, "{separator}{source}")?;
            separator = ": ";
            next = source.source();
        }
        Ok(())
    }
}
