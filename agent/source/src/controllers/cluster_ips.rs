//! ClusterIP allocation: addresses and node ports for Services whose manifest gives none, which is what an API server
//! does on a cluster.
//!
//! An address is a function of the Service's name as far as it is free, and what was once given is written down before
//! it is shown: it stays while the Service stays, over restarts and whatever else comes. What manifests name
//! themselves is theirs; where two want the same, the tables decide by age.

use crate::{DesiredService, Error, Keyed, Shared};
use berth_core::{
    ids::PodKey,
    model::{Protocol, Service, ServicePort, ServiceType},
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

/// The journal's version; another one is set aside.
const VERSION: u32 = 1;

/// As many addresses of a large range are used at most.
const MOST: u128 = 1 << 20;

/// Where addresses and node ports come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// Networks with their prefix lengths, at most one of a family; the first is the default family.
    pub networks: Vec<(IpAddr, u8)>,
    /// The node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses that are somebody else's, such as the cluster DNS's.
    pub reserved: Vec<IpAddr>,
}

impl ServiceRanges {
    /// Whether a Service may have the address.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|(net, len)| holds(*net, *len, ip))
    }
}

/// What was given to one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Assigned {
    addresses: Vec<IpAddr>,
    /// By name and protocol of the port.
    node_ports: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct AllocationJournal {
    version: u32,
    /// By `<namespace>/<name>`.
    services: BTreeMap<String, Assigned>,
}

/// The journal, the ranges, and the Services as they are and as they are shown. A change costs what it changes.
#[derive(Debug)]
pub(crate) struct ClusterIpAllocator {
    ranges: Option<ServiceRanges>,
    path: PathBuf,
    journal: AllocationJournal,
    /// Whether the file holds something else than the journal.
    unkept: bool,
    stated: Shared<DesiredService>,
    shown: Shared<DesiredService>,
    taken: UseCounts,
    /// Names in the journal without a Service.
    absent: BTreeSet<String>,
    /// Services for which nothing was free, and what of.
    short: BTreeMap<String, (PodKey, String)>,
}

impl ClusterIpAllocator {
    /// Reads the journal; a torn one is set aside, and the same addresses are found by name again where they are free.
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
        let mut taken = UseCounts::default();
        taken.count(ranges.iter().flat_map(|r| &r.reserved), [], true);
        journal.services.values().for_each(|given| taken.given(given, true));
        ClusterIpAllocator {
            ranges,
            path,
            absent: journal.services.keys().cloned().collect(),
            journal,
            unkept: false,
            stated: Shared::default(),
            shown: Shared::default(),
            taken,
            short: BTreeMap::new(),
        }
    }

    /// The Services with what they lack filled in. `all` says that these are all Services there are: what others had
    /// is free.
    pub(crate) fn fill(&mut self, services: &Shared<DesiredService>, all: bool) -> &Shared<DesiredService> {
        let Some(ranges) = self.ranges.clone() else {
            self.shown = services.clone();
            return &self.shown;
        };
        let changes = services.changes_since(&self.stated);
        let short = std::mem::take(&mut self.short);
        let told: BTreeSet<String> = short.keys().cloned().collect();
        let mut todo: BTreeMap<String, PodKey> =
            short.into_iter().map(|(name, (key, _))| (name, key)).collect();
        for gone in &changes.gone {
            self.taken.stated(&gone.service, false);
            self.shown.remove(gone.key());
            let name = gone.service.key.to_string();
            todo.remove(&name);
            if self.journal.services.contains_key(&name) {
                self.absent.insert(name);
            }
        }
        for now in &changes.now {
            if let Some(before) = self.stated.get(now.key()) {
                self.taken.stated(&before.service, false);
            }
            self.taken.stated(&now.service, true);
            let name = now.service.key.to_string();
            self.absent.remove(&name);
            self.give_back(&name, now, &ranges);
            todo.insert(name, now.service.key.clone());
        }
        self.stated = services.clone();
        if all {
            for name in std::mem::take(&mut self.absent) {
                self.note(name, Assigned::default());
            }
        }
        for (name, key) in todo {
            if let Some(service) = services.get(&key) {
                let told = told.contains(&name);
                self.give(name, service, &ranges, told);
            }
        }
        &self.shown
    }

    /// The Services for which nothing was free, and what they lack.
    pub(crate) fn short(&self) -> impl Iterator<Item = (&PodKey, &str)> {
        self.short.values().map(|(key, what)| (key, what.as_str()))
    }

    /// What is not needed any more is given back: the manifest names its own, or the type changed.
    fn give_back(&mut self, name: &str, service: &DesiredService, ranges: &ServiceRanges) {
        let Some(mut given) = self.journal.services.get(name).cloned() else { return };
        let families = missing_families(service, ranges);
        let within = |ip: &IpAddr| ranges.networks.iter().any(|(net, len)| holds(*net, *len, *ip));
        given.addresses.retain(|ip| families.contains(&ip.is_ipv6()) && within(ip));
        let wanted: BTreeSet<String> = missing_ports(service).map(port_name).collect();
        given.node_ports.retain(|name, port| wanted.contains(name) && ranges.node_ports.contains(port));
        self.note(name.to_owned(), given);
    }

    /// Gives the Service what it lacks, as far as it is free, and shows it so.
    fn give(&mut self, name: String, service: &Arc<DesiredService>, ranges: &ServiceRanges, told: bool) {
        let mut given = self.journal.services.get(&name).cloned().unwrap_or_default();
        let mut lacks = Vec::new();
        for v6 in missing_families(service, ranges) {
            let network = ranges.networks.iter().find(|(net, _)| net.is_ipv6() == v6);
            let Some((net, len)) = network.filter(|_| given.addresses.iter().all(|ip| ip.is_ipv6() != v6))
            else {
                continue;
            };
            match address(&name, *net, *len, &self.taken) {
                Some(ip) => given.addresses.push(ip),
                None => lacks.push(format!("an address of {net}/{len}")),
            }
        }
        for port in missing_ports(service) {
            let of = port_name(port);
            if given.node_ports.contains_key(&of) {
                continue;
            }
            // Those of this Service are noted together below.
            let own = |number| {
                given.node_ports.iter().any(|(o, n)| *n == number && protocol_of(o) == word(port.protocol))
            };
            let free = |number| !own(number) && !self.taken.port(word(port.protocol), number);
            match node_port(&format!("{name}:{of}"), &ranges.node_ports, free) {
                Some(number) => drop(given.node_ports.insert(of, number)),
                None => lacks.push(format!("a node port for {of}")),
            }
        }
        self.note(name.clone(), given.clone());
        let now = filled(service, &given).map_or_else(|| Arc::clone(service), Arc::new);
        if self.shown.get(now.key()).is_none_or(|old| *old != now) {
            self.shown.put(now);
        }
        if !lacks.is_empty() {
            let lacks = lacks.join(", ");
            if !told {
                tracing::warn!(service = name, lacks, "nothing is free");
            }
            self.short.insert(name, (service.service.key.clone(), lacks));
        }
    }

    /// Takes what is given to a Service into the journal.
    fn note(&mut self, name: String, given: Assigned) {
        let before = if given == Assigned::default() {
            self.journal.services.remove(&name)
        } else {
            self.taken.given(&given, true);
            self.journal.services.insert(name, given.clone())
        };
        if let Some(before) = &before {
            self.taken.given(before, false);
        }
        self.unkept |= before.unwrap_or_default() != given;
    }

    /// Writes the journal where it changed.
    pub(crate) fn keep(&mut self) -> Result<(), Error> {
        if !self.unkept {
            return Ok(());
        }
        self.journal.version = VERSION;
        let fail = |source| Error::Remember { path: self.path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&self.journal).map_err(|e| fail(e.into()))?;
        crate::state_file::replace(&self.path, &bytes).map_err(fail)?;
        self.unkept = false;
        Ok(())
    }
}

/// How often each address and node port is stated, given or reserved.
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

    fn stated(&mut self, s: &Service, more: bool) {
        let addresses = s.cluster_ips.iter().chain(&s.external_ips).chain(&s.load_balancer_ips);
        let ports = s.ports.iter().filter_map(|p| Some((word(p.protocol), p.node_port?)));
        self.count(addresses, ports, more);
    }

    fn given(&mut self, given: &Assigned, more: bool) {
        let ports = given.node_ports.iter().map(|(of, port)| (protocol_of(of), *port));
        self.count(&given.addresses, ports, more);
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

/// One more or one less of it.
fn count<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: K, more: bool) {
    let before = counts.get(&key).copied().unwrap_or(0);
    let now = if more { before.saturating_add(1) } else { before.saturating_sub(1) };
    match now {
        0 => drop(counts.remove(&key)),
        now => drop(counts.insert(key, now)),
    }
}

/// The families (true: IPv6) in which the Service shall have an address and its manifest gives none, by `ipFamilies`
/// and `ipFamilyPolicy`.
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

fn missing_ports(service: &DesiredService) -> impl Iterator<Item = &ServicePort> {
    let s = &service.service;
    let spec = service.raw.get("spec");
    let refused = spec.and_then(|s| s.get("allocateLoadBalancerNodePorts")) == Some(&Value::Bool(false));
    let wanted = match s.kind {
        ServiceType::NodePort => true,
        ServiceType::LoadBalancer => !refused,
        ServiceType::ClusterIp | ServiceType::ExternalName => false,
    };
    s.ports.iter().filter(move |p| wanted && p.node_port.is_none())
}

fn port_name(port: &ServicePort) -> String {
    format!("{}/{}", port.name, word(port.protocol))
}

/// The protocol in such a name.
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

/// A free address, the first from the place that the name's hash points at. The lowest sixteenth, at most 256, is left
/// to those that are given by hand, as an API server does.
fn address(name: &str, net: IpAddr, len: u8, taken: &UseCounts) -> Option<IpAddr> {
    let (base, width) = bits(net);
    let size = 1_u128.checked_shl(width.saturating_sub(u32::from(len))).unwrap_or(u128::MAX);
    let base = base & !size.wrapping_sub(1);
    // Neither the network itself nor the broadcast address.
    let last = size.min(MOST).checked_sub(2)?;
    let first = (size / 16).clamp(16, 256).min(last).max(1);
    let count = last.checked_sub(first)?.checked_add(1)?;
    let start = u128::from(hash(name)) % count;
    (0..count).map(|i| first + (start + i) % count).find_map(|offset| {
        let number = base.checked_add(offset)?;
        let ip = match net {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        };
        (!taken.address(ip)).then_some(ip)
    })
}

/// A free port, the first from the place that the name's hash points at.
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

/// The Service with what was given to it, in the model and in the object.
fn filled(service: &DesiredService, given: &Assigned) -> Option<DesiredService> {
    if *given == Assigned::default() {
        return None;
    }
    let mut s = Service::clone(&service.service);
    let mut raw = Value::clone(&service.raw);
    s.cluster_ips.extend(&given.addresses);
    for port in &mut s.ports {
        port.node_port = port.node_port.or_else(|| given.node_ports.get(&port_name(port)).copied());
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
