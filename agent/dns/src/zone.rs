//! The zone as the agent publishes it: which names the cluster has, as one JSON file.
//!
//! The file says what there is, not the records that follow from it, so that ten thousand Services stay small. It is
//! written whole and renamed into place. A server of another version reads it as long as [`VERSION`] is the same;
//! fields that it does not know are ignored.

use berth_core::model::Protocol;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

/// The number of this format.
pub const VERSION: u32 = 1;

/// The largest zone file that is read, in bytes: some hundred thousand Services.
pub const ZONE_MAX: usize = 256 * 1024 * 1024;

/// Everything that cluster names are answered from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// [`VERSION`].
    pub version: u32,
    /// The serial number of the SOA record; higher with each change.
    pub serial: u32,
    /// The cluster domain, without a dot at its end.
    pub domain: Box<str>,
    /// The Services, sorted by namespace and name.
    pub services: Vec<ZoneService>,
    /// Names of pods.
    pub pods: PodNames,
}

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneService {
    /// The namespace. One text for all of its Services.
    pub ns: Arc<str>,
    /// The name.
    pub name: Box<str>,
    /// What it is answered with.
    #[serde(flatten)]
    pub target: Target,
}

/// What a Service's name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Its cluster addresses.
    Cluster {
        /// `clusterIPs`.
        ips: Box<[IpAddr]>,
        /// The named ports. One list for all Services that have the same.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        ports: Arc<[ZonePort]>,
        /// The ready endpoints that bear a host name of their own.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        endpoints: Box<[ZoneEndpoint]>,
    },
    /// Its ready endpoints.
    Headless {
        /// The endpoints, sorted by host name and address.
        endpoints: Box<[ZoneEndpoint]>,
        /// The named ports of endpoints, each set once.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        port_sets: Box<[Box<[ZonePort]>]>,
    },
    /// Another name (ExternalName).
    External {
        /// `externalName`, without a dot at its end.
        name: Box<str>,
    },
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZonePort {
    /// The name, without underscore.
    pub name: Box<str>,
    /// The protocol.
    pub proto: Proto,
    /// The number.
    pub port: u16,
}

/// A transport protocol as it stands in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proto {
    /// `_tcp`.
    Tcp,
    /// `_udp`.
    Udp,
    /// `_sctp`.
    Sctp,
}

impl Proto {
    /// The label, in lower case.
    pub fn label(self) -> &'static str {
        match self {
            Proto::Tcp => "_tcp",
            Proto::Udp => "_udp",
            Proto::Sctp => "_sctp",
        }
    }
}

impl From<Protocol> for Proto {
    fn from(protocol: Protocol) -> Proto {
        match protocol {
            Protocol::Tcp => Proto::Tcp,
            Protocol::Udp => Proto::Udp,
            Protocol::Sctp => Proto::Sctp,
        }
    }
}

/// One address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZoneEndpoint {
    /// The label below the Service's name: the endpoint's host name, or its address with dashes.
    pub host: Box<str>,
    /// The address.
    pub ip: IpAddr,
    /// Which of the Service's port sets it has.
    #[serde(default)]
    pub ports: u32,
}

/// Which names of the form `10-0-0-1.<namespace>.pod.<domain>` exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodNames {
    /// One for each address that can be written, as the specification has it (section 2.6).
    Any,
    /// Those of these pods, sorted by namespace and address.
    Listed(Vec<PodAddress>),
}

/// An address of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodAddress {
    /// The pod's namespace.
    pub ns: Box<str>,
    /// The address.
    pub ip: IpAddr,
}
