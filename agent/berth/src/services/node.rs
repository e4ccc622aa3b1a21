//! What the programs know of this node: its addresses, its configuration, its uplinks.

use super::ServicesConfig;
use berth_ebpf_abi::{Config, NodeAddress, Prefix, V4, V6, config};
use berth_ebpf_loader::Datapath;
use berth_services::{Net, NodeFacts};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

/// Masqueraded connections take ports below node ports and below those that the kernel gives out by itself.
const MASQUERADE_PORTS: [u16; 2] = [1_024, 29_999];

/// Devices of the host with the addresses they have, loopback among them, the pods' not.
fn devices() -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for a in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        // The pods' devices come and go, and what they bear is the pod network's.
        if a.interface_name.starts_with("veth") {
            continue;
        }
        let Some(address) = a.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        if let Some(ip) = ip {
            found.entry(a.interface_name).or_default().insert(ip);
        }
    }
    found
}

fn own(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !link_local && !ip.is_unspecified()
}

/// The node as endpoints are chosen by it.
pub(super) fn facts(cfg: &ServicesConfig) -> NodeFacts {
    let found = devices().into_values().flatten().filter(own);
    NodeFacts {
        name: cfg.roots.node_name.as_str().into(),
        zone: "".into(),
        addresses: found.chain(cfg.node_ips.iter().copied()).collect(),
    }
}

/// Devices that bring what comes from outside: those that are named; else those with an address that are neither
/// loopback, nor a bridge, nor one of the pods'. A node that has only a part of the machine takes no device by itself.
pub(super) fn uplinks(cfg: &ServicesConfig, pods: &BTreeSet<u32>) -> BTreeSet<u32> {
    let names: Vec<String> = if !cfg.uplinks.is_empty() {
        cfg.uplinks.clone()
    } else if cfg.roots.cgroup_hooks.as_os_str().is_empty() {
        let bridge = |name: &String| Path::new("/sys/class/net").join(name).join("bridge").exists();
        let found = devices().into_iter().filter(|(_, ips)| ips.iter().any(own)).map(|(name, _)| name);
        found.filter(|name| !bridge(name)).collect()
    } else {
        Vec::new()
    };
    let index = names.iter().filter_map(|name| nix::net::if_::if_nametoindex(name.as_str()).ok());
    index.filter(|index| !pods.contains(index)).collect()
}

/// Brings the maps of the node's addresses and its configuration to what is wanted.
pub(super) fn keep(
    cfg: &ServicesConfig,
    facts: &NodeFacts,
    datapath: &Datapath,
) -> Result<(), berth_ebpf_loader::Error> {
    addresses::<V4>(cfg, facts, &datapath.node4)?;
    addresses::<V6>(cfg, facts, &datapath.node6)?;
    let wanted = configuration(cfg);
    if datapath.config.get(&0)? != Some(wanted) {
        datapath.config.put(&0, &wanted)?;
    }
    Ok(())
}

fn addresses<A: Net + berth_ebpf_loader::Plain>(
    cfg: &ServicesConfig,
    facts: &NodeFacts,
    map: &berth_ebpf_loader::Map<A, NodeAddress>,
) -> Result<(), berth_ebpf_loader::Error> {
    let value = |ip: &IpAddr| NodeAddress { node_ports: u32::from(cfg.node_ips.contains(ip)) };
    let wanted: BTreeMap<A, NodeAddress> =
        facts.addresses.iter().filter_map(|ip| Some((A::of(*ip)?, value(ip)))).collect();
    let there: BTreeMap<A, NodeAddress> = map.entries()?.into_iter().collect();
    for (key, value) in &wanted {
        if there.get(key) != Some(value) {
            map.put(key, value)?;
        }
    }
    for key in there.keys().filter(|k| !wanted.contains_key(*k)) {
        map.delete(key)?;
    }
    Ok(())
}

fn configuration(cfg: &ServicesConfig) -> Config {
    let mut made =
        Config { flags: config::REDIRECT, masquerade_ports: MASQUERADE_PORTS, ..Config::default() };
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
