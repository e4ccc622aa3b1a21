//! Compilation of one Service and its slices into the ports that this node wants.

use crate::{
    Net, NodeFacts, NoticeReason, Transport, Wanted, WantedPort,
    endpoint_choice::{Chosen, Uses, choose},
    health_check::health_check,
};
use berth_core::model::{
    EndpointSlice, Protocol, Service, ServicePort, ServiceType, SourceRange, TrafficPolicy,
};
use berth_ebpf_abi::{ServiceKey, V4, V6, frontend};
use std::{net::IpAddr, sync::Arc};

/// The wanted ports of a Service on this node. `slices` are the Service's own, in a stable order.
///
/// A family without a ClusterIP gets no ports, as in kube-proxy. Source of the rules:
/// `pkg/proxy/serviceport.go`.
pub fn compile(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeFacts) -> Wanted {
    let mut wanted = Wanted::default();
    if service.foreign || service.headless || service.kind == ServiceType::ExternalName {
        return wanted;
    }
    wanted.health_check = health_check(service, slices, node);
    wanted.v4 = family::<V4>(service, slices, node, &mut wanted.notices);
    wanted.v6 = family::<V6>(service, slices, node, &mut wanted.notices);
    wanted
}

/// The addresses of a Service in one family.
struct Addresses<A> {
    cluster: A,
    external: Vec<A>,
    outside_local: bool,
}

fn family<A: Net>(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &NodeFacts,
    notices: &mut Vec<NoticeReason>,
) -> Vec<WantedPort<A>> {
    let Some(cluster) = service.cluster_ips.iter().find_map(|ip| A::of(*ip)) else { return Vec::new() };
    if node.own.contains(&cluster.ip()) {
        notices.push(NoticeReason::Own { address: cluster.ip() });
        return Vec::new();
    }
    let mut external: Vec<A> = Vec::new();
    for address in service.external_ips.iter().filter(|ip| A::of(**ip).is_some()) {
        if node.own.contains(address) {
            notices.push(NoticeReason::Own { address: *address });
        } else {
            external.extend(A::of(*address));
        }
    }
    let guarded = guarded::<A>(&service.source_ranges);
    for address in service.load_balancer_ips.iter().filter(|ip| A::of(**ip).is_some()) {
        if node.own.contains(address) {
            notices.push(NoticeReason::Own { address: *address });
        } else if guarded {
            notices.push(NoticeReason::SourceRanges { address: *address });
        } else {
            external.extend(A::of(*address));
        }
    }
    let may_be_outside = matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
        || !service.external_ips.is_empty();
    let outside_local = may_be_outside && service.external_policy == TrafficPolicy::Local;
    let addresses = Addresses { cluster, external, outside_local };
    let ports = service.ports.iter().filter_map(|p| port(service, p, &addresses, slices, node, notices));
    ports.collect()
}

/// Whether the source ranges restrict this family. Ranges of the other family do not count, and one range of
/// length 0 opens the family.
fn guarded<A: Net>(ranges: &[SourceRange]) -> bool {
    let mut own = ranges.iter().filter(|r| A::of(r.net).is_some()).peekable();
    own.peek().is_some() && own.all(|r| r.len != 0)
}

fn port<A: Net>(
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<A>,
    slices: &[Arc<EndpointSlice>],
    node: &NodeFacts,
    notices: &mut Vec<NoticeReason>,
) -> Option<WantedPort<A>> {
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => {
            let why = NoticeReason::Sctp { port: port.port };
            if !notices.contains(&why) {
                notices.push(why);
            }
            return None;
        }
    };
    let inside_local = service.internal_policy == TrafficPolicy::Local;
    let reachable = port.node_port.is_some() || !addresses.external.is_empty();
    let uses = Uses {
        cluster: !inside_local || reachable,
        local: inside_local || (addresses.outside_local && reachable),
    };
    let Chosen { mut cluster, mut local, any, serving } =
        choose::<A>(slices, &port.name, port.protocol, uses, node);
    for set in [&mut cluster, &mut local] {
        if set.len() > usize::from(u16::MAX) {
            notices.push(NoticeReason::TooMany { port: port.port, endpoints: set.len() });
            set.truncate(usize::from(u16::MAX));
        }
    }
    Some(WantedPort {
        name: Arc::clone(&port.name),
        transport,
        frontends: frontends(port, transport, addresses, inside_local),
        affinity_s: service.affinity_s.unwrap_or(0),
        cluster,
        local,
        has_endpoints: any,
        serving,
    })
}

/// The frontends of a port, each once. Where an external address is also the ClusterIP, the ClusterIP's rules
/// apply.
fn frontends<A: Net>(
    port: &ServicePort,
    transport: Transport,
    addresses: &Addresses<A>,
    inside_local: bool,
) -> Vec<(ServiceKey<A>, u32)> {
    let key = |addr, port: u16| ServiceKey { addr, port: port.to_be(), proto: transport.number(), pad: 0 };
    let outside = frontend::EXTERNAL | if addresses.outside_local { frontend::OUTSIDE_LOCAL } else { 0 };
    let inside = if inside_local { frontend::INSIDE_LOCAL } else { 0 };
    let bare = ServiceKey { addr: addresses.cluster, port: 0, proto: 0, pad: 0 };
    let mut frontends = vec![(key(addresses.cluster, port.port), inside), (bare, frontend::ADDRESS)];
    let external = addresses.external.iter().map(|a| (key(*a, port.port), outside));
    let node_port = port.node_port.map(|p| (key(A::ANY, p), outside | frontend::NODE_PORT));
    for frontend in external.chain(node_port) {
        if frontends.iter().all(|(known, _)| *known != frontend.0) {
            frontends.push(frontend);
        }
    }
    frontends
}

/// Address and port of a key, for messages.
pub(crate) fn shown<A: Net>(key: &ServiceKey<A>) -> (IpAddr, u16) {
    (key.addr.ip(), u16::from_be(key.port))
}
