//! Flows: connections that the packet programs translate.

/// Addresses and ports of a packet on arrival.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port in network order; for an ICMP echo the identifier.
    pub src_port: u16,
    /// Destination port in network order.
    pub dst_port: u16,
    /// Protocol, one of `IPPROTO_*`.
    pub proto: u8,
    /// Padding, always 0.
    pub pad: [u8; 3],
}

/// Flags of [`Flow::flags`].
pub mod flow {
    /// Set in the entry of the answers, unset in the entry of the client's packets.
    pub const REPLY: u32 = 1;
    /// An answer was seen. Set in the entry of the answers.
    pub const ANSWERED: u32 = 1 << 1;
    /// The client's FIN was seen. Set in the entry of the client's packets.
    pub const FIN_CLIENT: u32 = 1 << 2;
    /// The server's FIN was seen. Set in the entry of the answers.
    pub const FIN_SERVER: u32 = 1 << 3;
    /// A reset was seen in this direction.
    pub const RESET: u32 = 1 << 4;
    /// The source is masqueraded, so the flow holds a port of the masquerade range.
    pub const MASQUERADE: u32 = 1 << 5;
    /// The connection is in use; set in both entries (nf_conntrack's `ASSURED`). TCP: the handshake is done,
    /// and neither FINs of both sides nor a reset ended the connection; its entries are in a table of their
    /// own. UDP: the flow is a stream, which was answered and lasted for more than two seconds.
    pub const ASSURED: u32 = 1 << 6;
}

/// Translation of the packets of one direction of a connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow<A> {
    /// Addresses and ports after the translation; their reverse is the key of the other direction's entry.
    pub to: Tuple<A>,
    /// Bits of [`flow`]. Each bit is in the entry of its own direction; [`flow::MASQUERADE`] is in both.
    pub flags: u32,
    /// Service port of the flow ([`crate::Service::id`]).
    pub service: u32,
    /// Last [`crate::Service::generation`] in which the backend was found in one of the Service's sets.
    pub generation: u32,
    /// Device by which the client's first packet arrived and answers leave; 0 if the client is a local pod.
    pub ifindex: u32,
    /// Time of the last packet of this direction, in seconds of CLOCK_MONOTONIC.
    pub seen_s: u32,
    /// Time since when the connection is in this table, in seconds; the same in both entries.
    pub since_s: u32,
}

/// Place of a connection in a table's order of arrival. The place is invalid once the connection has another
/// [`Flow::since_s`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Begun<A> {
    /// Key of one of the connection's entries.
    pub key: Tuple<A>,
    /// [`Flow::since_s`] at the time of the placement.
    pub since_s: u32,
}

/// Key of the fragments of one datagram.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification of the datagram in network order (16 bits for IPv4).
    pub id: u32,
    /// Protocol, one of `IPPROTO_*`.
    pub proto: u32,
}

/// Ports of a datagram, which only its first fragment carries.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FragmentPorts {
    /// Source port in network order.
    pub src_port: u16,
    /// Destination port in network order.
    pub dst_port: u16,
    /// Arrival of the first fragment in seconds of CLOCK_MONOTONIC.
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
