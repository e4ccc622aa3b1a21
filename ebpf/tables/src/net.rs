//! Addresses of one family: conversion between the tables and the standard library, and the family's tables.

use berth_ebpf_abi::{Addr, V4, V6, maps};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Names of one family's Service tables.
#[derive(Debug, Clone, Copy)]
pub struct TableNames {
    /// Service values by frontend.
    pub service: &'static str,
    /// Chunks of backends.
    pub chunk: &'static str,
    /// Sets of the backends that a client with affinity may keep, by address and port.
    pub member: &'static str,
}

/// Addresses of one family, with conversion from and to the standard library's.
pub trait Net: Addr + Ord + Send + Sync {
    /// Whether the family is IPv6.
    const V6: bool;
    /// The names of the family's Service tables.
    const TABLES: TableNames;

    /// The address, where it belongs to this family. A v4-mapped address belongs to IPv6.
    fn of(ip: IpAddr) -> Option<Self>;

    /// The address as the standard library's type.
    fn ip(self) -> IpAddr;
}

/// The socket address of an address and a port in network byte order.
pub fn socket<A: Net>(addr: A, port: u16) -> SocketAddr {
    SocketAddr::new(addr.ip(), u16::from_be(port))
}

impl Net for V4 {
    const V6: bool = false;
    const TABLES: TableNames =
        TableNames { service: maps::SERVICE4, chunk: maps::CHUNK4, member: maps::MEMBER4 };

    fn of(ip: IpAddr) -> Option<V4> {
        match ip {
            IpAddr::V4(ip) => Some(u32::from_ne_bytes(ip.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }
}

impl Net for V6 {
    const V6: bool = true;
    const TABLES: TableNames =
        TableNames { service: maps::SERVICE6, chunk: maps::CHUNK6, member: maps::MEMBER6 };

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_byte_order_of_a_packet() {
        let four: IpAddr = "10.96.0.1".parse().unwrap();
        assert_eq!(V4::of(four).unwrap().to_ne_bytes(), [10, 96, 0, 1]);
        assert_eq!(V4::of(four).unwrap().ip(), four);
        let six: IpAddr = "fd00:96::1:2".parse().unwrap();
        assert_eq!(V6::of(six).unwrap()[0].to_ne_bytes(), [0xfd, 0, 0, 0x96]);
        assert_eq!(V6::of(six).unwrap().ip(), six);
        assert!(V4::of(six).is_none() && V6::of(four).is_none());
    }

    #[test]
    fn a_socket_address_takes_its_port_in_network_byte_order() {
        for text in ["1.2.3.4:80", "[fd00:96::1:2]:53"] {
            let at: SocketAddr = text.parse().unwrap();
            let port = at.port().to_be();
            let got = match (V4::of(at.ip()), V6::of(at.ip())) {
                (Some(four), None) => socket(four, port),
                (None, Some(six)) => socket(six, port),
                other => panic!("{other:?}"),
            };
            assert_eq!(got, at);
        }
    }
}
