//! Conversion of addresses between the model and the tables.

use berth_ebpf_abi::{Addr, V4, V6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of one family, with conversion from and to the standard library's.
pub trait Net: Addr + Ord + Send + Sync {
    /// Whether the family is IPv6.
    const V6: bool;

    /// The address, where it belongs to this family. A v4-mapped address belongs to IPv6.
    fn of(ip: IpAddr) -> Option<Self>;

    /// The address as the standard library's type.
    fn ip(self) -> IpAddr;
}

impl Net for V4 {
    const V6: bool = false;

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

    fn of(ip: IpAddr) -> Option<V6> {
        let IpAddr::V6(ip) = ip else { return None };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.octets();
        Some([[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes))
    }

    fn ip(self) -> IpAddr {
        let [a, b, c, d] = self.map(u32::to_ne_bytes);
        let mut octets = [0; 16];
        for (to, from) in octets.iter_mut().zip([a, b, c, d].as_flattened()) {
            *to = *from;
        }
        Ipv6Addr::from(octets).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_as_in_a_packet() {
        let four: IpAddr = "10.96.0.1".parse().unwrap();
        assert_eq!(V4::of(four).unwrap().to_ne_bytes(), [10, 96, 0, 1]);
        assert_eq!(V4::of(four).unwrap().ip(), four);
        let six: IpAddr = "fd00:96::1:2".parse().unwrap();
        assert_eq!(V6::of(six).unwrap()[0].to_ne_bytes(), [0xfd, 0, 0, 0x96]);
        assert_eq!(V6::of(six).unwrap().ip(), six);
        assert!(V4::of(six).is_none() && V6::of(four).is_none());
    }
}
