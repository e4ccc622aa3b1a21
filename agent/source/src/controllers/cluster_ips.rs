//! ClusterIP allocation: addresses and node ports for Services whose manifest names none, as the API server does on a
//! cluster.
//!
//! An address is a function of the Service's name as long as that address is free. Assignments are saved in a journal,
//! so that a Service keeps its address over restarts and whatever other Services come. Addresses that a manifest names
//! are used as they are; of two Services that name the same one, the older has it.

use crate::{DesiredService, Error};
use berth_core::{
    ids::PodKey,
    model::{Protocol, Service, ServicePort, ServiceType},
    shared::{Keyed, Shared},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Version of the journal. A journal of another version is set aside.
const VERSION: u32 = 1;

/// Limit of the addresses used of a large range.
const MAX_ADDRESSES: u128 = 1 << 20;

/// Ranges of the addresses and node ports of Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// Networks with their prefix lengths, at most one of a family; the first is the default family.
    pub networks: Vec<(IpAddr, u8)>,
    /// The node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses that are never assigned, such as that of the cluster DNS.
    pub reserved: Vec<IpAddr>,
}

impl ServiceRanges {
    /// Whether a Service may have the address.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|(net, len)| holds(*net, *len, ip))
    }
}

/// The addresses and node ports assigned to one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Assigned {
    addresses: Vec<IpAddr>,
    /// Node ports by `<name>/<protocol>` of the port.
    node_ports: BTreeMap<String, u16>,
}

/// All assignments, as they are on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct AllocationJournal {
    version: u32,
    /// Assignments by `<namespace>/<name>`.
    services: BTreeMap<String, Assigned>,
}

/// Allocator of ClusterIPs and node ports, with the journal of its assignments. A change costs what it changes.
#[derive(Debug)]
pub(crate) struct ClusterIpAllocator {
    ranges: Option<ServiceRanges>,
    path: PathBuf,
    journal: AllocationJournal,
    /// The journal changed since it was written.
    unsaved: bool,
    /// The Services as the manifests have them.
    manifests: Shared<DesiredService>,
    /// The Services with their assignments.
    filled: Shared<DesiredService>,
    in_use: UseCounts,
    /// Names in the journal that have no Service now.
    absent: BTreeSet<String>,
    /// Services for which no address or node port was free, with what is missing.
    unallocated: BTreeMap<String, (PodKey, String)>,
}

impl ClusterIpAllocator {
    /// Reads the journal. A torn one is set aside; most Services then get the same addresses again, by their names.
    pub(crate) fn open(ranges: Option<ServiceRanges>, folder: &Path) -> ClusterIpAllocator {
        let path = folder.join("service-addresses.json");
        let journal = match std::fs::read(&path) {
            Err(_absent) => AllocationJournal::default(),
            Ok(bytes) => match serde_json::from_slice::<AllocationJournal>(&bytes) {
                Ok(journal) if journal.version == VERSION => journal,
                _ => {
                    crate::state_file::set_aside(&path);
                    AllocationJournal::default()
                }
            },
        };
        let mut in_use = UseCounts::default();
        in_use.count(ranges.iter().flat_map(|r| &r.reserved), [], true);
        journal.services.values().for_each(|assigned| in_use.count_assigned(assigned, true));
        ClusterIpAllocator {
            ranges,
            path,
            absent: journal.services.keys().cloned().collect(),
            journal,
            unsaved: false,
            manifests: Shared::default(),
            filled: Shared::default(),
            in_use,
            unallocated: BTreeMap::new(),
        }
    }

    /// The Services with addresses and node ports assigned. `all`: there are no Services but these, so that assignments of
    /// others are freed.
    pub(crate) fn fill(&mut self, services: &Shared<DesiredService>, all: bool) -> &Shared<DesiredService> {
        let Some(ranges) = self.ranges.clone() else {
            self.filled = services.clone();
            return &self.filled;
        };
        let changes = services.changes_since(&self.manifests);
        let unallocated = std::mem::take(&mut self.unallocated);
        let logged: BTreeSet<String> = unallocated.keys().cloned().collect();
        let mut todo: BTreeMap<String, PodKey> =
            unallocated.into_iter().map(|(name, (key, _))| (name, key)).collect();
        for before in changes.before() {
            self.in_use.count_manifest(&before.service, false);
        }
        for gone in &changes.gone {
            self.filled.remove(gone.key());
            let name = gone.service.key.to_string();
            todo.remove(&name);
            if self.journal.services.contains_key(&name) {
                self.absent.insert(name);
            }
        }
        for now in &changes.now {
            self.in_use.count_manifest(&now.service, true);
            let name = now.service.key.to_string();
            self.absent.remove(&name);
            self.release(&name, now, &ranges);
            todo.insert(name, now.service.key.clone());
        }
        self.manifests = services.clone();
        if all {
            for name in std::mem::take(&mut self.absent) {
                self.record(name, Assigned::default());
            }
        }
        for (name, key) in todo {
            if let Some(service) = services.get(&key) {
                let logged = logged.contains(&name);
                self.assign(name, service, &ranges, logged);
            }
        }
        &self.filled
    }

    /// The Services for which no address or node port was free, with what is missing.
    pub(crate) fn unallocated(&self) -> impl Iterator<Item = (&PodKey, &str)> {
        self.unallocated.values().map(|(key, what)| (key, what.as_str()))
    }

    /// Frees assignments that the Service needs no more: its manifest names its own, or its type changed.
    fn release(&mut self, name: &str, service: &DesiredService, ranges: &ServiceRanges) {
        let Some(mut assigned) = self.journal.services.get(name).cloned() else { return };
        let families = missing_families(service, ranges);
        let within = |ip: &IpAddr| ranges.networks.iter().any(|(net, len)| holds(*net, *len, *ip));
        assigned.addresses.retain(|ip| families.contains(&ip.is_ipv6()) && within(ip));
        let wanted: BTreeSet<String> = missing_ports(service).map(port_name).collect();
        assigned.node_ports.retain(|name, port| wanted.contains(name) && ranges.node_ports.contains(port));
        self.record(name.to_owned(), assigned);
    }

    /// Assigns the addresses and node ports that the Service is missing, as far as some are free.
    fn assign(&mut self, name: String, service: &Arc<DesiredService>, ranges: &ServiceRanges, logged: bool) {
        let mut assigned = self.journal.services.get(&name).cloned().unwrap_or_default();
        let mut missing = Vec::new();
        for v6 in missing_families(service, ranges) {
            let network = ranges.networks.iter().find(|(net, _)| net.is_ipv6() == v6);
            let Some((net, len)) = network.filter(|_| assigned.addresses.iter().all(|ip| ip.is_ipv6() != v6))
            else {
                continue;
            };
            match address(&name, *net, *len, &self.in_use) {
                Some(ip) => assigned.addresses.push(ip),
                None => missing.push(format!("an address of {net}/{len}")),
            }
        }
        for port in missing_ports(service) {
            let of = port_name(port);
            if assigned.node_ports.contains_key(&of) {
                continue;
            }
            // Ports of this Service get into `in_use` only below, by `record`.
            let own = |number| {
                assigned.node_ports.iter().any(|(o, n)| *n == number && protocol_of(o) == word(port.protocol))
            };
            let free = |number| !own(number) && !self.in_use.port(word(port.protocol), number);
            match node_port(&format!("{name}:{of}"), &ranges.node_ports, free) {
                Some(number) => drop(assigned.node_ports.insert(of, number)),
                None => missing.push(format!("a node port for {of}")),
            }
        }
        self.record(name.clone(), assigned.clone());
        let now = filled(service, &assigned).map_or_else(|| Arc::clone(service), Arc::new);
        if self.filled.get(now.key()).is_none_or(|old| *old != now) {
            self.filled.put(now);
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            if !logged {
                tracing::warn!(
                    service = name,
                    missing,
                    "cannot allocate for the Service: every address or node port of the range is in use"
                );
            }
            self.unallocated.insert(name, (service.service.key.clone(), missing));
        }
    }

    /// Records the assignment of a Service in the journal; an empty one is removed.
    fn record(&mut self, name: String, assigned: Assigned) {
        let before = if assigned == Assigned::default() {
            self.journal.services.remove(&name)
        } else {
            self.in_use.count_assigned(&assigned, true);
            self.journal.services.insert(name, assigned.clone())
        };
        if let Some(before) = &before {
            self.in_use.count_assigned(before, false);
        }
        self.unsaved |= before.unwrap_or_default() != assigned;
    }

    /// Writes the journal if it changed.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if !self.unsaved {
            return Ok(());
        }
        self.journal.version = VERSION;
        let fail = |source| Error::State { path: self.path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&self.journal).map_err(|e| fail(e.into()))?;
        crate::state_file::replace(&self.path, &bytes).map_err(fail)?;
        self.unsaved = false;
        Ok(())
    }
}

/// The number of uses of each address and node port: named by a manifest, assigned, or reserved.
#[derive(Debug, Default, PartialEq)]
struct UseCounts {
    addresses: HashMap<IpAddr, u32>,
    ports: HashMap<(&'static str, u16), u32>,
}

impl UseCounts {
    fn address(&self, ip: IpAddr) -> bool {
        self.addresses.contains_key(&ip)
    }

    fn port(&self, protocol: &'static str, number: u16) -> bool {
        self.ports.contains_key(&(protocol, number))
    }

    fn count_manifest(&mut self, s: &Service, more: bool) {
        let addresses = s.cluster_ips.iter().chain(&s.external_ips).chain(&s.load_balancer_ips);
        let ports = s.ports.iter().filter_map(|p| Some((word(p.protocol), p.node_port?)));
        self.count(addresses, ports, more);
    }

    fn count_assigned(&mut self, assigned: &Assigned, more: bool) {
        let ports = assigned.node_ports.iter().map(|(of, port)| (protocol_of(of), *port));
        self.count(&assigned.addresses, ports, more);
    }

    fn count<'a>(
        &mut self,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
        ports: impl IntoIterator<Item = (&'static str, u16)>,
        more: bool,
    ) {
        addresses.into_iter().for_each(|ip| count(&mut self.addresses, *ip, more));
        ports.into_iter().for_each(|port| count(&mut self.ports, port, more));
    }
}

/// Counts one use more or less of a key.
fn count<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: K, more: bool) {
    let before = counts.get(&key).copied().unwrap_or(0);
    let now = if more { before.saturating_add(1) } else { before.saturating_sub(1) };
    match now {
        0 => drop(counts.remove(&key)),
        now => drop(counts.insert(key, now)),
    }
}

/// The families (true: IPv6) in which the Service needs an address and its manifest names none, by `ipFamilies` and
/// `ipFamilyPolicy`.
fn missing_families(service: &DesiredService, ranges: &ServiceRanges) -> Vec<bool> {
    let s = &service.service;
    if s.headless || s.kind == ServiceType::ExternalName {
        return Vec::new();
    }
    let spec = service.raw.get("spec");
    let field = |name: &str| spec.and_then(|s| s.get(name));
    let named = field("ipFamilies").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut families: Vec<bool> = s.cluster_ips.iter().map(IpAddr::is_ipv6).collect();
    for family in named.iter().map(|f| f.as_str() == Some("IPv6")) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    let dual = field("ipFamilyPolicy").and_then(Value::as_str).is_some_and(|p| p != "SingleStack");
    for family in ranges.networks.iter().map(|(net, _)| net.is_ipv6()) {
        if !families.contains(&family) && (dual || families.is_empty()) {
            families.push(family);
        }
    }
    families.retain(|v6| s.cluster_ips.iter().all(|ip| ip.is_ipv6() != *v6));
    families
}

/// The ports that need a node port and whose manifest names none.
fn missing_ports(service: &DesiredService) -> impl Iterator<Item = &ServicePort> {
    let s = &service.service;
    let spec = service.raw.get("spec");
    let not_wanted = spec.and_then(|s| s.get("allocateLoadBalancerNodePorts")) == Some(&Value::Bool(false));
    let wanted = match s.kind {
        ServiceType::NodePort => true,
        ServiceType::LoadBalancer => !not_wanted,
        ServiceType::ClusterIp | ServiceType::ExternalName => false,
    };
    s.ports.iter().filter(move |p| wanted && p.node_port.is_none())
}

fn port_name(port: &ServicePort) -> String {
    format!("{}/{}", port.name, word(port.protocol))
}

/// The protocol within the name of a port.
fn protocol_of(name: &str) -> &'static str {
    match name.rsplit('/').next() {
        Some("UDP") => word(Protocol::Udp),
        Some("SCTP") => word(Protocol::Sctp),
        _ => word(Protocol::Tcp),
    }
}

const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

fn holds(net: IpAddr, len: u8, ip: IpAddr) -> bool {
    let ((net, width), (ip, other)) = (bits(net), bits(ip));
    let shift = width.saturating_sub(u32::from(len));
    width == other && net.checked_shr(shift).unwrap_or(0) == ip.checked_shr(shift).unwrap_or(0)
}

/// A free address, the first from the place to which the hash of the name points. The lowest sixteenth of the range, at
/// most 256 addresses, is left to manifests that name an address, as the API server does.
fn address(name: &str, net: IpAddr, len: u8, in_use: &UseCounts) -> Option<IpAddr> {
    let (base, width) = bits(net);
    let size = 1_u128.checked_shl(width.saturating_sub(u32::from(len))).unwrap_or(u128::MAX);
    let base = base & !size.wrapping_sub(1);
    // Neither the network itself nor the broadcast address.
    let last = size.min(MAX_ADDRESSES).checked_sub(2)?;
    let first = (size / 16).clamp(16, 256).min(last).max(1);
    let count = last.checked_sub(first)?.checked_add(1)?;
    let start = u128::from(hash(name)) % count;
    (0..count).map(|i| first + (start + i) % count).find_map(|offset| {
        let number = base.checked_add(offset)?;
        let ip = match net {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        };
        (!in_use.address(ip)).then_some(ip)
    })
}

/// A free port, the first from the place to which the hash of the name points.
fn node_port(name: &str, range: &RangeInclusive<u16>, free: impl Fn(u16) -> bool) -> Option<u16> {
    let count = u64::try_from(range.len()).ok()?;
    let start = hash(name).checked_rem(count)?;
    (0..count).find_map(|i| {
        let offset = u16::try_from((start + i) % count).ok()?;
        let port = range.start().checked_add(offset)?;
        free(port).then_some(port)
    })
}

fn hash(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The Service with its assignment, in the model and in the JSON; `None` if nothing is assigned.
fn filled(service: &DesiredService, assigned: &Assigned) -> Option<DesiredService> {
    if *assigned == Assigned::default() {
        return None;
    }
    let mut s = Service::clone(&service.service);
    let mut raw = Value::clone(&service.raw);
    s.cluster_ips.extend(&assigned.addresses);
    for port in &mut s.ports {
        port.node_port = port.node_port.or_else(|| assigned.node_ports.get(&port_name(port)).copied());
    }
    if let Some(spec) = raw.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".to_owned(), json!(s.cluster_ips.first()));
        spec.insert("clusterIPs".to_owned(), json!(s.cluster_ips));
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for (shown, port) in ports.into_iter().flatten().zip(&s.ports) {
            if let (Some(shown), Some(number)) = (shown.as_object_mut(), port.node_port) {
                shown.insert("nodePort".to_owned(), number.into());
            }
        }
    }
    Some(DesiredService { service: Arc::new(s), raw: Arc::new(raw) })
}

#[cfg(test)]
mod tests;
