//! What this machine is.

use berth_core::model::ResourceList;
use std::net::IpAddr;

/// What pods may use of the machine: all of it.
pub(crate) fn allocatable() -> ResourceList {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let memory = kib.map_or_else(|| "0".to_owned(), |k| format!("{}Ki", k.trim()));
    [("cpu", cpus.to_string()), ("memory", memory)]
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), amount.parse().ok()?)))
        .collect()
}

/// The node's addresses: those that are given, or the first global one of each family.
pub(crate) fn addresses(given: &[IpAddr]) -> Vec<IpAddr> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return vec![IpAddr::from([127, 0, 0, 1])] };
    let mut v4 = None;
    let mut v6 = None;
    for a in all {
        // Pods' own interfaces have addresses of the pods' networks.
        if a.interface_name.starts_with("veth") {
            continue;
        }
        let Some(address) = a.address else { continue };
        if let Some(ip) = address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip) {
            if !ip.is_loopback() && !ip.is_link_local() {
                v4.get_or_insert(IpAddr::V4(ip));
            }
        } else if let Some(ip) = address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::ip)
            && !ip.is_loopback()
            && !ip.is_unicast_link_local()
        {
            v6.get_or_insert(IpAddr::V6(ip));
        }
    }
    let found: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    if found.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { found }
}
