//! The zone that the agent publishes: the names of the cluster, as one JSON file.
//!
//! The file contains the objects and not the records derived from them, so that ten thousand
//! Services stay small. It is written completely and renamed into place. A server of another
//! version reads it if [`VERSION`] is the same; unknown fields are ignored.

use berth_core::model::Protocol;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

/// Version of the file format.
pub const VERSION: u32 = 1;

/// The largest zone file in bytes that is read: some hundred thousand Services.
pub const ZONE_MAX: usize = 256 * 1024 * 1024;

/// The zone: everything that cluster names are answered from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// The serial number of the SOA record, raised with each change.
    pub serial: u32,
    /// The cluster domain, without a dot at its end.
    pub domain: Box<str>,
    /// The Services, sorted by namespace and name.
    pub services: Vec<ZoneService>,
    /// Names of pods.
    pub pods: PodNames,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneService {
    /// The namespace, shared by all of its Services.
    pub ns: Arc<str>,
    /// The name.
    pub name: Box<str>,
    /// The data of its records.
    #[serde(flatten)]
    pub target: Target,
}

/// The data of a Service's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A Service with ClusterIPs.
    Cluster {
        /// `clusterIPs`.
        ips: Box<[IpAddr]>,
        /// The named ports, shared by all Services with the same ports.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        ports: Arc<[ZonePort]>,
        /// The ready endpoints that have a host name.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        endpoints: Box<[ZoneEndpoint]>,
    },
    /// A headless Service.
    Headless {
        /// The ready endpoints, sorted by host name and address.
        endpoints: Box<[ZoneEndpoint]>,
        /// The distinct sets of named ports of the endpoints.
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        port_sets: Box<[Box<[ZonePort]>]>,
    },
    /// An ExternalName Service.
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
    /// The port number.
    pub port: u16,
}

/// A transport protocol in a DNS name.
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

/// One endpoint address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZoneEndpoint {
    /// The label below the Service's name: the endpoint's host name, or its address with dashes.
    pub host: Box<str>,
    /// The address.
    pub ip: IpAddr,
    /// Index of its port set among the Service's port sets.
    #[serde(default)]
    pub ports: u32,
}

/// The existing names of the form `10-0-0-1.<namespace>.pod.<domain>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodNames {
    /// A name for every address, as in section 2.6 of the specification.
    Any,
    /// Names for the addresses of these pods, sorted by namespace and address.
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
