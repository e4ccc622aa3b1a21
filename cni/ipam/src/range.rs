//! Ranges of addresses for allocation.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An invalid range or set of ranges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// `rangeStart`, `rangeEnd` or `gateway` is outside of the subnet.
    #[error("{field} {address} is not in subnet {subnet}")]
    Outside {
        /// The configuration's key.
        field: &'static str,
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The start is after the end, or no address is left between them.
    #[error("subnet {subnet} holds no address from {first} to {last}")]
    Empty {
        /// The subnet.
        subnet: IpNet,
        /// The first address.
        first: IpAddr,
        /// The last address.
        last: IpAddr,
    },
    /// Two ranges overlap.
    #[error("ranges {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
    /// A set has no range.
    #[error("a set of ranges is empty")]
    NoRange,
    /// The ranges of a set are of both families, but a set gives one address.
    #[error("a set of ranges mixes IPv4 and IPv6 ({0} and {1})")]
    MixedFamilies(IpNet, IpNet),
}

/// A range of one subnet: both ends are allocatable, the gateway in between is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: Option<IpAddr>,
}

impl Range {
    /// The usable addresses of `subnet`, limited to `start..=end`. IPv4's network and broadcast
    /// addresses and IPv6's subnet-router anycast address (RFC 4291, 2.6.1) are excluded, except in
    /// point-to-point subnets (RFC 3021, RFC 6164) and single addresses.
    pub fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range, RangeError> {
        let subnet = subnet.trunc();
        for (field, address) in [("rangeStart", start), ("rangeEnd", end), ("gateway", gateway)] {
            if let Some(address) = address
                && !subnet.contains(&address)
            {
                return Err(RangeError::Outside { field, address, subnet });
            }
        }
        let host_bits = subnet.max_prefix_len() - subnet.prefix_len();
        let (skip_first, skip_last) = match subnet {
            _ if host_bits < 2 => (0, 0),
            IpNet::V4(_) => (1, 1),
            IpNet::V6(_) => (1, 0),
        };
        let lowest = number(subnet.network()) + skip_first;
        let highest = number(subnet.broadcast()) - skip_last;
        let first = start.map_or(lowest, |a| number(a).max(lowest));
        let last = end.map_or(highest, |a| number(a).min(highest));
        let range = Range { subnet, first, last, gateway };
        let only_gateway = first == last && gateway.map(number) == Some(first);
        if first > last || only_gateway {
            return Err(RangeError::Empty { subnet, first: range.address(first), last: range.address(last) });
        }
        Ok(range)
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Whether the address may be allocated from this range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address)
            && (self.first..=self.last).contains(&number(address))
            && self.gateway != Some(address)
    }

    /// The addresses after `after`, in ascending order; all addresses if `after` is None.
    pub(crate) fn upwards(&self, after: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let from = after.map_or(self.first, |a| number(a).saturating_add(1).max(self.first));
        (from..=self.last).map(|n| self.address(n)).filter(|a| Some(*a) != self.gateway)
    }

    fn address(&self, n: u128) -> IpAddr {
        match self.subnet {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap_or(u32::MAX))),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(n)),
        }
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }
}

/// Ranges of one family, of which a pod gets one address. Two sets are dual stack; two ranges in a
/// set are more addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Returns a set of these ranges, which must not overlap.
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet, RangeError> {
        let first = ranges.first().ok_or(RangeError::NoRange)?;
        for (i, range) in ranges.iter().enumerate() {
            if range.subnet.addr().is_ipv4() != first.subnet.addr().is_ipv4() {
                return Err(RangeError::MixedFamilies(first.subnet, range.subnet));
            }
            if let Some(other) = ranges.iter().take(i).find(|other| other.overlaps(range)) {
                return Err(RangeError::Overlap(other.subnet, range.subnet));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// Checks that no address is in two sets.
    pub fn check_disjoint(sets: &[RangeSet]) -> Result<(), RangeError> {
        for (i, set) in sets.iter().enumerate() {
            for other in sets.iter().take(i) {
                for (a, b) in set.0.iter().flat_map(|a| other.0.iter().map(move |b| (a, b))) {
                    if a.overlaps(b) {
                        return Err(RangeError::Overlap(b.subnet, a.subnet));
                    }
                }
            }
        }
        Ok(())
    }

    /// The ranges, in the order of the configuration.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Whether the address may be allocated from this set.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|r| r.contains(address))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(subnet: &str) -> Vec<String> {
        let range = Range::new(subnet.parse().unwrap(), None, None, None).unwrap();
        range.upwards(None).map(|a| a.to_string()).collect()
    }

    #[test]
    fn network_broadcast_and_anycast_are_left_out() {
        assert_eq!(all("10.0.0.0/30"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(all("10.0.0.0/31"), ["10.0.0.0", "10.0.0.1"]);
        assert_eq!(all("10.0.0.9/32"), ["10.0.0.9"]);
        assert_eq!(all("fd00::/126"), ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(all("fd00::/127"), ["fd00::", "fd00::1"]);
    }

    #[test]
    fn start_end_and_gateway_narrow_a_range() {
        let ip = |s: &str| Some(s.parse().unwrap());
        let net = "10.1.0.0/24".parse().unwrap();
        let range = Range::new(net, ip("10.1.0.0"), ip("10.1.0.3"), ip("10.1.0.2")).unwrap();
        let got: Vec<_> = range.upwards(None).map(|a| a.to_string()).collect();
        assert_eq!(got, ["10.1.0.1", "10.1.0.3"]);
        assert!(!range.contains("10.1.0.2".parse().unwrap()));
        let outside = Range::new(net, ip("10.2.0.1"), None, None).unwrap_err();
        assert_eq!(outside.to_string(), "rangeStart 10.2.0.1 is not in subnet 10.1.0.0/24");
        assert!(matches!(
            Range::new(net, ip("10.1.0.9"), ip("10.1.0.3"), None),
            Err(RangeError::Empty { .. })
        ));
        assert!(Range::new("10.0.0.1/32".parse().unwrap(), None, None, ip("10.0.0.1")).is_err());
    }

    #[test]
    fn overlapping_and_mixed_sets_are_refused() {
        let range = |s: &str| Range::new(s.parse().unwrap(), None, None, None).unwrap();
        assert!(RangeSet::new(vec![]).is_err());
        assert!(RangeSet::new(vec![range("10.0.0.0/24"), range("10.0.0.128/25")]).is_err());
        assert!(RangeSet::new(vec![range("10.0.0.0/24"), range("fd00::/64")]).is_err());
        let a = RangeSet::new(vec![range("10.0.0.0/24")]).unwrap();
        let b = RangeSet::new(vec![range("fd00::/64")]).unwrap();
        assert!(RangeSet::check_disjoint(&[a.clone(), b]).is_ok());
        assert!(RangeSet::check_disjoint(&[a.clone(), a]).is_err());
    }

    #[test]
    fn the_largest_subnets_do_not_overflow() {
        let v4 = Range::new("0.0.0.0/0".parse().unwrap(), None, None, None).unwrap();
        assert_eq!(v4.upwards(Some("255.255.255.253".parse().unwrap())).count(), 1);
        let v6 = Range::new("::/0".parse().unwrap(), None, None, None).unwrap();
        assert_eq!(v6.upwards(Some(Ipv6Addr::from_bits(u128::MAX - 1).into())).count(), 1);
        assert_eq!(v6.upwards(None).next(), Some("::1".parse().unwrap()));
    }
}
