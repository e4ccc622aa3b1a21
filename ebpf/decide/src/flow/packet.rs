//! What the packet path looks at, and what it says.

use berth_ebpf_abi::{Addr, Begun, Flow, LocalPod, Tuple};

/// Where a packet is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// It came in by a device that leads out of the node.
    Uplink,
    /// A pod of this node sent it.
    Pod,
    /// The node's stack sends it out, to a pod or by an uplink.
    Egress,
}

/// TCP flags that matter here, as in byte 13 of the header.
pub mod tcp {
    /// The sender is done.
    pub const FIN: u8 = 1;
    /// A connection begins.
    pub const SYN: u8 = 1 << 1;
    /// The connection is no more.
    pub const RST: u8 = 1 << 2;
    /// Not the first segment.
    pub const ACK: u8 = 1 << 4;
}

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// What a packet is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// A whole datagram or segment.
    #[default]
    Whole,
    /// The first fragment: it carries the ports that the rest lacks. With the datagram's identification.
    First(u32),
    /// Any other fragment: the tuple's ports are 0.
    Later(u32),
    /// An ICMP error about another packet. The tuple is that packet's, **turned round**: so it is the tuple of the
    /// direction in which the error travels.
    Error,
}

/// A parsed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packet<A> {
    /// Addresses, ports and protocol; ports are 0 where the protocol has none.
    pub tuple: Tuple<A>,
    /// See [`tcp`]; 0 for other protocols.
    pub tcp_flags: u8,
    /// Whole, fragment or error.
    pub part: Part,
    /// The device it is met on.
    pub ifindex: u32,
}

/// Why a packet is dropped; the numbers are counters' (`berth_ebpf_abi::count::PACKET_DROPPED`).
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// For a Service whose policy leaves no endpoint, or an address of the Service ranges that nobody has.
    Service = 0,
    /// A fragment for a Service, of a datagram whose first fragment was not seen.
    Fragment = 1,
    /// Every port tried for its connection is taken.
    Ports = 2,
    /// It needs masquerading and the node has no address for that.
    Address = 3,
    /// A Service's address would have left the node.
    Leak = 4,
    /// A connection begins, and those of its class are all in use.
    Full = 5,
    /// A pod sent it under an address that is not its own.
    Forged = 6,
}

/// How a translated packet goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// Straight into a pod of this node.
    Pod(LocalPod),
    /// Out by the device and to the neighbour that the routes name; by this device where they name none, if not 0.
    Neighbour(u32),
    /// The node's stack routes it.
    Stack,
}

/// [`Forwarding`] whose pod is elsewhere: in the kernel a verdict in registers is copied at every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// See [`Forwarding::Pod`].
    Pod,
    /// See [`Forwarding::Neighbour`].
    Neighbour(u32),
    /// See [`Forwarding::Stack`].
    Stack,
}

impl NextHop {
    /// With that pod.
    #[inline(always)]
    pub(super) fn with(self, pod: LocalPod) -> Forwarding {
        match self {
            NextHop::Pod => Forwarding::Pod(pod),
            NextHop::Neighbour(ifindex) => Forwarding::Neighbour(ifindex),
            NextHop::Stack => Forwarding::Stack,
        }
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours.
    Pass,
    /// It vanishes.
    Drop(Dropped),
    /// It vanishes, and its sender hears "port unreachable".
    Reject,
    /// Unchanged, straight into a pod of this node.
    Forward(LocalPod),
    /// With the addresses and ports of [`FlowContext::to`].
    Translate(Forwarding),
}

/// What a judgement works on. It has a place of its own, for in the kernel a stack has 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowContext<A> {
    /// The packet. A fragment gets its ports from the first one's.
    pub packet: Packet<A>,
    /// The entry of its direction.
    pub(super) entry: Flow<A>,
    /// The key of the other direction.
    pub(super) back: Tuple<A>,
    /// The entry of the other direction.
    pub(super) other: Flow<A>,
    /// A key and an entry of somebody else's.
    pub(super) theirs: (Tuple<A>, Flow<A>),
    /// The connection that may have to go.
    pub(super) oldest: Begun<A>,
    /// The entry of its other direction.
    pub(super) spare: Flow<A>,
    /// [`berth_ebpf_abi::backend`] of what a new connection was given.
    pub(super) backend: u16,
    /// [`berth_ebpf_abi::frontend`] by which it came.
    pub(super) frontend: u32,
    /// A pod sent the packet, and it may go past the stack ([`berth_ebpf_abi::local_pod::DIRECT`]).
    pub(super) direct: bool,
    /// The first port tried is the client's own.
    pub(super) keep: bool,
    /// The other direction's entry is written.
    pub(super) claimed: bool,
}

impl<A: Addr> FlowContext<A> {
    /// What a translated packet's addresses and ports become.
    #[inline(always)]
    pub fn to(&self) -> &Tuple<A> {
        &self.entry.to
    }
}

/// The tuple of what comes back.
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

/// Whether one is the other turned round.
#[inline(always)]
pub(super) fn is_reverse<A: Addr>(one: &Tuple<A>, other: &Tuple<A>) -> bool {
    one.src == other.dst
        && one.dst == other.src
        && one.src_port == other.dst_port
        && one.dst_port == other.src_port
        && one.proto == other.proto
}
