//! Addresses and node ports for Services whose manifest gives none: what an API server does on a cluster.
//!
//! An address is a function of the Service's name as far as it is free, and what was once given is written down before
//! it is shown: it stays while the Service stays, over restarts and whatever else comes. What manifests name
//! themselves is theirs; where two want the same, the tables decide by age.

use crate::{DesiredService, Error};
use berth_core::model::{Protocol, ServicePort, ServiceType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
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

/// What was given to one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Given {
    addresses: Vec<IpAddr>,
    /// By name and protocol of the port.
    node_ports: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    version: u32,
    /// By `<namespace>/<name>`.
    services: BTreeMap<String, Given>,
}

/// The journal and the ranges.
#[derive(Debug)]
pub(super) struct Allotment {
    ranges: Option<ServiceRanges>,
    path: PathBuf,
    journal: Journal,
    /// What the file holds.
    kept: Journal,
}

impl Allotment {
    /// Reads the journal; a torn one is set aside, and the same addresses are found by name again where they are free.
    pub(super) fn open(ranges: Option<ServiceRanges>, folder: &Path) -> Allotment {
        let path = folder.join("service-addresses.json");
        let journal = match std::fs::read(&path) {
            Err(_absent) => Journal::default(),
            Ok(bytes) => match serde_json::from_slice::<Journal>(&bytes) {
                Ok(journal) if journal.version == VERSION => journal,
                _ => {
                    super::remember::set_aside(&path);
                    Journal::default()
                }
            },
        };
        Allotment { ranges, path, kept: journal.clone(), journal }
    }

    /// Fills in what the Services lack. `all` says that these are all Services there are: what others had is free.
    pub(super) fn fill(&mut self, services: &mut [Arc<DesiredService>], all: bool) {
        let Some(ranges) = &self.ranges else { return };
        self.journal = next(&self.journal, ranges, services, all);
        for service in services {
            let given = self.journal.services.get(&service.service.key.to_string());
            if let Some(filled) = given.and_then(|g| filled(service, g)) {
                *service = Arc::new(filled);
            }
        }
    }

    /// Writes the journal where it changed.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        if self.journal.services == self.kept.services {
            return Ok(());
        }
        let fail = |source| Error::Remember { path: self.path.clone(), source };
        let journal = Journal { version: VERSION, services: self.journal.services.clone() };
        let bytes = serde_json::to_vec_pretty(&journal).map_err(|e| fail(e.into()))?;
        super::remember::replace(&self.path, &bytes).map_err(fail)?;
        self.kept = journal;
        Ok(())
    }
}

/// The journal with these Services in it.
fn next(journal: &Journal, ranges: &ServiceRanges, services: &[Arc<DesiredService>], all: bool) -> Journal {
    let there: BTreeMap<String, &DesiredService> =
        services.iter().map(|s| (s.service.key.to_string(), &**s)).collect();
    let mut next = journal.clone();
    next.version = VERSION;
    next.services.retain(|name, _| !all || there.contains_key(name));
    // What is not needed any more is given back: the manifest names its own, or the type changed.
    for (name, given) in &mut next.services {
        let Some(service) = there.get(name) else { continue };
        let families = missing_families(service, ranges);
        given.addresses.retain(|ip| {
            families.contains(&ip.is_ipv6())
                && ranges.networks.iter().any(|(net, len)| holds(*net, *len, *ip))
        });
        let wanted: BTreeSet<String> = missing_ports(service).map(port_name).collect();
        given.node_ports.retain(|name, port| wanted.contains(name) && ranges.node_ports.contains(port));
    }
    let mut addresses: BTreeSet<IpAddr> = ranges.reserved.iter().copied().collect();
    let mut ports: BTreeSet<(String, u16)> = BTreeSet::new();
    for service in services {
        let s = &service.service;
        addresses.extend(s.cluster_ips.iter().chain(&s.external_ips).chain(&s.load_balancer_ips));
        ports.extend(s.ports.iter().filter_map(|p| Some((word(p.protocol).to_owned(), p.node_port?))));
    }
    for given in next.services.values() {
        addresses.extend(&given.addresses);
        let protocol = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        ports.extend(given.node_ports.iter().map(|(name, port)| (protocol(name), *port)));
    }
    for (name, service) in &there {
        let had = next.services.get(name).cloned().unwrap_or_default();
        let mut given = had.clone();
        for v6 in missing_families(service, ranges) {
            let network = ranges.networks.iter().find(|(net, _)| net.is_ipv6() == v6);
            let Some((net, len)) = network.filter(|_| had.addresses.iter().all(|ip| ip.is_ipv6() != v6))
            else {
                continue;
            };
            match address(name, *net, *len, &addresses) {
                Some(ip) => {
                    addresses.insert(ip);
                    given.addresses.push(ip);
                }
                None => {
                    tracing::warn!(service = name, network = %format!("{net}/{len}"), "no address is free")
                }
            }
        }
        for port in missing_ports(service) {
            let of = port_name(port);
            if given.node_ports.contains_key(&of) {
                continue;
            }
            match node_port(&format!("{name}:{of}"), word(port.protocol), &ranges.node_ports, &ports) {
                Some(number) => {
                    ports.insert((word(port.protocol).to_owned(), number));
                    given.node_ports.insert(of, number);
                }
                None => tracing::warn!(service = name, port = of, "no node port is free"),
            }
        }
        if given != Given::default() {
            next.services.insert(name.clone(), given);
        } else {
            next.services.remove(name);
        }
    }
    next
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
fn address(name: &str, net: IpAddr, len: u8, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
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
        (!taken.contains(&ip)).then_some(ip)
    })
}

fn node_port(
    name: &str,
    protocol: &str,
    range: &RangeInclusive<u16>,
    taken: &BTreeSet<(String, u16)>,
) -> Option<u16> {
    let count = u64::try_from(range.len()).ok()?;
    let start = hash(name).checked_rem(count)?;
    (0..count).find_map(|i| {
        let offset = u16::try_from((start + i) % count).ok()?;
        let port = range.start().checked_add(offset)?;
        (!taken.contains(&(protocol.to_owned(), port))).then_some(port)
    })
}

fn hash(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The Service with what was given to it, in the model and in the object.
fn filled(service: &DesiredService, given: &Given) -> Option<DesiredService> {
    if *given == Given::default() {
        return None;
    }
    let mut s = berth_core::model::Service::clone(&service.service);
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
mod tests {
    use super::*;
    use crate::manifest::{Context, Mode, parse_file};
    use berth_core::time::Wall;

    fn services(text: &str) -> Vec<Arc<DesiredService>> {
        let ctx = Context { node: "n".parse().unwrap(), mode: Mode::Manifests, now: Wall(0) };
        let parsed = parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx).unwrap_or_else(|e| panic!("{e}"));
        let desired = parsed
            .services
            .into_iter()
            .map(|e| Arc::new(DesiredService { service: Arc::new(e.service), raw: Arc::new(e.raw) }));
        desired.collect()
    }

    fn a(name: &str, spec: &str) -> String {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n---\n")
    }

    fn ranges() -> ServiceRanges {
        ServiceRanges {
            networks: vec![("10.96.0.0".parse().unwrap(), 24), ("fd00:96::".parse().unwrap(), 112)],
            node_ports: 30_000..=30_003,
            reserved: vec!["10.96.0.10".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_given_stays_over_restarts_and_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Allotment::open(Some(ranges()), folder.path());
        let many: String = (0..100).map(|n| a(&format!("s{n}"), "ports: [{port: 80}]")).collect();
        let mut first = services(&many);
        let mut allotment = open();
        allotment.fill(&mut first, true);
        allotment.keep().unwrap();
        let ips: BTreeSet<IpAddr> = first.iter().map(|s| s.service.cluster_ips[0]).collect();
        assert_eq!(ips.len(), 100);
        assert!(ips.iter().all(|ip| holds("10.96.0.0".parse().unwrap(), 24, *ip)));
        assert!(
            ips.iter().all(|ip| *ip >= "10.96.0.16".parse::<IpAddr>().unwrap()),
            "the lowest are given by hand"
        );
        // Others come before them, one by one, and one of them takes an address by hand.
        let hand = first[3].service.cluster_ips[0];
        let more = a("a0", &format!("clusterIP: {hand}, ports: [{{port: 1}}]"))
            + &a("a1", "ports: [{port: 80}]")
            + &many;
        let mut second = services(&more);
        let mut allotment = open();
        allotment.fill(&mut second, true);
        for (before, now) in first.iter().zip(&second[2..]) {
            assert_eq!(before.service.cluster_ips, now.service.cluster_ips);
            assert_eq!(now.raw["spec"]["clusterIP"], json!(now.service.cluster_ips[0]));
        }
        assert_eq!(second[0].service.cluster_ips, [hand]);
        assert!(!ips.contains(&second[1].service.cluster_ips[0]));
        // One that is gone gives its address back, but only when all are known.
        let mut none = [];
        allotment.fill(&mut none, false);
        assert_eq!(allotment.journal.services.len(), 101);
        allotment.fill(&mut none, true);
        assert!(allotment.journal.services.is_empty());
    }

    #[test]
    fn families_types_and_ports() {
        let folder = tempfile::tempdir().unwrap();
        let mut allotment = Allotment::open(Some(ranges()), folder.path());
        let text = [
            a("dual", "ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]"),
            a("six", "ipFamilies: [IPv6], ports: [{port: 80}]"),
            a("none", "clusterIP: None, ports: [{port: 80}]"),
            a("named", "type: ExternalName, externalName: example.org"),
            a(
                "np",
                "type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81, nodePort: 30002}, {name: c, port: 82}]",
            ),
            a("lb", "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]"),
            a("udp", "type: NodePort, ports: [{port: 80, protocol: UDP}]"),
        ];
        let mut all = services(&text.concat());
        allotment.fill(&mut all, true);
        let families =
            |n: usize| -> Vec<bool> { all[n].service.cluster_ips.iter().map(IpAddr::is_ipv6).collect() };
        assert_eq!(families(0), [false, true]);
        assert_eq!(families(1), [true]);
        assert!(families(2).is_empty() && families(3).is_empty());
        let ports: Vec<u16> = all[4].service.ports.iter().map(|p| p.node_port.unwrap()).collect();
        assert_eq!(ports[1], 30_002);
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(all[4].raw["spec"]["ports"][0]["nodePort"], ports[0]);
        assert_eq!(all[5].service.ports[0].node_port, None);
        assert!(all[6].service.ports[0].node_port.is_some(), "another protocol's ports are other ports");
    }

    #[test]
    fn a_torn_journal_is_set_aside_and_the_same_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = services(&a("web", "ports: [{port: 80}]"));
        let mut allotment = Allotment::open(Some(ranges()), folder.path());
        allotment.fill(&mut first, true);
        allotment.keep().unwrap();
        let whole = std::fs::read(&allotment.path).unwrap();
        std::fs::write(&allotment.path, &whole[..whole.len() / 2]).unwrap();
        let mut again = services(&a("web", "ports: [{port: 80}]"));
        let mut allotment = Allotment::open(Some(ranges()), folder.path());
        allotment.fill(&mut again, true);
        assert_eq!(first[0].service, again[0].service);
    }
}
