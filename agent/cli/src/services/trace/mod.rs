//! `berth trace`: what becomes of a connection or datagram, by the decision core over the pinned maps.
//!
//! A pod's or the node's own socket is decided at its call. What comes from outside, and from pods whose sockets are
//! left alone, is decided packet by packet: here the first packet. Nothing is written.

mod show;
mod source;

pub(crate) use show::Page;
pub(crate) use source::{Is, Source, find};

use super::{family::Net, pinned::Pinned};
use berth_ebpf_abi::{Client, LocalPod, ServiceKey, Tuple};
use berth_ebpf_decide::{
    ClientLocation, SocketClient, Verdict, decide,
    flow::{self, FlowContext, FlowMaps, Hook, Packet, Sockets, TCP, UDP, decide_packet, tcp},
    is_host, socket_client,
    trace::{Step, Trace},
};
use berth_ebpf_loader::{Datapath, Error};
use std::net::SocketAddr;

/// The source port of a packet, where none was asked for.
const SOURCE_PORT: u16 = 40_000;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question<A> {
    pub(crate) from: ClientIdentity<A>,
    pub(crate) dst: A,
    /// Host order.
    pub(crate) dst_port: u16,
    pub(crate) udp: bool,
}

/// ClientIdentity dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientIdentity<A> {
    /// A socket of this node, or of a pod of it, with the entry of its network namespace.
    Socket {
        /// The pod's address; [`berth_ebpf_abi::Addr::ANY`] for the node.
        addr: A,
        /// Cookie and entry.
        client: Option<(u64, Client)>,
    },
    /// Any other, by its address and maybe port (host order).
    Outside {
        /// Address.
        addr: A,
        /// Port.
        port: Option<u16>,
    },
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traced<A> {
    pub(crate) steps: Vec<Step<A>>,
    pub(crate) end: End<A>,
}

/// The device by which a packet of the node leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Egress {
    pub(crate) device: String,
    /// Whether our program sits there.
    pub(crate) hooked: bool,
    /// Whether it drops the packet.
    pub(crate) drops: bool,
}

/// What was said in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End<A> {
    /// At the socket's call. What it leaves as it is may meet a program where it leaves the node.
    Socket(Verdict<A>, Option<Egress>),
    /// For the first packet: as it came, the verdict, what it becomes where it is translated.
    Packet { hook: Hook, sent: Tuple<A>, verdict: flow::Verdict, to: Tuple<A> },
}

impl<A> End<A> {
    /// Whether the client gets through to somewhere.
    pub(crate) fn passes(&self) -> bool {
        match self {
            End::Socket(Verdict::To(_), _) => true,
            End::Socket(Verdict::Reject(_), _) => false,
            End::Socket(_, Some(egress)) => !egress.drops,
            End::Socket(verdict, None) => matches!(verdict, Verdict::Pass),
            End::Packet { verdict, .. } => !matches!(verdict, flow::Verdict::Drop(_) | flow::Verdict::Reject),
        }
    }
}

/// Decides as the programs do.
pub(crate) fn run<A: Net, M: FlowMaps<A> + Sockets<A>>(maps: &M, asked: &Question<A>) -> Traced<A> {
    let trace = Trace::new(maps);
    let end = match asked.from {
        ClientIdentity::Outside { addr, port } => packet(&trace, Hook::Uplink, addr, port, asked),
        ClientIdentity::Socket { addr, client } => {
            let cookie = client.map_or(0, |(cookie, _)| cookie);
            match socket_client::<A>(cookie, client.map(|(_, client)| client)) {
                SocketClient::LeftAlone => packet(&trace, Hook::Pod, addr, None, asked),
                SocketClient::At(from) => End::Socket(socket(&trace, from, asked), None),
            }
        }
    };
    Traced { steps: trace.steps(), end }
}

fn proto<A>(asked: &Question<A>) -> u8 {
    if asked.udp { UDP } else { TCP }
}

fn socket<A: Net, M: FlowMaps<A> + Sockets<A>>(
    maps: &M,
    from: ClientLocation<A>,
    asked: &Question<A>,
) -> Verdict<A> {
    let key = ServiceKey { addr: asked.dst, port: asked.dst_port.to_be(), proto: proto(asked), pad: 0 };
    decide(maps, &key, from)
}

fn packet<A: Net, M: FlowMaps<A> + Sockets<A>>(
    maps: &M,
    hook: Hook,
    src: A,
    src_port: Option<u16>,
    asked: &Question<A>,
) -> End<A> {
    let mut room = FlowContext::default();
    let sent = Tuple {
        src,
        dst: asked.dst,
        src_port: src_port.unwrap_or(SOURCE_PORT).to_be(),
        dst_port: asked.dst_port.to_be(),
        proto: proto(asked),
        pad: [0; 3],
    };
    let mut pod = LocalPod::default();
    let ifindex = if hook == Hook::Pod && maps.take_pod(&src, &mut pod) { pod.ifindex } else { 0 };
    let tcp_flags = if asked.udp { 0 } else { tcp::SYN };
    room.packet = Packet { tuple: sent, tcp_flags, ifindex, ..Packet::default() };
    let verdict = decide_packet(maps, hook, &mut room);
    End::Packet { hook, sent, verdict, to: *room.to() }
}

/// The same over the kernel's maps. `now_s`: CLOCK_MONOTONIC in seconds. `leaves`: by which device the node's packets
/// leave, and whether our program sits there.
pub(crate) fn pinned<A: Net>(
    datapath: &Datapath,
    now_s: u32,
    asked: &Question<A>,
    leaves: Option<(String, bool)>,
) -> Result<Traced<A>, Error> {
    let maps = Pinned::new(datapath, now_s)?;
    let mut traced = run(&maps, asked);
    // What is dropped, the host's call is refused.
    if let (Some((device, hooked)), ClientIdentity::Socket { client, addr }) = (leaves, asked.from)
        && client.is_none_or(|(_, client)| is_host(client.flags))
        && let End::Socket(Verdict::Pass, egress) = &mut traced.end
    {
        let meets = hooked.then(|| packet(&maps, Hook::Egress, addr, None, asked));
        *egress = Some(Egress { device, hooked, drops: meets.is_some_and(|end| !end.passes()) });
    }
    maps.finish()?;
    Ok(traced)
}

/// The question of one family; `None` where the source has no address of it.
pub(crate) fn question<A: Net>(
    source: &Source,
    dst: SocketAddr,
    udp: bool,
    clients: &[(u64, Client)],
) -> Option<Question<A>> {
    let from = match source {
        Source::Node => ClientIdentity::Socket {
            addr: A::ANY,
            client: clients.iter().find(|(_, c)| is_host(c.flags)).copied(),
        },
        Source::Pod { ips } => {
            let addr = ips.iter().find_map(|ip| A::of(*ip))?;
            let client = clients.iter().find(|(_, client)| A::of_client(client) == addr).copied();
            ClientIdentity::Socket { addr, client }
        }
        Source::Outside { ip, port } => ClientIdentity::Outside { addr: A::of(*ip)?, port: *port },
    };
    Some(Question { from, dst: A::of(dst.ip())?, dst_port: dst.port(), udp })
}
