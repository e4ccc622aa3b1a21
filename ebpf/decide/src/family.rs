//! Differences between IPv4 and IPv6.

use berth_ebpf_abi::{Addr, Client, PodDevice, Prefix, V4, V6};

/// Address family, as far as decisions depend on it.
pub trait Family: Addr {
    /// Whether the address lies in the range; false for an unused range (all zeros).
    fn within(self, range: &Prefix) -> bool;
    /// Whether the address is a loopback address: `127.0.0.0/8` or `::1`.
    fn is_loopback(self) -> bool;
    /// Whether node ports answer at the host's loopback. True for `127.0.0.0/8`, as in kube-proxy by default
    /// (`iptables.localhostNodePorts`), false for `::1`.
    const LOOPBACK_NODE_PORTS: bool;
    /// Address of a client in this family; [`Addr::ANY`] for none.
    fn of_client(client: &Client) -> Self;
    /// Address of a pod's device in this family; [`Addr::ANY`] for none.
    fn of_device(device: &PodDevice) -> Self;
    /// Whether the address is link-local (`169.254.0.0/16`, `fe80::/10`), or unspecified, as the source of a
    /// host without an address. No host in particular has such an address.
    fn is_of_the_link(self) -> bool;
    /// Address of `240.0.0.0/8` or `100::/64` that represents a network namespace by its cookie.
    fn of_namespace(cookie: u64) -> Self;
}

impl Family for V4 {
    #[inline(always)]
    fn within(self, range: &Prefix) -> bool {
        let (net, mask) = (range.net[0], range.mask[0]);
        (net | mask) != 0 && self & mask == net
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        u32::from_be(self) >> 24 == 127
    }

    const LOOPBACK_NODE_PORTS: bool = true;

    #[inline(always)]
    fn of_client(client: &Client) -> Self {
        client.v4
    }

    #[inline(always)]
    fn of_device(device: &PodDevice) -> Self {
        device.v4
    }

    #[inline(always)]
    fn is_of_the_link(self) -> bool {
        self == 0 || u32::from_be(self) >> 16 == 0xa9fe
    }

    #[inline(always)]
    fn of_namespace(cookie: u64) -> Self {
        // The cookie's lowest three bytes follow the first byte of the address.
        ((cookie & 0xff_ffff) << 8) as u32 | 240
    }
}

impl Family for V6 {
    #[inline(always)]
    fn within(self, range: &Prefix) -> bool {
        let (net, mask) = (&range.net, &range.mask);
        (net[0] | mask[0]) != 0
            && self[0] & mask[0] == net[0]
            && self[1] & mask[1] == net[1]
            && self[2] & mask[2] == net[2]
            && self[3] & mask[3] == net[3]
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self[0] == 0 && self[1] == 0 && self[2] == 0 && self[3] == 1_u32.to_be()
    }

    const LOOPBACK_NODE_PORTS: bool = false;

    #[inline(always)]
    fn of_client(client: &Client) -> Self {
        client.v6
    }

    #[inline(always)]
    fn of_device(device: &PodDevice) -> Self {
        device.v6
    }

    #[inline(always)]
    fn is_of_the_link(self) -> bool {
        u32::from_be(self[0]) >> 22 == 0x3fa || (self[0] | self[1] | self[2] | self[3]) == 0
    }

    #[inline(always)]
    fn of_namespace(cookie: u64) -> Self {
        [1, 0, (cookie & 0xffff_ffff) as u32, (cookie >> 32) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: [u8; 4]) -> V4 {
        u32::from_ne_bytes(a)
    }

    #[test]
    fn ranges_hold_their_addresses_and_an_unused_one_none() {
        let range = Prefix { net: [v4([10, 96, 0, 0]), 0, 0, 0], mask: [v4([255, 255, 0, 0]), 0, 0, 0] };
        assert!(v4([10, 96, 255, 1]).within(&range));
        assert!(!v4([10, 97, 0, 1]).within(&range));
        assert!(!v4([0, 0, 0, 0]).within(&Prefix::default()));
        assert!(!v4([10, 96, 0, 1]).within(&Prefix::default()));
        let fd = u32::from_ne_bytes([0xfd, 0, 0, 0]);
        let range = Prefix { net: [fd, 0, 0, 0], mask: [u32::MAX, u32::MAX, u32::MAX, 0] };
        assert!([fd, 0, 0, 7].within(&range));
        assert!(![fd, 0, 7, 7].within(&range));
        assert!(!V6::ANY.within(&Prefix::default()));
    }

    #[test]
    fn loopback_is_known_in_both_families() {
        assert!(v4([127, 0, 0, 1]).is_loopback() && v4([127, 9, 9, 9]).is_loopback());
        assert!(!v4([128, 0, 0, 1]).is_loopback() && !V4::ANY.is_loopback());
        assert!([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])].is_loopback());
        assert!(!V6::ANY.is_loopback());
    }
}
