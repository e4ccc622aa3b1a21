//! Host network: the node's addresses and uplinks, chosen from the kernel's devices, addresses and default
//! routes. Services, pods' `hostIP` and people all use this one result. Pure.
//!
//! The node IP of a family is the configured one; else an address of the default route's device, the route's
//! own source first; else the first address of another device. Addresses that only this node uses are never a
//! node IP: those of `lo`, of cluster DNS, of the devices of pods, and of bridges without the default route
//! (`docker0`, `cni0`).

use crate::Device;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Framing of a device's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkLayer {
    /// Ethernet: a header of 14 bytes.
    #[default]
    Ethernet,
    /// Packets begin with their IP header: `ARPHRD_NONE`, `ARPHRD_PPP`, and the kernel's IP tunnels.
    Layer3,
    /// Any other framing. Berth's programs do not read it.
    Other,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether the route is an IPv6 route.
    pub v6: bool,
    /// `RTA_PRIORITY`: the route with the lowest value wins.
    pub metric: u32,
    /// The route's preferred source address.
    pub source: Option<IpAddr>,
    /// Indices of the route's devices; more than one where it has several next hops.
    pub devices: Vec<u32>,
}

/// Devices, addresses and default routes of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelNetwork {
    /// Devices by name. Devices of pods are left out, unless they are configured as uplinks.
    pub devices: BTreeMap<String, Device>,
    /// The default routes of both families.
    pub routes: Vec<DefaultRoute>,
}

/// Configuration of the host's network.
#[derive(Debug, Clone, Default)]
pub struct HostNetworkConfig {
    /// `--node-ip`; chosen from the machine's addresses where empty.
    pub node_ips: Vec<IpAddr>,
    /// `--uplink`; chosen by addresses and routes where empty.
    pub uplinks: Vec<String>,
    /// Addresses of `--cluster-dns`. `lo` may have them, and they never are node IPs.
    pub cluster_dns: Vec<IpAddr>,
    /// Whether all devices of the machine belong to the node.
    pub whole_machine: bool,
    /// `--service-cidr`, with prefix lengths.
    pub service_networks: Vec<(IpAddr, u8)>,
}

/// Device that leads out of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The device's name.
    pub name: Arc<str>,
    /// The device's framing: [`LinkLayer::Ethernet`] or [`LinkLayer::Layer3`].
    pub layer: LinkLayer,
}

/// The node's addresses and uplinks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostNetwork {
    /// The node IPs, the primary one first. Empty while the node has none.
    pub node_ips: Vec<IpAddr>,
    /// All addresses of this host that other machines could use, and those of cluster DNS. Endpoints at these
    /// addresses are in the host's network.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of cluster DNS that `lo` has. The node answers them itself, whatever Services claim.
    pub cluster_dns: BTreeSet<IpAddr>,
    /// The uplinks by index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Problems that keep Services from being reached from outside.
    pub problems: Vec<NetworkProblem>,
}

/// Problem of the host's network, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkProblem {
    /// No device has an address fit for a node IP.
    NoNodeIp,
    /// No device is an uplink.
    NoUplink,
    /// A node IP lies in a network of Services, and so do the node's neighbours.
    AmongServices {
        /// The node IP.
        address: IpAddr,
        /// The network.
        network: (IpAddr, u8),
    },
    /// `--uplink` names a device that does not exist.
    NoSuchUplink(String),
    /// `--uplink` names a device that cannot be an uplink.
    UnfitUplink {
        /// The device.
        device: String,
        /// The reason.
        why: &'static str,
    },
}

impl fmt::Display for NetworkProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkProblem::NoNodeIp => f.write_str(
                "no device has an address for the node: node ports answer on loopback only (give the machine an address, or --node-ip)",
            ),
            NetworkProblem::NoUplink => f.write_str(
                "no device is an uplink: Services are not reached from outside (give a device an address, or --uplink)",
            ),
            NetworkProblem::AmongServices { address, network: (net, len) } => {
                write!(
                    f,
                    "the node's address {address} lies in the network of Services, {net}/{len}: other machines there are not reached (give --service-cidr a network that nobody else has)"
                )
            }
            NetworkProblem::NoSuchUplink(device) => {
                write!(f, "there is no device {device} (--uplink): it brings nothing from outside")
            }
            NetworkProblem::UnfitUplink { device, why } => {
                write!(f, "device {device} cannot be an uplink: {why}")
            }
        }
    }
}

/// Whether Berth has programs for layer-3 devices.
const LAYER3: bool = false;

/// Address of pods in the host's network while the node has no IP.
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

impl HostNetwork {
    /// Chooses the addresses and uplinks of a node from the kernel's network and the configuration.
    pub fn choose(cfg: &HostNetworkConfig, kernel: &KernelNetwork) -> HostNetwork {
        let chooser = Chooser { cfg, kernel };
        let node_ips = chooser.node_ips();
        let (uplinks, mut problems) = chooser.uplinks(&node_ips);
        if node_ips.is_empty() {
            problems.insert(0, NetworkProblem::NoNodeIp);
        }
        problems.extend(node_ips.iter().filter_map(|address| {
            let network = cfg.service_networks.iter().find(|(net, len)| within(*address, *net, *len))?;
            Some(NetworkProblem::AmongServices { address: *address, network: *network })
        }));
        let found = kernel.devices.values().flat_map(|d| &d.addresses).copied().filter(global);
        let addresses = found.chain(node_ips.iter().copied()).collect();
        let on_loopback = kernel.devices.values().filter(|d| d.loopback).flat_map(|d| &d.addresses);
        let cluster_dns = on_loopback.filter(|ip| cfg.cluster_dns.contains(ip)).copied().collect();
        HostNetwork { node_ips, addresses, cluster_dns, uplinks, problems }
    }

    /// Addresses of pods in the host's network, and `hostIPs` of all pods: the node IPs, or loopback while
    /// there are none.
    pub fn host_ips(&self) -> Vec<IpAddr> {
        if self.node_ips.is_empty() { vec![LOOPBACK] } else { self.node_ips.clone() }
    }
}

/// Whether other machines could use the address.
fn global(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !link_local && !ip.is_unspecified()
}

/// Whether the address lies in the network.
fn within(ip: IpAddr, net: IpAddr, len: u8) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let ((ip, width), (net, net_width)) = (bits(ip), bits(net));
    let rest = 128_u32.saturating_sub(u32::from(len));
    width == net_width && ip.checked_shr(rest).unwrap_or(0) == net.checked_shr(rest).unwrap_or(0)
}

struct Chooser<'a> {
    cfg: &'a HostNetworkConfig,
    kernel: &'a KernelNetwork,
}

impl<'a> Chooser<'a> {
    /// Whether the address may be a node IP.
    fn own(&self, ip: &IpAddr) -> bool {
        global(ip) && !self.cfg.cluster_dns.contains(ip)
    }

    /// The default routes of one family, or of both, the preferred route first.
    fn routes(&self, v6: Option<bool>) -> Vec<&'a DefaultRoute> {
        let mut routes: Vec<&DefaultRoute> =
            self.kernel.routes.iter().filter(|r| v6.is_none_or(|v6| r.v6 == v6)).collect();
        routes.sort_by_key(|r| (r.v6, r.metric));
        routes
    }

    fn node_ips(&self) -> Vec<IpAddr> {
        if !self.cfg.node_ips.is_empty() {
            return self.cfg.node_ips.clone();
        }
        [false, true].into_iter().filter_map(|v6| self.node_ip(v6)).collect()
    }

    fn node_ip(&self, v6: bool) -> Option<IpAddr> {
        let own = |ip: &&IpAddr| ip.is_ipv6() == v6 && self.own(ip);
        let devices = || self.kernel.devices.values();
        let there = |ip: &IpAddr| devices().any(|d| d.addresses.contains(ip));
        let source = self
            .routes(Some(v6))
            .into_iter()
            .filter_map(|r| r.source.as_ref())
            .find(|ip| own(ip) && there(ip));
        // A family without a default route of its own uses the other family's device next.
        let routed = self.routes(Some(v6)).into_iter().chain(self.routes(None)).flat_map(|r| &r.devices);
        let by_route = routed
            .filter_map(|index| devices().find(|d| d.index == *index && !d.loopback))
            .flat_map(|d| &d.addresses);
        let mut others: Vec<&Device> = devices().filter(|d| !d.loopback && !d.bridge).collect();
        others.sort_by_key(|d| d.index);
        let others = others.into_iter().flat_map(|d| &d.addresses);
        source.or_else(|| by_route.chain(others).find(own)).copied()
    }

    fn uplinks(&self, node_ips: &[IpAddr]) -> (BTreeMap<u32, Uplink>, Vec<NetworkProblem>) {
        let (mut uplinks, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, device) in self.candidates(node_ips, &mut problems) {
            let why = match device.layer {
                _ if device.loopback => "it is the loopback device",
                LinkLayer::Other => "it is neither Ethernet nor a layer-3 device",
                LinkLayer::Layer3 if !LAYER3 => {
                    "it is a layer-3 device (a tunnel), which the programs do not read yet"
                }
                layer => {
                    uplinks.insert(device.index, Uplink { name: name.as_str().into(), layer });
                    continue;
                }
            };
            problems.push(NetworkProblem::UnfitUplink { device: name.clone(), why });
        }
        if uplinks.is_empty() && problems.is_empty() && self.cfg.whole_machine {
            problems.push(NetworkProblem::NoUplink);
        }
        (uplinks, problems)
    }

    /// The configured devices; else the devices of default routes and the devices with an own address,
    /// bridges only where the address is a node IP. A node that has only a part of the machine takes no
    /// device unless configured.
    fn candidates(
        &self,
        node_ips: &[IpAddr],
        problems: &mut Vec<NetworkProblem>,
    ) -> Vec<(&'a String, &'a Device)> {
        let there = || self.kernel.devices.iter().filter(|(_, d)| d.index != 0);
        if !self.cfg.uplinks.is_empty() {
            let find = |name: &String| {
                let found = there().find(|(there, _)| *there == name);
                if found.is_none() {
                    problems.push(NetworkProblem::NoSuchUplink(name.clone()));
                }
                found
            };
            return self.cfg.uplinks.iter().filter_map(find).collect();
        }
        if !self.cfg.whole_machine {
            return Vec::new();
        }
        let routed: BTreeSet<u32> =
            self.kernel.routes.iter().flat_map(|r| r.devices.iter().copied()).collect();
        let brings = |d: &Device| {
            let bears = |ip: &IpAddr| self.own(ip) && (!d.bridge || node_ips.contains(ip));
            !d.loopback && (routed.contains(&d.index) || d.addresses.iter().any(bears))
        };
        there().filter(|(_, d)| brings(d)).collect()
    }
}

#[cfg(test)]
mod tests;
