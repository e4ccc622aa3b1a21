//! The Service tables as they stood at one moment, and the Service ports in them.

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

/// One family's tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot<A> {
    pub(crate) services: Vec<(ServiceKey<A>, Service<A>)>,
    pub(crate) chunks: HashMap<ChunkKey, Chunk<A>>,
    pub(crate) members: HashSet<MemberKey<A>>,
}

impl<A: Net> Snapshot<A> {
    /// Reads them. Values first: their chunks stay for a while when they are replaced.
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

    /// A set's backends; what is not there is left out.
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

/// The keys of a set's chunks, each with how many backends are in it. None where the backends lie inline.
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

/// `IPPROTO_*`, shown as Kubernetes does.
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

/// What a way in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    /// A load balancer's or an external address.
    External,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::External => "External",
        })
    }
}

/// One way into a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frontend {
    pub(crate) at: SocketAddr,
    pub(crate) protocol: Protocol,
    /// [`frontend`].
    pub(crate) flags: u32,
}

impl Frontend {
    pub(crate) fn kind(&self) -> Kind {
        if self.flags & frontend::NODE_PORT != 0 {
            Kind::NodePort
        } else if self.flags & frontend::EXTERNAL != 0 {
            Kind::External
        } else {
            Kind::ClusterIp
        }
    }

    /// Whether clients from outside come in here.
    pub(crate) fn external(&self) -> bool {
        self.flags & frontend::EXTERNAL != 0
    }

    /// The address and port; a NodePort has only a port and a family, IPv6 in brackets.
    pub(crate) fn shown(&self) -> String {
        match self.kind() {
            Kind::NodePort if self.at.is_ipv6() => format!("[*]:{}/{}", self.at.port(), self.protocol),
            Kind::NodePort => format!("*:{}/{}", self.at.port(), self.protocol),
            _ => format!("{}/{}", self.at, self.protocol),
        }
    }
}

/// One backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) at: SocketAddr,
    /// [`backend`].
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

/// A Service port as the tables have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) v6: bool,
    pub(crate) id: u32,
    pub(crate) generation: u32,
    /// Seconds; 0: none.
    pub(crate) affinity_s: u32,
    /// Cluster and local set, as the value counts them.
    pub(crate) counts: [u16; 2],
    /// Those that were found.
    pub(crate) cluster: Vec<Endpoint>,
    /// Likewise.
    pub(crate) local: Vec<Endpoint>,
    pub(crate) frontends: Vec<Frontend>,
}

/// What a client meets at a way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A backend.
    Served,
    /// Nothing listens: no endpoint anywhere.
    Refused,
    /// No answer: the traffic policy leaves no endpoint.
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

    /// What a client meets, from this node (its pods too) or from outside.
    pub(crate) fn reach(&self, frontend: &Frontend, outside: bool) -> Reach {
        let local =
            if outside && frontend.external() { frontend::OUTSIDE_LOCAL } else { frontend::INSIDE_LOCAL };
        let [cluster, here] = self.counts;
        let count = if frontend.flags & local != 0 { here } else { cluster };
        match count {
            0 if frontend.flags & frontend::HAS_ENDPOINTS != 0 => Reach::Dropped,
            0 => Reach::Refused,
            _ => Reach::Served,
        }
    }

    /// Backends on this node. The local set holds them only where a policy asks for it.
    pub(crate) fn on_this_node(&self) -> usize {
        let local: BTreeSet<&Endpoint> =
            self.cluster.iter().chain(&self.local).filter(|e| e.local()).collect();
        local.len()
    }

    /// The node's own port or an address of this port.
    pub(crate) fn answers(&self, ip: IpAddr, port: Option<u16>) -> bool {
        self.frontends.iter().any(|f| f.at.ip() == ip && port.is_none_or(|p| p == f.at.port()))
    }
}
