//! Connections that are translated packet by packet.

/// A packet's addresses and ports as it arrives.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, network order; the identifier of an ICMP echo.
    pub src_port: u16,
    /// Destination port, network order.
    pub dst_port: u16,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// Always 0.
    pub pad: [u8; 3],
}

/// Flags of [`Flow::flags`].
pub mod flow {
    /// The entry of the answers, not of the client's own packets.
    pub const REPLY: u32 = 1;
    /// An answer was seen (in the entry of the answers).
    pub const ANSWERED: u32 = 1 << 1;
    /// The client's FIN was seen (in the entry of the client's packets).
    pub const FIN_CLIENT: u32 = 1 << 2;
    /// The server's FIN was seen (in the entry of the answers).
    pub const FIN_SERVER: u32 = 1 << 3;
    /// A reset was seen, in this direction.
    pub const RESET: u32 = 1 << 4;
    /// The source was masqueraded, so a port of the masquerade range is held.
    pub const MASQUERADE: u32 = 1 << 5;
    /// The connection is in use, in both entries (nf_conntrack's `ASSURED`). TCP: the handshake is done and neither
    /// both sides nor a reset ended it; the entries lie in a table of their own. UDP: a stream, that is it was answered
    /// and went on for more than two seconds.
    pub const ASSURED: u32 = 1 << 6;
}

/// What is done to the packets of one direction of a connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow<A> {
    /// What the packet's addresses and ports become; turned round it is the other direction's key.
    pub to: Tuple<A>,
    /// See [`flow`]. What a direction's packets showed stands in its own entry only; [`flow::MASQUERADE`] in both.
    pub flags: u32,
    /// [`crate::Service::id`].
    pub service: u32,
    /// [`crate::Service::generation`] in which the backend was last found in one of the Service's sets.
    pub generation: u32,
    /// Where answers leave: the device by which the client's first packet came; 0: the client is a pod of this node.
    pub ifindex: u32,
    /// The last packet of this direction, in seconds of CLOCK_MONOTONIC.
    pub seen_s: u32,
    /// Since when the connection is in this table, likewise; the same in both directions' entries.
    pub since_s: u32,
}

/// A connection's place in the order in which those of a table came. It is worth nothing once the connection has
/// another [`Flow::since_s`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Begun<A> {
    /// The key of one of its entries.
    pub key: Tuple<A>,
    /// [`Flow::since_s`].
    pub since_s: u32,
}

/// The fragments of one datagram.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The datagram's identification, network order (16 bits of it for IPv4).
    pub id: u32,
    /// `IPPROTO_*`.
    pub proto: u32,
}

/// The ports that only the first fragment carries.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FragmentPorts {
    /// Source port, network order.
    pub src_port: u16,
    /// Destination port, network order.
    pub dst_port: u16,
    /// When the first fragment came, in seconds of CLOCK_MONOTONIC.
    pub seen_s: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, V6};
    use core::mem::size_of;

    #[test]
    fn layouts_are_fixed_and_without_padding() {
        assert_eq!([size_of::<Tuple<V4>>(), size_of::<Tuple<V6>>()], [16, 40]);
        assert_eq!([size_of::<Flow<V4>>(), size_of::<Flow<V6>>()], [40, 64]);
        assert_eq!([size_of::<Begun<V4>>(), size_of::<Begun<V6>>()], [20, 44]);
        assert_eq!([size_of::<FragmentKey<V4>>(), size_of::<FragmentKey<V6>>()], [16, 40]);
        assert_eq!(size_of::<FragmentPorts>(), 8);
    }
}
