//! `berth trace`: runs the decision core over the pinned maps for one connection or datagram.
//!
//! For a socket of a pod or of the node the decision is the one at its call. For clients outside,
//! and for pods whose sockets have no hooks, it is the one for the first packet. Nothing is written
//! to the maps.

mod page;
mod source;
mod steps;
mod verdict;

pub(crate) use page::Page;
pub(crate) use source::{AddressKind, Source, find};

use super::{family::MapFamily, pinned::Pinned};
use berth_ebpf_abi::{Client, LocalPod, ServiceKey, Tuple};
use berth_ebpf_decide::{
    ClientLocation, SocketClient, Verdict, decide,
    flow::{self, FlowContext, FlowMaps, Packet, PacketHook, Sockets, TCP, UDP, decide_packet, tcp},
    is_host, socket_client,
    trace::{Step, Trace},
};
use berth_ebpf_loader::{Datapath, Error};
use std::net::SocketAddr;

/// Source port of a traced packet, where the query has none.
const SOURCE_PORT: u16 = 40_000;

/// The connection to be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query<A> {
    pub(crate) client: QueryClient<A>,
    pub(crate) dst: A,
    /// In host byte order.
    pub(crate) dst_port: u16,
    pub(crate) udp: bool,
}

/// The client of a traced connection, in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryClient<A> {
    /// A socket of this node or of one of its pods.
    Socket {
        /// The pod's address; [`berth_ebpf_abi::Addr::ANY`] for the node.
        addr: A,
        /// The cookie of its network namespace and the entry of the `CLIENT` map for it.
        client: Option<(u64, Client)>,
    },
    /// A client outside of the node.
    Outside {
        /// Its address.
        addr: A,
        /// Its source port in host byte order.
        port: Option<u16>,
    },
}

/// The decision for a query, with the map lookups that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traced<A> {
    pub(crate) steps: Vec<Step<A>>,
    pub(crate) end: End<A>,
}

/// The device by which a packet of the node leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Egress {
    pub(crate) device: String,
    /// Whether our egress program is attached to it.
    pub(crate) hooked: bool,
    /// Whether that program drops the packet.
    pub(crate) drops: bool,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End<A> {
    /// The verdict at the socket's call, and, where that passes, the device by which its packets
    /// leave the node.
    Socket(Verdict<A>, Option<Egress>),
    /// The verdict for the first packet: as it was sent, and, where translated, what it becomes.
    Packet { hook: PacketHook, sent: Tuple<A>, verdict: flow::PacketVerdict, to: Tuple<A> },
}

impl<A> End<A> {
    /// Whether the connection is neither refused nor dropped.
    pub(crate) fn passes(&self) -> bool {
        match self {
            End::Socket(Verdict::To(_), _) => true,
            End::Socket(Verdict::Reject(_), _) => false,
            End::Socket(_, Some(egress)) => !egress.drops,
            End::Socket(verdict, None) => matches!(verdict, Verdict::Pass),
            End::Packet { verdict, .. } => {
                !matches!(verdict, flow::PacketVerdict::Drop(_) | flow::PacketVerdict::Reject)
            }
        }
    }
}

/// Decides as the eBPF programs do.
pub(crate) fn run<A: MapFamily, M: FlowMaps<A> + Sockets<A>>(maps: &M, query: &Query<A>) -> Traced<A> {
    let trace = Trace::new(maps);
    let end = match query.client {
        QueryClient::Outside { addr, port } => packet(&trace, PacketHook::Uplink, addr, port, query),
        QueryClient::Socket { addr, client } => {
            let cookie = client.map_or(0, |(cookie, _)| cookie);
            match socket_client::<A>(cookie, client.map(|(_, client)| client)) {
                SocketClient::LeftAlone => packet(&trace, PacketHook::Pod, addr, None, query),
                SocketClient::At(from) => End::Socket(socket(&trace, from, query), None),
            }
        }
    };
    Traced { steps: trace.steps(), end }
}

fn proto<A>(query: &Query<A>) -> u8 {
    if query.udp { UDP } else { TCP }
}

fn socket<A: MapFamily, M: FlowMaps<A> + Sockets<A>>(
    maps: &M,
    from: ClientLocation<A>,
    query: &Query<A>,
) -> Verdict<A> {
    let key = ServiceKey { addr: query.dst, port: query.dst_port.to_be(), proto: proto(query), pad: 0 };
    decide(maps, &key, from)
}

fn packet<A: MapFamily, M: FlowMaps<A> + Sockets<A>>(
    maps: &M,
    hook: PacketHook,
    src: A,
    src_port: Option<u16>,
    query: &Query<A>,
) -> End<A> {
    let mut context = FlowContext::default();
    let sent = Tuple {
        src,
        dst: query.dst,
        src_port: src_port.unwrap_or(SOURCE_PORT).to_be(),
        dst_port: query.dst_port.to_be(),
        proto: proto(query),
        pad: [0; 3],
    };
    let mut pod = LocalPod::default();
    let ifindex = if hook == PacketHook::Pod && maps.take_pod(&src, &mut pod) { pod.ifindex } else { 0 };
    let tcp_flags = if query.udp { 0 } else { tcp::SYN };
    context.packet = Packet { tuple: sent, tcp_flags, ifindex, ..Packet::default() };
    let verdict = decide_packet(maps, hook, &mut context);
    End::Packet { hook, sent, verdict, to: *context.to() }
}

/// [`run`] over the pinned maps. `now_s`: CLOCK_MONOTONIC in seconds. `egress_device`: the device
/// by which the node's packets leave, and whether our egress program is attached to it.
pub(crate) fn pinned<A: MapFamily>(
    datapath: &Datapath,
    now_s: u32,
    query: &Query<A>,
    egress_device: Option<(String, bool)>,
) -> Result<Traced<A>, Error> {
    let maps = Pinned::new(datapath, now_s)?;
    let mut traced = run(&maps, query);
    // The egress program may still drop packets of a call that the socket hook passed.
    if let (Some((device, hooked)), QueryClient::Socket { client, addr }) = (egress_device, query.client)
        && client.is_none_or(|(_, client)| is_host(client.flags))
        && let End::Socket(Verdict::Pass, egress) = &mut traced.end
    {
        let at_device = hooked.then(|| packet(&maps, PacketHook::Egress, addr, None, query));
        *egress = Some(Egress { device, hooked, drops: at_device.is_some_and(|end| !end.passes()) });
    }
    maps.finish()?;
    Ok(traced)
}

/// The query in one address family; `None` where the source has no address of that family.
pub(crate) fn query<A: MapFamily>(
    source: &Source,
    dst: SocketAddr,
    udp: bool,
    clients: &[(u64, Client)],
) -> Option<Query<A>> {
    let client = match source {
        Source::Node => QueryClient::Socket {
            addr: A::ANY,
            client: clients.iter().find(|(_, c)| is_host(c.flags)).copied(),
        },
        Source::Pod { ips } => {
            let addr = ips.iter().find_map(|ip| A::of(*ip))?;
            let client = clients.iter().find(|(_, client)| A::of_client(client) == addr).copied();
            QueryClient::Socket { addr, client }
        }
        Source::Outside { ip, port } => QueryClient::Outside { addr: A::of(*ip)?, port: *port },
    };
    Some(Query { client, dst: A::of(dst.ip())?, dst_port: dst.port(), udp })
}
