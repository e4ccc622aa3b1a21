//! What can go wrong, and the code that the CNI specification has for it.

use std::{fmt, io, path::PathBuf};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration asks for a version of the specification that is not spoken here.
    #[error("cniVersion {0:?} is not supported, only {all}", all = crate::config::VERSIONS.join(", "))]
    Version(String),
    /// A `CNI_*` variable is missing or wrong.
    #[error("environment variable {name} {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration could not be read from standard input.
    #[error("read configuration from standard input")]
    Input(#[source] io::Error),
    /// The configuration is not JSON.
    #[error("parse configuration")]
    Decode(#[source] serde_json::Error),
    /// A key of the configuration is missing or wrong.
    #[error("configuration key {field} {reason}")]
    Config {
        /// The key, with its path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address journal said no.
    #[error("keep addresses of network {network:?}")]
    Addresses {
        /// The network.
        network: String,
        /// Why.
        #[source]
        source: berth_cni_ipam::Error,
    },
    /// STATUS: there is no address to give.
    #[error("network {network:?} can take no more pods")]
    Full {
        /// The network.
        network: String,
        /// Which ranges are full.
        #[source]
        source: berth_cni_ipam::Exhausted,
    },
    /// The pod's network namespace could not be opened or entered.
    #[error("{operation} network namespace {}", path.display())]
    Namespace {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change or a question.
    #[error("{operation} {subject}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// On what.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sysctl of an own device could not be set.
    #[error("write {value:?} to {}", path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value.
        value: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else has the name that the pod's interface shall have.
    #[error("interface {ifname} exists already in the container and is not of this network")]
    Taken {
        /// The name.
        ifname: String,
    },
    /// CHECK: the container's network is not as it was made.
    #[error("{subject} {found}")]
    Changed {
        /// What was looked at.
        subject: String,
        /// What is wrong with it.
        found: String,
    },
    /// Some of GC's work failed; the rest was done.
    #[error("collect {failed} of the unused attachments of network {network:?}")]
    Collect {
        /// The network.
        network: String,
        /// How many are left.
        failed: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
}

impl Error {
    /// The specification's code; from 100 on they are our own.
    pub(crate) fn code(&self) -> u32 {
        use berth_cni_ipam::Error as Ipam;
        match self {
            Error::Version(_) => 1,
            Error::Environment { .. } => 4,
            Error::Input(_) => 5,
            Error::Decode(_) => 6,
            Error::Config { .. } => 7,
            // Pods come and go: another process's lock and a full range are both a matter of time.
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

/// An error's sources, joined: the specification's `details`.
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
