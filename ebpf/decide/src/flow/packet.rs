//! Input and result of packet decisions.

use berth_ebpf_abi::{Addr, Begun, Flow, LocalPod, Tuple};

/// Place where a packet is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketHook {
    /// Ingress of a device that leads out of the node.
    Uplink,
    /// Ingress of a pod's device: the pod sent the packet.
    Pod,
    /// Egress: the node's stack sends the packet to a pod or by an uplink.
    Egress,
}

/// The relevant TCP flags, as in byte 13 of the header.
pub mod tcp {
    /// The sender has no more data.
    pub const FIN: u8 = 1;
    /// The segment starts a connection.
    pub const SYN: u8 = 1 << 1;
    /// The connection is reset.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement is valid, as in all but the first segment.
    pub const ACK: u8 = 1 << 4;
}

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// Kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// A whole datagram or segment.
    #[default]
    Whole,
    /// First fragment with the datagram's identification. Contains the ports of the datagram.
    First(u32),
    /// Later fragment with the datagram's identification. The tuple's ports are 0.
    Later(u32),
    /// An ICMP error about another packet. The tuple is the **reverse** of that packet's tuple: it is the
    /// tuple of the direction in which the error travels.
    Error,
}

/// A parsed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packet<A> {
    /// Addresses, ports and protocol; ports are 0 for a protocol without ports.
    pub tuple: Tuple<A>,
    /// Bits of [`tcp`]; 0 for other protocols.
    pub tcp_flags: u8,
    /// Whole packet, fragment or error.
    pub part: Part,
    /// Index of the device at which the packet is seen.
    pub ifindex: u32,
}

/// Reasons to drop a packet, numbered as counters (`berth_ebpf_abi::count::PACKET_DROPPED`).
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// The Service's policy leaves no endpoint, or no Service has the address of the Service range.
    Service = 0,
    /// A later fragment for a Service, without the ports of a first fragment.
    Fragment = 1,
    /// All source ports that were tried are taken.
    Ports = 2,
    /// The packet needs masquerade, and the node has no address for it.
    Address = 3,
    /// The packet would leave the node with a Service's address.
    Leak = 4,
    /// The packet starts a connection, and its class is full of flows in use.
    Full = 5,
    /// A pod sent the packet with a foreign source address.
    Forged = 6,
}

/// Next hop of a translated packet, with the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// Directly into a pod of this node.
    Pod(LocalPod),
    /// To the neighbour that the routes name; without a route, by this device if not 0.
    Neighbour(u32),
    /// The node's stack routes the packet.
    Stack,
}

/// [`Forwarding`] without the pod, because the kernel's compiler copies a verdict in registers often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// As [`Forwarding::Pod`].
    Pod,
    /// As [`Forwarding::Neighbour`].
    Neighbour(u32),
    /// As [`Forwarding::Stack`].
    Stack,
}

impl NextHop {
    /// Adds the pod.
    #[inline(always)]
    pub(super) fn with(self, pod: LocalPod) -> Forwarding {
        match self {
            NextHop::Pod => Forwarding::Pod(pod),
            NextHop::Neighbour(ifindex) => Forwarding::Neighbour(ifindex),
            NextHop::Stack => Forwarding::Stack,
        }
    }
}

/// Verdict about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketVerdict {
    /// The packet continues unchanged.
    Pass,
    /// The packet is dropped.
    Drop(Dropped),
    /// The packet is dropped, and its sender gets "port unreachable".
    Reject,
    /// The packet goes unchanged to a pod of this node.
    Forward(LocalPod),
    /// The packet gets the addresses and ports of [`FlowContext::to`].
    Translate(Forwarding),
}

/// Flow context: working memory of a decision, outside the stack, which has 512 bytes in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowContext<A> {
    /// The packet. A later fragment gets the ports of the first one.
    pub packet: Packet<A>,
    /// Entry of the packet's direction.
    pub(super) entry: Flow<A>,
    /// Key of the other direction.
    pub(super) back: Tuple<A>,
    /// Entry of the other direction.
    pub(super) other: Flow<A>,
    /// Key and entry of another flow.
    pub(super) theirs: (Tuple<A>, Flow<A>),
    /// The oldest flow of a class, which may be evicted.
    pub(super) oldest: Begun<A>,
    /// Entry of the oldest flow's other direction.
    pub(super) spare: Flow<A>,
    /// [`berth_ebpf_abi::backend`] of the selected backend.
    pub(super) backend: u16,
    /// [`berth_ebpf_abi::frontend`] that the client dialled.
    pub(super) frontend: u32,
    /// Whether the packet's pod may bypass the stack ([`berth_ebpf_abi::local_pod::DIRECT`]).
    pub(super) direct: bool,
    /// Whether the client's own port is tried first.
    pub(super) keep: bool,
    /// Whether the entry of the other direction is written.
    pub(super) claimed: bool,
}

impl<A: Addr> FlowContext<A> {
    /// Addresses and ports of the packet after translation.
    #[inline(always)]
    pub fn to(&self) -> &Tuple<A> {
        &self.entry.to
    }
}

/// The reverse tuple, which the answer carries.
#[inline(always)]
pub fn reverse<A: Copy>(tuple: &Tuple<A>) -> Tuple<A> {
    Tuple {
        src: tuple.dst,
        dst: tuple.src,
        src_port: tuple.dst_port,
        dst_port: tuple.src_port,
        proto: tuple.proto,
        pad: tuple.pad,
    }
}

/// Whether one tuple is the reverse of the other.
#[inline(always)]
pub(super) fn is_reverse<A: Addr>(one: &Tuple<A>, other: &Tuple<A>) -> bool {
    one.src == other.dst
        && one.dst == other.src
        && one.src_port == other.dst_port
        && one.dst_port == other.src_port
        && one.proto == other.proto
}
