//! The Service ports of one reading of the Service tables.

use berth_ebpf_abi::{Backend, Service, Set, backend, frontend};
use berth_ebpf_decide::flow::UDP;
use berth_ebpf_tables::{Contents, Net, socket};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

/// The Service ports of one family, by id.
pub(crate) fn ports<A: Net>(contents: &Contents<A>) -> Vec<Port> {
    let mut ports: BTreeMap<u32, Port> = BTreeMap::new();
    for (key, value) in contents.services.iter().filter(|(_, v)| v.frontend & frontend::ADDRESS == 0) {
        let port = ports.entry(value.id).or_insert_with(|| {
            let endpoint = |b: Backend<A>| Endpoint { at: socket(b.addr, b.port), flags: b.flags };
            let set = |set| contents.backends(value, set).into_iter().map(endpoint).collect();
            Port::new(A::V6, value, [set(Set::Cluster), set(Set::Local)])
        });
        port.frontends.push(Frontend {
            at: socket(key.addr, key.port),
            protocol: Protocol(key.proto),
            flags: value.frontend,
        });
    }
    let mut ports: Vec<Port> = ports.into_values().collect();
    ports.iter_mut().for_each(|port| port.frontends.sort_by_key(|f| (f.kind(), f.at)));
    ports
}

/// A protocol number (`IPPROTO_*`), printed as Kubernetes names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Protocol(pub(crate) u8);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            berth_ebpf_decide::flow::TCP => f.write_str("TCP"),
            UDP => f.write_str("UDP"),
            other => write!(f, "{other}"),
        }
    }
}

/// The type of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FrontendKind {
    ClusterIp,
    NodePort,
    /// A load balancer's address or an external IP.
    External,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::External => "External",
        })
    }
}

/// A frontend of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frontend {
    pub(crate) at: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Flags of module [`frontend`].
    pub(crate) flags: u32,
}

impl Frontend {
    pub(crate) fn kind(&self) -> FrontendKind {
        if self.flags & frontend::NODE_PORT != 0 {
            FrontendKind::NodePort
        } else if self.flags & frontend::EXTERNAL != 0 {
            FrontendKind::External
        } else {
            FrontendKind::ClusterIp
        }
    }

    /// Whether clients outside of the cluster use this frontend.
    pub(crate) fn external(&self) -> bool {
        self.flags & frontend::EXTERNAL != 0
    }

    /// The ADDRESS column: address, port and protocol; a NodePort as `*:port`, of IPv6 as
    /// `[*]:port`.
    pub(crate) fn address(&self) -> String {
        match self.kind() {
            FrontendKind::NodePort if self.at.is_ipv6() => {
                format!("[*]:{}/{}", self.at.port(), self.protocol)
            }
            FrontendKind::NodePort => format!("*:{}/{}", self.at.port(), self.protocol),
            _ => format!("{}/{}", self.at, self.protocol),
        }
    }
}

/// A backend of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) at: SocketAddr,
    /// Flags of module [`backend`].
    pub(crate) flags: u16,
}

impl Endpoint {
    pub(crate) fn local(&self) -> bool {
        self.flags & backend::LOCAL != 0
    }

    pub(crate) fn host_network(&self) -> bool {
        self.flags & backend::HOST_NETWORK != 0
    }
}

/// A Service port of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) v6: bool,
    pub(crate) id: u32,
    pub(crate) generation: u32,
    /// Session affinity timeout in seconds; 0 without affinity.
    pub(crate) affinity_s: u32,
    /// Sizes of the cluster set and of the local set, by the Service entry.
    pub(crate) counts: [u16; 2],
    /// Backends of the cluster set, without those of missing chunks.
    pub(crate) cluster: Vec<Endpoint>,
    /// Backends of the local set, without those of missing chunks.
    pub(crate) local: Vec<Endpoint>,
    pub(crate) frontends: Vec<Frontend>,
}

/// Outcome of a client's connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Forwarded to a backend.
    Served,
    /// Refused: the Service has no endpoint.
    Refused,
    /// Dropped: the traffic policy leaves no endpoint.
    Dropped,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reach::Served => "served",
            Reach::Refused => "refused",
            Reach::Dropped => "dropped",
        })
    }
}

impl Port {
    fn new<A>(v6: bool, value: &Service<A>, [cluster, local]: [Vec<Endpoint>; 2]) -> Port {
        let Service { id, generation, affinity_s, counts, .. } = *value;
        Port { v6, id, generation, affinity_s, counts, cluster, local, frontends: Vec::new() }
    }

    /// Outcome of a connection to a frontend, from this node and its pods, or from outside.
    pub(crate) fn reach(&self, entry: &Frontend, outside: bool) -> Reach {
        let local =
            if outside && entry.external() { frontend::OUTSIDE_LOCAL } else { frontend::INSIDE_LOCAL };
        let [cluster, here] = self.counts;
        let count = if entry.flags & local != 0 { here } else { cluster };
        match count {
            0 if entry.flags & frontend::HAS_ENDPOINTS != 0 => Reach::Dropped,
            0 => Reach::Refused,
            _ => Reach::Served,
        }
    }

    /// The number of backends on this node, counted in both sets: the local set is empty without a
    /// policy that needs it.
    pub(crate) fn on_this_node(&self) -> usize {
        let local: BTreeSet<&Endpoint> =
            self.cluster.iter().chain(&self.local).filter(|e| e.local()).collect();
        local.len()
    }

    /// Whether one of the frontends has this address and, where given, this port.
    pub(crate) fn answers(&self, ip: IpAddr, port: Option<u16>) -> bool {
        self.frontends.iter().any(|f| f.at.ip() == ip && port.is_none_or(|p| p == f.at.port()))
    }
}
