//! The differences between the tables of IPv4 and IPv6.

use berth_ebpf_abi::{
    Affinity, AffinityKey, Chunk, ChunkKey, Config, Flow, LocalPod, MemberKey, NodeAddress, Prefix, Service,
    ServiceKey, Tuple, V4, V6, maps,
};
use berth_ebpf_decide::{Family, flow::Class};
use berth_ebpf_loader::{Datapath, Map, Plain};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The element of a class of connections.
pub(crate) fn by_class<T: Copy>([udp, unassured, assured]: [T; 3], class: Class) -> T {
    match class {
        Class::Udp => udp,
        Class::Unassured => unassured,
        Class::Assured => assured,
    }
}

/// The pinned maps of one family.
pub(crate) struct FamilyMaps<'d, A> {
    pub(crate) service: &'d Map<ServiceKey<A>, Service<A>>,
    pub(crate) chunk: &'d Map<ChunkKey, Chunk<A>>,
    pub(crate) member: &'d Map<MemberKey<A>, u32>,
    pub(crate) affinity: &'d Map<AffinityKey<A>, Affinity<A>>,
    pub(crate) node: &'d Map<A, NodeAddress>,
    pub(crate) pod: &'d Map<A, LocalPod>,
    /// In the order of [`Class`].
    pub(crate) flows: [&'d Map<Tuple<A>, Flow<A>>; 3],
}

/// The names of one family's maps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapNames {
    pub(crate) service: &'static str,
    pub(crate) chunk: &'static str,
    pub(crate) member: &'static str,
    pub(crate) affinity: &'static str,
    pub(crate) node: &'static str,
    pub(crate) pod: &'static str,
    /// In the order of [`Class`].
    pub(crate) flows: [&'static str; 3],
    pub(crate) fragment: &'static str,
}

/// An address family: conversion of its addresses to the standard library's, and its maps.
pub(crate) trait Net: Family + Plain {
    /// Whether this is IPv6.
    const V6: bool;
    /// The names of its maps.
    const MAPS: MapNames;

    /// Converts an address; `None` where it is of the other family.
    fn of(ip: IpAddr) -> Option<Self>;
    /// Converts back.
    fn ip(self) -> IpAddr;
    /// Its pinned maps.
    fn maps(datapath: &Datapath) -> FamilyMaps<'_, Self>;
    /// The Service ranges of the node's configuration.
    fn ranges(config: &Config) -> [Prefix; 2];
    /// The source address of masqueraded connections.
    fn masquerade(config: &Config) -> Self;
}

/// The socket address of an address and a port in network byte order.
pub(crate) fn socket<A: Net>(addr: A, port: u16) -> SocketAddr {
    SocketAddr::new(addr.ip(), u16::from_be(port))
}

impl Net for V4 {
    const V6: bool = false;
    const MAPS: MapNames = MapNames {
        service: maps::SERVICE4,
        chunk: maps::CHUNK4,
        member: maps::MEMBER4,
        affinity: maps::AFFINITY4,
        node: maps::NODE4,
        pod: maps::POD4,
        flows: [maps::UDP4, maps::UNASSURED4, maps::ASSURED4],
        fragment: maps::FRAGMENT4,
    };

    fn of(ip: IpAddr) -> Option<V4> {
        match ip {
            IpAddr::V4(ip) => Some(u32::from_ne_bytes(ip.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }

    fn maps(d: &Datapath) -> FamilyMaps<'_, V4> {
        FamilyMaps {
            service: &d.service4,
            chunk: &d.chunk4,
            member: &d.member4,
            affinity: &d.affinity4,
            node: &d.node4,
            pod: &d.pod4,
            flows: [&d.udp4, &d.unassured4, &d.assured4],
        }
    }

    fn ranges(config: &Config) -> [Prefix; 2] {
        config.service4
    }

    fn masquerade(config: &Config) -> V4 {
        config.masquerade4
    }
}

impl Net for V6 {
    const V6: bool = true;
    const MAPS: MapNames = MapNames {
        service: maps::SERVICE6,
        chunk: maps::CHUNK6,
        member: maps::MEMBER6,
        affinity: maps::AFFINITY6,
        node: maps::NODE6,
        pod: maps::POD6,
        flows: [maps::UDP6, maps::UNASSURED6, maps::ASSURED6],
        fragment: maps::FRAGMENT6,
    };

    fn of(ip: IpAddr) -> Option<V6> {
        let IpAddr::V6(ip) = ip else { return None };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.octets();
        Some([[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes))
    }

    fn ip(self) -> IpAddr {
        let mut octets = [0; 16];
        let words = self.map(u32::to_ne_bytes);
        octets.iter_mut().zip(words.as_flattened()).for_each(|(to, from)| *to = *from);
        Ipv6Addr::from(octets).into()
    }

    fn maps(d: &Datapath) -> FamilyMaps<'_, V6> {
        FamilyMaps {
            service: &d.service6,
            chunk: &d.chunk6,
            member: &d.member6,
            affinity: &d.affinity6,
            node: &d.node6,
            pod: &d.pod6,
            flows: [&d.udp6, &d.unassured6, &d.assured6],
        }
    }

    fn ranges(config: &Config) -> [Prefix; 2] {
        config.service6
    }

    fn masquerade(config: &Config) -> V6 {
        config.masquerade6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_byte_order_of_a_packet() {
        for (text, first) in [("10.96.0.1", 10), ("fd00:96::1:2", 0xfd)] {
            let ip: IpAddr = text.parse().unwrap();
            match (V4::of(ip), V6::of(ip)) {
                (Some(four), None) => assert_eq!((four.ip(), four.to_ne_bytes()[0]), (ip, first)),
                (None, Some(six)) => assert_eq!((six.ip(), six[0].to_ne_bytes()[0]), (ip, first)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            socket(V4::of("1.2.3.4".parse().unwrap()).unwrap(), 80_u16.to_be()).to_string(),
            "1.2.3.4:80"
        );
    }
}
