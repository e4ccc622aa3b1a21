//! One reading of the Service tables, and the Service ports in it.

use super::family::{Net, socket};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, Service, ServiceKey, Set, backend, frontend,
};
use berth_ebpf_decide::flow::UDP;
use berth_ebpf_loader::{Datapath, Error};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

/// The tables of one address family.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot<A> {
    pub(crate) services: Vec<(ServiceKey<A>, Service<A>)>,
    pub(crate) chunks: HashMap<ChunkKey, Chunk<A>>,
    pub(crate) members: HashSet<MemberKey<A>>,
}

impl<A: Net> Snapshot<A> {
    /// Reads the tables. Service entries come first: chunks that are replaced meanwhile stay for a
    /// moment.
    pub(crate) fn read(datapath: &Datapath) -> Result<Snapshot<A>, Error> {
        let maps = A::maps(datapath);
        Ok(Snapshot {
            services: maps.service.entries()?,
            chunks: maps.chunk.entries()?.into_iter().collect(),
            members: maps.member.entries()?.into_iter().map(|(key, _)| key).collect(),
        })
    }

    /// The Service ports, by id.
    pub(crate) fn ports(&self) -> Vec<Port> {
        let mut ports: BTreeMap<u32, (Port, Service<A>)> = BTreeMap::new();
        for (key, value) in self.services.iter().filter(|(_, v)| v.frontend & frontend::ADDRESS == 0) {
            let (port, _) = ports.entry(value.id).or_insert_with(|| {
                let sets = [self.set(value, Set::Cluster), self.set(value, Set::Local)];
                (Port::new(A::V6, value, sets), *value)
            });
            port.frontends.push(Frontend {
                at: socket(key.addr, key.port),
                protocol: Protocol(key.proto),
                flags: value.frontend,
            });
        }
        let mut ports: Vec<Port> = ports.into_values().map(|(port, _)| port).collect();
        ports.iter_mut().for_each(|port| port.frontends.sort_by_key(|f| (f.kind(), f.at)));
        ports
    }

    /// The backends of a set; backends of missing chunks are left out.
    pub(crate) fn backends(&self, value: &Service<A>, set: Set) -> Vec<Backend<A>> {
        let [cluster, local] = value.counts.map(usize::from);
        let (before, count) = match set {
            Set::Cluster => (0, cluster),
            Set::Local => (cluster, local),
        };
        if cluster.saturating_add(local) <= INLINE {
            return value.inline.into_iter().skip(before).take(count).collect();
        }
        let found = chunk_keys(value, set).filter_map(|(key, len)| Some((self.chunks.get(&key)?, len)));
        found.flat_map(|(chunk, len)| chunk.backends.into_iter().take(len)).collect()
    }

    fn set(&self, value: &Service<A>, set: Set) -> Vec<Endpoint> {
        let of = |b: Backend<A>| Endpoint { at: socket(b.addr, b.port), flags: b.flags };
        self.backends(value, set).into_iter().map(of).collect()
    }
}

/// The keys of a set's chunks, each with its number of backends. Empty where the backends are
/// inline.
pub(crate) fn chunk_keys<A>(value: &Service<A>, set: Set) -> impl Iterator<Item = (ChunkKey, usize)> {
    let [cluster, local] = value.counts.map(usize::from);
    let (id, generation) = (value.id, value.generation);
    let (number, count) = match set {
        Set::Cluster => (0, cluster),
        Set::Local => (1, local),
    };
    let count = if cluster.saturating_add(local) <= INLINE { 0 } else { count };
    (0_u32..).zip((0..count).step_by(CHUNK)).map(move |(index, first)| {
        (ChunkKey { id, generation, set: number, index }, count.saturating_sub(first).min(CHUNK))
    })
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

/// What a client's connection to a frontend comes to.
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

    /// What a connection to a frontend comes to, from this node and its pods, or from outside.
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
