//! Maps of the node for the programs: its addresses and its configuration.

use super::Config;
use crate::{HostNetwork, Net, NodeFacts, NodeTables, Table, TableError};
use berth_core::ports::SERVICE_MASQUERADE_PORTS;
use berth_ebpf_abi::{Config as Told, NodeAddress, Prefix, V4, V6, config};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Facts about the node that the choice of endpoints depends on.
pub(super) fn facts(cfg: &Config, host: &HostNetwork) -> NodeFacts {
    NodeFacts {
        name: Arc::clone(&cfg.node),
        zone: Arc::clone(&cfg.zone),
        addresses: host.addresses.clone(),
        own: host.cluster_dns.clone(),
    }
}

/// Brings the maps of the node's addresses and configuration to the wanted entries. Returns the number of
/// written entries.
pub(super) fn keep(
    cfg: &Config,
    host: &HostNetwork,
    maps: &mut impl NodeTables,
) -> Result<usize, TableError> {
    let written = addresses::<V4>(host, maps.nodes4())?.saturating_add(addresses::<V6>(host, maps.nodes6())?);
    let wanted = configuration(cfg, host);
    if maps.config().read()?.iter().all(|entry| *entry != (0, wanted)) {
        maps.config().put(&[(0, wanted)])?;
        return Ok(written.saturating_add(1));
    }
    Ok(written)
}

fn addresses<A: Net>(host: &HostNetwork, map: &mut dyn Table<A, NodeAddress>) -> Result<usize, TableError> {
    let value = |ip: &IpAddr| NodeAddress { node_ports: u32::from(host.node_ips.contains(ip)) };
    let mut wanted: Vec<(A, NodeAddress)> =
        host.addresses.iter().filter_map(|ip| Some((A::of(*ip)?, value(ip)))).collect();
    // The node IPs come first, so that they fit where the map is too small for all addresses (a left-over
    // kube-ipvs0 has an address for each Service).
    wanted.sort_by_key(|(_, value)| value.node_ports == 0);
    wanted.truncate(map.capacity());
    let there: BTreeMap<A, NodeAddress> = map.read()?.into_iter().collect();
    let keys: BTreeSet<A> = wanted.iter().map(|(key, _)| *key).collect();
    let gone: Vec<A> = there.keys().filter(|key| !keys.contains(key)).copied().collect();
    wanted.retain(|(key, value)| there.get(key) != Some(value));
    let full = there.len().saturating_add(wanted.len()) > map.capacity();
    if full && !gone.is_empty() {
        map.delete(&gone)?;
    }
    if !wanted.is_empty() {
        map.put(&wanted)?;
    }
    if !full && !gone.is_empty() {
        map.delete(&gone)?;
    }
    Ok(wanted.len().saturating_add(gone.len()))
}

fn configuration(cfg: &Config, host: &HostNetwork) -> Told {
    let masquerade_ports = [*SERVICE_MASQUERADE_PORTS.start(), *SERVICE_MASQUERADE_PORTS.end()];
    let mut made = Told { flags: config::REDIRECT, masquerade_ports, ..Told::default() };
    made.masquerade4 = host.node_ips.iter().find_map(|ip| V4::of(*ip)).unwrap_or_default();
    made.masquerade6 = host.node_ips.iter().find_map(|ip| V6::of(*ip)).unwrap_or_default();
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
