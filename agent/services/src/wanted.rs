//! What is wanted of a Service on this node, ready for the tables.

use crate::Net;
use berth_core::ids::PodKey;
use berth_ebpf_abi::{Backend, ServiceKey, V4, V6};
use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

/// What the choice of endpoints depends on besides the objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The node's name: endpoints with it are local, whatever their address.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; empty where it has none.
    pub zone: Arc<str>,
    /// The node's own addresses: endpoints there sit in the host's network.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that the node answers itself and that are no Service's: those of its cluster DNS.
    pub own: BTreeSet<IpAddr>,
}

/// The protocols that the tables carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// `IPPROTO_*`.
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

/// Everything that is wanted of one Service. Empty for headless, ExternalName and foreign Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its ports over IPv4.
    pub v4: Vec<WantedPort<V4>>,
    /// Its ports over IPv6.
    pub v6: Vec<WantedPort<V6>>,
    /// What of it is not carried.
    pub notices: Vec<NoticeReason>,
}

/// One port of a Service in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort<A> {
    /// The port's name, empty for the only one.
    pub name: Arc<str>,
    /// The protocol.
    pub transport: Transport,
    /// The ways in and their `frontend` flags, without `HAS_ENDPOINTS`; the ClusterIP's first. The bare ClusterIP
    /// (`ADDRESS`) is among them.
    pub frontends: Vec<(ServiceKey<A>, u32)>,
    /// Seconds of client affinity, 0 for none.
    pub affinity_s: u32,
    /// The cluster set, in order of address and port.
    pub cluster: Vec<Backend<A>>,
    /// The local set, likewise.
    pub local: Vec<Backend<A>>,
    /// Some usable endpoint exists anywhere: an empty set is a matter of policy.
    pub has_endpoints: bool,
    /// Endpoints that still serve though they are in no set: what talks to them already may go on (UDP only).
    pub serving: Vec<Backend<A>>,
}

impl<A: Net> WantedPort<A> {
    /// Whether both sets are the same as there.
    pub(crate) fn same_sets(&self, cluster: &[Backend<A>], local: &[Backend<A>]) -> bool {
        self.cluster == cluster && self.local == local
    }
}

/// Something about a Service that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The Service.
    pub service: PodKey,
    /// Its `metadata.uid`.
    pub uid: Arc<str>,
    /// What.
    pub why: NoticeReason,
}

/// NoticeReason (a part of) a Service is not carried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NoticeReason {
    /// The port's protocol has no data path here.
    Sctp {
        /// The port.
        port: u16,
    },
    /// `loadBalancerSourceRanges` are not enforced here, so the addresses that they guard are left out.
    SourceRanges {
        /// The address.
        address: IpAddr,
    },
    /// `healthCheckNodePort` is not answered here: a load balancer that asks there takes the node for dead.
    HealthCheck {
        /// The port.
        port: u16,
    },
    /// The node answers the address itself.
    Own {
        /// The address.
        address: IpAddr,
    },
    /// More endpoints than a set holds.
    TooMany {
        /// The port.
        port: u16,
        /// How many there are.
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
        /// Who has it.
        by: PodKey,
    },
    /// The node's table of ways in is full.
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
        /// The port's name, empty for the only one.
        name: Arc<str>,
        /// How many endpoints are used.
        used: usize,
        /// How many there are.
        endpoints: usize,
        /// Whether its clients should stay with an endpoint, which they do not.
        affinity: bool,
    },
}

impl NoticeReason {
    /// The event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            NoticeReason::Sctp { .. }
            | NoticeReason::SourceRanges { .. }
            | NoticeReason::HealthCheck { .. }
            | NoticeReason::Own { .. } => "NotCarried",
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
            NoticeReason::HealthCheck { port } => {
                write!(
                    f,
                    "healthCheckNodePort {port} is not answered on this node: nothing may ask there for its health"
                )
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
