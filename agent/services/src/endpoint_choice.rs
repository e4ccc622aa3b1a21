//! Endpoint selection: which endpoints a Service port uses on this node, by kube-proxy's rules
//! (`pkg/proxy/topology.go` and `endpointslicecache.go` of 1.36), held by a truth table that its own code made.

use crate::{Net, NodeFacts};
use berth_core::model::{Endpoint, EndpointSlice, Protocol};
use berth_ebpf_abi::{Backend, backend};
use std::sync::Arc;

/// Which sets a port ever uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uses {
    pub(crate) cluster: bool,
    pub(crate) local: bool,
}

/// The choice for one port.
#[derive(Debug)]
pub(crate) struct Chosen<A> {
    pub(crate) cluster: Vec<Backend<A>>,
    pub(crate) local: Vec<Backend<A>>,
    pub(crate) any: bool,
    /// Those that serve and are in neither set.
    pub(crate) serving: Vec<Backend<A>>,
}

/// An endpoint of one port.
struct Candidate<'a, A> {
    backend: Backend<A>,
    endpoint: &'a Endpoint,
}

impl<A> Candidate<'_, A> {
    fn local(&self) -> bool {
        self.backend.flags & backend::LOCAL != 0
    }

    fn last_resort(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// Hints are followed only where every ready endpoint has one and one is for us.
enum Topology {
    Everywhere,
    Node,
    Zone,
}

/// Chooses among the slices' endpoints for the port of that name and protocol.
pub(crate) fn choose<A: Net>(
    slices: &[Arc<EndpointSlice>],
    name: &str,
    protocol: Protocol,
    uses: Uses,
    node: &NodeFacts,
) -> Chosen<A> {
    let all = candidates::<A>(slices, name, protocol, node);
    let mut chosen = Chosen { cluster: Vec::new(), local: Vec::new(), any: false, serving: Vec::new() };
    if uses.cluster {
        let topology = topology(&all, node);
        chosen.cluster = take(&all, |c| c.endpoint.ready && available(c.endpoint, &topology, node));
        if chosen.cluster.is_empty() {
            chosen.cluster = take(&all, |c| c.last_resort());
        }
        chosen.any = !chosen.cluster.is_empty();
    }
    if uses.local {
        chosen.any |= all.iter().any(|c| c.endpoint.ready || c.last_resort());
        chosen.local = take(&all, |c| c.local() && c.endpoint.ready);
        if chosen.local.is_empty() {
            chosen.local = take(&all, |c| c.local() && !c.endpoint.ready && c.last_resort());
        }
    }
    if protocol == Protocol::Udp {
        let in_no_set = |c: &Candidate<'_, A>| {
            (c.endpoint.serving || c.endpoint.ready)
                && !chosen.cluster.contains(&c.backend)
                && !chosen.local.contains(&c.backend)
        };
        chosen.serving = take(&all, in_no_set);
    }
    chosen
}

fn take<A: Net>(all: &[Candidate<'_, A>], which: impl Fn(&Candidate<'_, A>) -> bool) -> Vec<Backend<A>> {
    all.iter().filter(|c| which(c)).map(|c| c.backend).collect()
}

/// The endpoints of the port in order of address and port, each once: of two the running one counts, since an address
/// may be used anew while its last owner still ends.
fn candidates<'a, A: Net>(
    slices: &'a [Arc<EndpointSlice>],
    name: &str,
    protocol: Protocol,
    node: &NodeFacts,
) -> Vec<Candidate<'a, A>> {
    let mut all: Vec<Candidate<'a, A>> = Vec::new();
    for slice in slices.iter().filter(|s| s.v6 == A::V6) {
        let ports = slice.ports.iter().filter(|p| &*p.name == name && p.protocol == protocol && p.port != 0);
        for port in ports {
            for endpoint in &slice.endpoints {
                let Some(addr) = A::of(endpoint.address) else { continue };
                let local = endpoint.node.as_ref().is_some_and(|n| !node.name.is_empty() && *n == node.name);
                let mut flags = if local { backend::LOCAL } else { 0 };
                if node.addresses.contains(&endpoint.address) {
                    flags |= backend::HOST_NETWORK;
                }
                all.push(Candidate { backend: Backend { addr, port: port.port.to_be(), flags }, endpoint });
            }
        }
    }
    all.sort_by_key(|c| (c.backend.addr, c.backend.port));
    all.dedup_by(|later, kept| {
        let same = (later.backend.addr, later.backend.port) == (kept.backend.addr, kept.backend.port);
        if same && !later.endpoint.terminating {
            (kept.backend, kept.endpoint) = (later.backend, later.endpoint);
        }
        same
    });
    all
}

fn topology<A>(all: &[Candidate<'_, A>], node: &NodeFacts) -> Topology {
    let mut ready = all.iter().filter(|c| c.endpoint.ready).map(|c| c.endpoint).peekable();
    if ready.peek().is_none() {
        return Topology::Everywhere;
    }
    let (mut every_node, mut this_node, mut every_zone, mut this_zone) = (true, false, true, false);
    for e in ready {
        every_node &= !e.node_hints.is_empty();
        this_node |= e.node_hints.contains(&node.name);
        every_zone &= !e.zone_hints.is_empty();
        this_zone |= e.zone_hints.contains(&node.zone);
    }
    if every_node && this_node {
        Topology::Node
    } else if every_zone && this_zone {
        Topology::Zone
    } else {
        Topology::Everywhere
    }
}

fn available(e: &Endpoint, topology: &Topology, node: &NodeFacts) -> bool {
    match topology {
        Topology::Everywhere => true,
        Topology::Node => e.node_hints.contains(&node.name),
        Topology::Zone => e.zone_hints.contains(&node.zone),
    }
}
