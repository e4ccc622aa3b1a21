//! State of the node for the programs: addresses, pods, configuration.

use crate::{V4, V6};

/// The host or a pod as a client, by the cookie of its network namespace. A namespace without an entry is a
/// foreign container or a pod that is just starting; its clients are served as clients from outside.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Client {
    /// IPv4 address of the client; 0 for none.
    pub v4: V4,
    /// IPv6 address of the client; zeros for none.
    pub v6: V6,
    /// [`client::HOST`] or a pod's [`local_pod`].
    pub flags: u32,
}

/// Flags of [`Client::flags`] beyond a pod's.
pub mod client {
    /// The host's network namespace: node ports answer at its loopback, and its entry has no address.
    pub const HOST: u32 = 1 << 31;
}

/// Flags of a local pod.
pub mod local_pod {
    /// The pod's sockets have no hooks; packets are translated (a sidecar proxy must see virtual addresses).
    pub const NO_SOCKET_HOOKS: u32 = 1;
    /// Only `berth-cni` attached the pod: no rule of the host's stack is meant for its packets, which bypass
    /// the stack. Other plugins may have installed rules (policies, firewalls, queues) or bridges.
    pub const DIRECT: u32 = 1 << 1;
    /// The pod's device may send with the pod's own source addresses only.
    pub const OWN_SOURCE: u32 = 1 << 2;
}

/// A pod of this node as a destination.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocalPod {
    /// Index of the host's end of the pod's veth pair.
    pub ifindex: u32,
    /// Bits of [`local_pod`].
    pub flags: u32,
    /// Hardware address of the pod's end.
    pub mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
}

/// A pod of this node as a sender, by the index of its veth pair's host end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodDevice {
    /// IPv4 address of the pod; 0 for none.
    pub v4: V4,
    /// IPv6 address of the pod; zeros for none.
    pub v6: V6,
    /// Bits of [`local_pod`].
    pub flags: u32,
}

/// One of the node's own addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeAddress {
    /// 1 if NodePorts answer at the address (`--nodeport-addresses`), else 0.
    pub node_ports: u32,
}

/// Address range as a mask over the packet's words (as [`crate::V6`]; IPv4 uses the first word).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefix {
    /// Network of the range.
    pub net: V6,
    /// Mask of the range. A prefix whose mask and network are all zeros is unused.
    pub mask: V6,
}

/// Flags of [`Config::flags`].
pub mod config {
    /// Masquerade every connection to a Service, also of local pods (`masqueradeAll`).
    pub const MASQUERADE_ALL: u32 = 1;
    /// Forward packets to pods and neighbours directly; without the flag the stack routes them.
    pub const REDIRECT: u32 = 1 << 1;
}

/// Configuration of the programs, written by the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// Bits of [`config`].
    pub flags: u32,
    /// First and last source port of masqueraded connections, in host order.
    pub masquerade_ports: [u16; 2],
    /// Source address of masqueraded IPv4 connections; 0 for none.
    pub masquerade4: V4,
    /// Source address of masqueraded IPv6 connections; zeros for none.
    pub masquerade6: V6,
    /// Service ranges: an address in them without an entry belongs to no Service and is dropped.
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
