//! Wanted ports of a Service on this node, ready for the tables.

use crate::{HealthCheck, Net};
use berth_core::ids::PodKey;
use berth_ebpf_abi::{Backend, ServiceKey, V4, V6};
use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

/// Facts about the node that the choice of endpoints depends on besides the objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The node's name. Endpoints with this node name are local, whatever their address.
    pub name: Arc<str>,
    /// The node's label `topology.kubernetes.io/zone`; empty where the node has none.
    pub zone: Arc<str>,
    /// The node's own addresses. Endpoints at these addresses are in the host's network.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that the node answers itself, so that no Service may have them: those of its cluster DNS.
    pub own: BTreeSet<IpAddr>,
}

/// Protocols that the tables support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The protocol's number, `IPPROTO_*`.
    pub const fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        })
    }
}

/// The wanted ports of one Service. Empty for headless, ExternalName and foreign Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The Service's ports over IPv4.
    pub v4: Vec<WantedPort<V4>>,
    /// The Service's ports over IPv6.
    pub v6: Vec<WantedPort<V6>>,
    /// The port at which load balancers ask for the Service's health.
    pub health_check: Option<HealthCheck>,
    /// Parts of the Service that this node does not serve.
    pub notices: Vec<NoticeReason>,
}

/// One port of a Service in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort<A> {
    /// The port's name; may be empty where the Service has a single port.
    pub name: Arc<str>,
    /// The protocol.
    pub transport: Transport,
    /// The frontends and their `frontend` flags, without `HAS_ENDPOINTS`. The ClusterIP's frontend comes
    /// first. The bare ClusterIP (`ADDRESS`) is included.
    pub frontends: Vec<(ServiceKey<A>, u32)>,
    /// Seconds of client affinity, 0 for none.
    pub affinity_s: u32,
    /// The cluster set, in order of address and port.
    pub cluster: Vec<Backend<A>>,
    /// The local set, in order of address and port.
    pub local: Vec<Backend<A>>,
    /// Whether a usable endpoint exists anywhere. An empty set then follows from a traffic policy.
    pub has_endpoints: bool,
    /// Endpoints that still serve but are in no set: existing UDP flows to them may continue (UDP only).
    pub serving: Vec<Backend<A>>,
}

impl<A: Net> WantedPort<A> {
    /// Whether both sets equal the given sets.
    pub(crate) fn same_sets(&self, cluster: &[Backend<A>], local: &[Backend<A>]) -> bool {
        self.cluster == cluster && self.local == local
    }
}

/// Notice about a Service for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The Service.
    pub service: PodKey,
    /// The Service's `metadata.uid`.
    pub uid: Arc<str>,
    /// The reason of the notice.
    pub why: NoticeReason,
}

/// Reason why a Service, or a part of it, is not served as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NoticeReason {
    /// The port's protocol (SCTP) is not supported.
    Sctp {
        /// The port.
        port: u16,
    },
    /// `loadBalancerSourceRanges` are not enforced on this node, so the addresses that they restrict are left
    /// out.
    SourceRanges {
        /// The address.
        address: IpAddr,
    },
    /// The node answers the address itself.
    Own {
        /// The address.
        address: IpAddr,
    },
    /// The port has more endpoints than a set holds.
    TooMany {
        /// The port.
        port: u16,
        /// Number of endpoints.
        endpoints: usize,
    },
    /// An older Service has this address and port.
    Taken {
        /// The address; unspecified for a NodePort.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        transport: Transport,
        /// The Service that holds them.
        by: PodKey,
    },
    /// The node's table of frontends is full.
    NoRoom {
        /// The address; unspecified for a NodePort.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        transport: Transport,
    },
    /// The node's tables of backends are full.
    CutShort {
        /// The port's name; may be empty where the Service has a single port.
        name: Arc<str>,
        /// Number of endpoints in use.
        used: usize,
        /// Number of endpoints.
        endpoints: usize,
        /// Whether the port has session affinity, which is off while the tables are full.
        affinity: bool,
    },
}

impl NoticeReason {
    /// The event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            NoticeReason::Sctp { .. } | NoticeReason::SourceRanges { .. } | NoticeReason::Own { .. } => {
                "NotCarried"
            }
            NoticeReason::TooMany { .. } => "TooManyEndpoints",
            NoticeReason::NoRoom { .. } | NoticeReason::CutShort { .. } => "ServiceTablesFull",
            NoticeReason::Taken { address, .. } if address.is_unspecified() => "PortAlreadyAllocated",
            NoticeReason::Taken { .. } => "ClusterIPAlreadyAllocated",
        }
    }
}

impl fmt::Display for NoticeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoticeReason::Sctp { port } => write!(f, "port {port}: SCTP is not carried"),
            NoticeReason::SourceRanges { address } => {
                write!(f, "{address} is not served: loadBalancerSourceRanges are not enforced on this node")
            }
            NoticeReason::Own { address } => {
                write!(
                    f,
                    "{address} is not served: the node answers it itself (--cluster-dns); give the Service another"
                )
            }
            NoticeReason::TooMany { port, endpoints } => {
                write!(
                    f,
                    "port {port}: {endpoints} endpoints are more than a Service may have; the first 65535 count"
                )
            }
            NoticeReason::Taken { address, port, transport, by } if address.is_unspecified() => {
                write!(f, "node port {port}/{transport} is held by the older Service {by}")
            }
            NoticeReason::NoRoom { address, port, transport } if address.is_unspecified() => {
                write!(f, "node port {port}/{transport} is not served: the node's table of Services is full")
            }
            NoticeReason::NoRoom { address, port, transport } => {
                write!(
                    f,
                    "{address} port {port}/{transport} is not served: the node's table of Services is full"
                )
            }
            NoticeReason::CutShort { name, used, endpoints, affinity } => {
                let of = if name.is_empty() { String::new() } else { format!("port {name}: ") };
                let stay = if *affinity { ", and clients do not stay with one" } else { "" };
                write!(
                    f,
                    "{of}{used} of {endpoints} endpoints are used{stay}: the node's tables of backends are full"
                )
            }
            NoticeReason::Taken { address, port, transport, by } => {
                write!(f, "{address} port {port}/{transport} is held by the older Service {by}")
            }
        }
    }
}
