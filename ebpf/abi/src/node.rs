//! What the programs know of their node: its addresses, its pods, its configuration.

use crate::{V4, V6};

/// The host or a pod as a client, found by the cookie of its network namespace. A namespace without an entry is nobody's:
/// a container of somebody else, a pod that is just being started. Its clients are served as those from outside are.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Client {
    /// Its IPv4 address; 0: none.
    pub v4: V4,
    /// Its IPv6 address; zeros: none.
    pub v6: V6,
    /// [`client::HOST`] or a pod's [`local_pod`].
    pub flags: u32,
}

/// Flags of [`Client::flags`] beyond a pod's.
pub mod client {
    /// The host's own network namespace: node ports answer at its loopback, and it has no address here.
    pub const HOST: u32 = 1 << 31;
}

/// Flags of a local pod.
pub mod local_pod {
    /// Its sockets are left alone: Services reach it packet by packet (a sidecar proxy must see virtual addresses).
    pub const NO_SOCKET_HOOKS: u32 = 1;
    /// `berth-cni` attached it, alone: no rule of the host's stack is meant for what it sends or gets, so packets go past the
    /// stack. Others' plugins may have put rules there (network policies, firewalls, queues), or joined pods by a bridge.
    pub const DIRECT: u32 = 1 << 1;
    /// Its device sends under its own addresses only.
    pub const OWN_SOURCE: u32 = 1 << 2;
}

/// A pod of this node as a destination.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocalPod {
    /// The host's side of its veth pair.
    pub ifindex: u32,
    /// [`local_pod`].
    pub flags: u32,
    /// Hardware address of the pod's side.
    pub mac: [u8; 6],
    /// Hardware address of the host's side.
    pub host_mac: [u8; 6],
}

/// A pod of this node as a sender, found by the index of its veth pair's host side.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodDevice {
    /// Its IPv4 address; 0: none.
    pub v4: V4,
    /// Its IPv6 address; zeros: none.
    pub v6: V6,
    /// [`local_pod`].
    pub flags: u32,
}

/// One of the node's own addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeAddress {
    /// 1: NodePorts answer here (`--nodeport-addresses`); 0: the node's, but without NodePorts.
    pub node_ports: u32,
}

/// An address range, as a mask over the packet's words (network order, like [`crate::V6`]; IPv4 uses the first word).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefix {
    /// The network.
    pub net: V6,
    /// The mask; a prefix with an all-zero mask and an all-zero net is unused.
    pub mask: V6,
}

/// Flags of [`Config::flags`].
pub mod config {
    /// Masquerade every connection to a Service, also of local pods (`masqueradeAll`).
    pub const MASQUERADE_ALL: u32 = 1;
    /// Hand packets to pods and neighbours directly; else the stack routes them.
    pub const REDIRECT: u32 = 1 << 1;
}

/// What the programs are told at run time.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// See [`config`].
    pub flags: u32,
    /// First and last port that masqueraded connections take, host order.
    pub masquerade_ports: [u16; 2],
    /// The node's address that masqueraded IPv4 connections take; 0: none.
    pub masquerade4: V4,
    /// The same for IPv6.
    pub masquerade6: V6,
    /// Service ranges: an address in here without an entry is no Service's and is dropped.
    pub service4: [Prefix; 2],
    /// The same for IPv6.
    pub service6: [Prefix; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_are_fixed_and_without_padding() {
        assert_eq!(size_of::<Client>(), 24);
        assert_eq!(size_of::<LocalPod>(), 20);
        assert_eq!(size_of::<PodDevice>(), 24);
        assert_eq!(size_of::<NodeAddress>(), 4);
        assert_eq!(size_of::<Config>(), 28 + 4 * 32);
    }
}
