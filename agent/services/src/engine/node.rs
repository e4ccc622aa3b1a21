//! What the programs know of this node: its addresses, its configuration, its uplinks.

use super::Config;
use crate::{Device, Net, NodeFacts, NodeTables, Table, TableError};
use berth_ebpf_abi::{Config as Told, NodeAddress, Prefix, V4, V6, config};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Masqueraded connections take ports below node ports and below those that the kernel gives out by itself.
const MASQUERADE_PORTS: [u16; 2] = [1_024, 29_999];

fn own(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !link_local && !ip.is_unspecified()
}

/// The node as endpoints are chosen by it.
pub(super) fn facts(cfg: &Config, devices: &BTreeMap<String, Device>) -> NodeFacts {
    let found = devices.values().flat_map(|d| &d.addresses).copied().filter(own);
    NodeFacts {
        name: Arc::clone(&cfg.node),
        zone: "".into(),
        addresses: found.chain(cfg.node_ips.iter().copied()).collect(),
    }
}

/// Devices that bring what comes from outside: those that are named; else those with an address that are neither
/// loopback nor a bridge. A node that has only a part of the machine takes no device by itself.
pub(super) fn uplinks(cfg: &Config, devices: &BTreeMap<String, Device>) -> BTreeSet<u32> {
    let named = cfg.uplinks.iter().filter_map(|name| devices.get(name));
    let found = devices.values().filter(|d| !d.bridge && d.addresses.iter().any(own));
    let chosen: Vec<&Device> = match (cfg.uplinks.is_empty(), cfg.whole_machine) {
        (false, _) => named.collect(),
        (true, true) => found.collect(),
        (true, false) => Vec::new(),
    };
    chosen.into_iter().map(|d| d.index).filter(|index| *index != 0).collect()
}

/// Brings the maps of the node's addresses and its configuration to what is wanted.
pub(super) fn keep(cfg: &Config, facts: &NodeFacts, maps: &mut impl NodeTables) -> Result<(), TableError> {
    addresses::<V4>(cfg, facts, maps.nodes4())?;
    addresses::<V6>(cfg, facts, maps.nodes6())?;
    let wanted = configuration(cfg);
    if maps.config().read()?.iter().all(|told| *told != (0, wanted)) {
        maps.config().put(&[(0, wanted)])?;
    }
    Ok(())
}

fn addresses<A: Net>(
    cfg: &Config,
    facts: &NodeFacts,
    map: &mut dyn Table<A, NodeAddress>,
) -> Result<(), TableError> {
    let value = |ip: &IpAddr| NodeAddress { node_ports: u32::from(cfg.node_ips.contains(ip)) };
    let wanted: BTreeMap<A, NodeAddress> =
        facts.addresses.iter().filter_map(|ip| Some((A::of(*ip)?, value(ip)))).collect();
    let there: BTreeMap<A, NodeAddress> = map.read()?.into_iter().collect();
    for (key, value) in wanted.iter().filter(|(key, value)| there.get(key) != Some(value)) {
        map.put(&[(*key, *value)])?;
    }
    for key in there.keys().filter(|k| !wanted.contains_key(*k)) {
        map.delete(&[*key])?;
    }
    Ok(())
}

fn configuration(cfg: &Config) -> Told {
    let mut made = Told { flags: config::REDIRECT, masquerade_ports: MASQUERADE_PORTS, ..Told::default() };
    made.masquerade4 = cfg.node_ips.iter().find_map(|ip| V4::of(*ip)).unwrap_or_default();
    made.masquerade6 = cfg.node_ips.iter().find_map(|ip| V6::of(*ip)).unwrap_or_default();
    let of = |v6: bool| cfg.networks.iter().filter(move |(net, _)| net.is_ipv6() == v6);
    for (to, (net, len)) in made.service4.iter_mut().zip(of(false)) {
        *to = prefix(*net, *len);
    }
    for (to, (net, len)) in made.service6.iter_mut().zip(of(true)) {
        *to = prefix(*net, *len);
    }
    made
}
fn prefix(net: IpAddr, len: u8) -> Prefix {
    let mask = |width: u32| u128::MAX.checked_shl(width.saturating_sub(u32::from(len))).unwrap_or(0);
    match net {
        IpAddr::V4(net) => {
            // The lowest 32 bits of the shifted ones are the mask.
            let [.., a, b, c, d] = mask(32).to_be_bytes();
            let (mask, net) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes(net.octets()));
            Prefix { net: [net & mask, 0, 0, 0], mask: [mask, 0, 0, 0] }
        }
        IpAddr::V6(net) => {
            let mask = std::net::Ipv6Addr::from(mask(128));
            let net = std::net::Ipv6Addr::from(u128::from(net) & u128::from(mask));
            let words = |ip: std::net::Ipv6Addr| V6::of(ip.into()).unwrap_or_default();
            Prefix { net: words(net), mask: words(mask) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_masks_over_the_packets_bytes() {
        let p = prefix("10.96.7.9".parse().unwrap(), 12);
        assert_eq!((p.net[0].to_ne_bytes(), p.mask[0].to_ne_bytes()), ([10, 96, 0, 0], [255, 240, 0, 0]));
        assert_eq!(prefix("10.96.0.0".parse().unwrap(), 32).mask[0].to_ne_bytes(), [255; 4]);
        assert_eq!(prefix("0.0.0.0".parse().unwrap(), 0).mask[0], 0);
        let p = prefix("fd00:96::1".parse().unwrap(), 112);
        assert_eq!(p.mask.map(u32::to_ne_bytes), [[255; 4], [255; 4], [255; 4], [255, 255, 0, 0]]);
        assert_eq!(p.net[3], 0);
    }
}
