//! Index of the zone, in which every name is found by binary search. Pure.

use crate::{
    build::{dashed, undashed},
    zone::{PodAddress, PodNames, Proto, Target, VERSION, Zone, ZoneEndpoint, ZonePort, ZoneService},
};
use hickory_proto::rr::{
    Name, RData, RecordType,
    rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT},
};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

/// TTL of the zone's answers in seconds: a client keeps an endpoint that left a headless Service no
/// longer, and finds a new name after at most this time. Same value as in CoreDNS.
pub const TTL: u32 = 5;

/// Version of the specification, answered for `dns-version.<domain>`.
const SCHEMA: &str = "1.1.0";

/// Index of a zone: its names in order.
#[derive(Debug)]
pub struct Index {
    /// The cluster domain.
    domain: Name,
    serial: u32,
    services: Vec<ZoneService>,
    /// Sorted entries for reverse lookups: address, Service, and endpoint unless the address is the
    /// Service's own.
    reverse: Vec<(IpAddr, u32, Option<u32>)>,
    pods: PodNames,
    /// Addresses of this server.
    servers: Vec<IpAddr>,
}

/// Result of a lookup.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The name is not in the cluster domain.
    Outside,
    /// The name does not exist.
    NoName,
    /// The name exists. `answers` is empty if it has no record of the type.
    Records {
        /// The records' data.
        answers: Vec<RData>,
        /// Additional records, such as the addresses of SRV targets.
        additionals: Vec<(Name, RData)>,
    },
    /// The name is an alias of another name.
    Alias(Name),
}

fn exists(answers: Vec<RData>) -> Found {
    Found::Records { answers, additionals: Vec::new() }
}

fn nodata() -> Found {
    exists(Vec::new())
}

/// SRV records, with the addresses of their targets as additional records.
fn services(srv: impl IntoIterator<Item = RData>, glue: impl IntoIterator<Item = (Name, RData)>) -> Found {
    let answers: Vec<RData> = srv.into_iter().collect();
    if answers.is_empty() {
        return nodata();
    }
    Found::Records { answers, additionals: glue.into_iter().collect() }
}

/// The weight of each of `records` SRV records of one name: 100 divided among them, as in CoreDNS.
fn share_of_weight(records: usize) -> u16 {
    u16::try_from(records).ok().and_then(|n| 100_u16.checked_div(n)).map_or(1, |weight| weight.max(1))
}

/// The record data of an address.
pub(crate) fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn is_of(ip: IpAddr, kind: RecordType) -> bool {
    matches!((ip, kind), (IpAddr::V4(_), RecordType::A) | (IpAddr::V6(_), RecordType::AAAA))
}

fn addresses(ips: impl Iterator<Item = IpAddr>, kind: RecordType) -> Found {
    let mut ips: Vec<IpAddr> = ips.filter(|ip| is_of(*ip, kind)).collect();
    ips.sort_unstable();
    ips.dedup();
    exists(ips.into_iter().map(address).collect())
}

/// Copies the Services into compact memory: equal port lists are shared, and there are no gaps
/// between allocations. A parsed zone consists of many small allocations, and freeing some of them
/// would leave holes as small.
fn compact(read: Vec<ZoneService>) -> Vec<ZoneService> {
    let (mut ns, mut sets) = (Arc::from(""), BTreeSet::new());
    let share = |service: &ZoneService| {
        if service.ns != ns {
            ns = Arc::from(&*service.ns);
        }
        let mut target = service.target.clone();
        if let Target::Cluster { ports, .. } = &mut target {
            if !sets.contains(ports) {
                let own: Arc<[ZonePort]> = ports.iter().cloned().collect();
                sets.insert(own);
            }
            if let Some(same) = sets.get(ports) {
                *ports = Arc::clone(same);
            }
        }
        ZoneService { ns: Arc::clone(&ns), name: service.name.clone(), target }
    };
    read.iter().map(share).collect()
}

impl Index {
    /// Indexes a zone. `servers` are the addresses at which the zone is served.
    ///
    /// # Errors
    /// The format has another version, or the domain is not a domain name.
    pub fn new(zone: Zone, servers: &[IpAddr]) -> Result<Index, String> {
        let Zone { version, serial, domain, mut services, mut pods } = zone;
        if version != VERSION {
            return Err(format!("its format is {version}, this build reads {VERSION}"));
        }
        let mut domain =
            Name::from_ascii(&*domain).map_err(|e| format!("domain {domain:?}: {e}"))?.to_lowercase();
        domain.set_fqdn(true);
        if domain.is_root() {
            return Err("the domain is empty".to_owned());
        }
        // The builder sorts, but binary search requires the order whoever wrote the file.
        services.sort_unstable_by(|a, b| (&a.ns, &a.name).cmp(&(&b.ns, &b.name)));
        let mut services = compact(services);
        let mut reverse = Vec::new();
        for (i, service) in services.iter_mut().enumerate() {
            let i = u32::try_from(i).map_err(|_many| "too many Services")?;
            match &mut service.target {
                Target::Cluster { ips, endpoints, .. } => {
                    reverse.extend(ips.iter().map(|ip| (*ip, i, None)));
                    by_host(endpoints, i, &mut reverse)?;
                }
                Target::Headless { endpoints, .. } => by_host(endpoints, i, &mut reverse)?,
                Target::External { .. } => {}
            }
        }
        reverse.sort_unstable();
        reverse.shrink_to_fit();
        if let PodNames::Listed(list) = &mut pods {
            list.sort_unstable();
        }
        Ok(Index { domain, serial, services, reverse, pods, servers: servers.to_vec() })
    }

    /// The zone's serial number.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The cluster domain.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// Number of Services.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// The zone's SOA record, which negative answers carry too.
    pub fn soa(&self) -> RData {
        let below =
            |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_long| self.domain.clone());
        let server = below("dns").prepend_label("ns").unwrap_or_else(|_long| self.domain.clone());
        let minimum = TTL;
        RData::SOA(SOA::new(server, below("hostmaster"), self.serial, 7200, 1800, 86400, minimum))
    }

    /// Looks up a name and type, without regard to case.
    pub fn find(&self, name: &Name, kind: RecordType) -> Found {
        let labels: Option<Vec<String>> =
            name.iter().map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect();
        if !self.domain.zone_of(name) {
            return match labels {
                Some(labels) => self.find_reverse(&labels, kind),
                None => Found::Outside,
            };
        }
        // A label that is not UTF-8 is no name of the cluster.
        let Some(labels) = labels else { return Found::NoName };
        let count = labels.len().saturating_sub(usize::from(self.domain.num_labels()));
        let below: Vec<&str> = labels.iter().take(count).map(String::as_str).collect();
        let found = self.find_below(&below, kind);
        match found {
            // RFC 8482: the smallest answer to a question of type ANY.
            Found::Records { .. } if kind == RecordType::ANY => {
                exists(vec![RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))])
            }
            found => found,
        }
    }

    fn find_below(&self, labels: &[&str], kind: RecordType) -> Found {
        match labels {
            [] => match kind {
                RecordType::SOA => exists(vec![self.soa()]),
                RecordType::NS => {
                    match self.domain.prepend_label("dns").and_then(|n| n.prepend_label("ns")) {
                        Ok(server) => {
                            let glue = self.servers.iter().map(|ip| (server.clone(), address(*ip))).collect();
                            Found::Records { answers: vec![RData::NS(NS(server))], additionals: glue }
                        }
                        Err(_long) => nodata(),
                    }
                }
                _ => nodata(),
            },
            ["dns-version"] if kind == RecordType::TXT => {
                exists(vec![RData::TXT(TXT::new(vec![SCHEMA.to_owned()]))])
            }
            ["dns-version"] | ["dns"] | ["svc"] | ["pod"] => nodata(),
            ["ns", "dns"] => addresses(self.servers.iter().copied(), kind),
            [rest @ .., ns, "svc"] => self.find_service(rest, ns, kind),
            [label, ns, "pod"] => self.find_pod(label, ns, kind),
            [ns, "pod"] if self.has_pods(ns) => nodata(),
            _ => Found::NoName,
        }
    }

    fn find_service(&self, labels: &[&str], ns: &str, kind: RecordType) -> Found {
        let Some((name, below)) = labels.split_last() else {
            let first = self.services.partition_point(|s| &*s.ns < ns);
            let any = self.services.get(first).is_some_and(|s| &*s.ns == ns);
            return if any { nodata() } else { Found::NoName };
        };
        let at = self.services.binary_search_by(|s| (&*s.ns, &*s.name).cmp(&(ns, *name)));
        let Some(service) = at.ok().and_then(|i| self.services.get(i)) else { return Found::NoName };
        match &service.target {
            Target::External { name } => match below {
                [] => external(name),
                _ => Found::NoName,
            },
            Target::Cluster { ips, ports, endpoints } => match below {
                [] if kind == RecordType::SRV => {
                    let Ok(target) = self.name_of(service) else { return Found::NoName };
                    let weight = share_of_weight(ports.len());
                    let srv = |port: &ZonePort| RData::SRV(SRV::new(0, weight, port.port, target.clone()));
                    services(ports.iter().map(srv), ips.iter().map(|ip| (target.clone(), address(*ip))))
                }
                [] => addresses(ips.iter().copied(), kind),
                [label] if ports.iter().any(|p| p.proto.label() == *label) => nodata(),
                [host] => at_host(endpoints, host, kind),
                [port, proto] => {
                    let Some(number) = ports.iter().find(|p| is_port(p, port, proto)) else {
                        return Found::NoName;
                    };
                    let Ok(target) = self.name_of(service) else { return Found::NoName };
                    if kind != RecordType::SRV {
                        return nodata();
                    }
                    let srv = RData::SRV(SRV::new(0, share_of_weight(1), number.port, target.clone()));
                    services([srv], ips.iter().map(|ip| (target.clone(), address(*ip))))
                }
                _ => Found::NoName,
            },
            // Section 2.4.1: without ready endpoints the name does not exist.
            Target::Headless { endpoints, .. } if endpoints.is_empty() => Found::NoName,
            Target::Headless { endpoints, port_sets } => match below {
                [] if kind == RecordType::SRV => self.headless_ports(service, endpoints, port_sets, |_| true),
                [] => addresses(endpoints.iter().map(|e| e.ip), kind),
                [label] if has_proto(endpoints, port_sets, label) => nodata(),
                [host] => at_host(endpoints, host, kind),
                [port, proto] => self.headless_port(service, endpoints, port_sets, (port, proto), kind),
                _ => Found::NoName,
            },
        }
    }

    fn headless_port(
        &self,
        service: &ZoneService,
        endpoints: &[ZoneEndpoint],
        sets: &[Box<[ZonePort]>],
        (port, proto): (&str, &str),
        kind: RecordType,
    ) -> Found {
        let wanted = |p: &ZonePort| is_port(p, port, proto);
        if !endpoints.iter().any(|e| ports_of(e, sets).iter().any(wanted)) {
            return Found::NoName;
        }
        if kind != RecordType::SRV {
            return nodata();
        }
        self.headless_ports(service, endpoints, sets, wanted)
    }

    /// SRV records of the wanted ports, for each endpoint that has them.
    fn headless_ports(
        &self,
        service: &ZoneService,
        endpoints: &[ZoneEndpoint],
        sets: &[Box<[ZonePort]>],
        wanted: impl Fn(&ZonePort) -> bool,
    ) -> Found {
        let Ok(base) = self.name_of(service) else { return Found::NoName };
        let on = |e: &ZoneEndpoint| ports_of(e, sets).iter().filter(|p| wanted(p)).map(|p| p.port).collect();
        let mut targets: Vec<(&str, u16)> = Vec::new();
        for endpoint in endpoints {
            let ports: Vec<u16> = on(endpoint);
            // Two addresses of one host are one target.
            targets.extend(ports.into_iter().map(|port| (&*endpoint.host, port)));
        }
        targets.sort_unstable();
        targets.dedup();
        let weight = share_of_weight(targets.len());
        let answers = targets.iter().filter_map(|(host, port)| {
            let target = base.prepend_label(*host).ok()?;
            Some(RData::SRV(SRV::new(0, weight, *port, target)))
        });
        let mut glue: Vec<(Name, RData)> = endpoints
            .iter()
            .filter(|e| ports_of(e, sets).iter().any(&wanted))
            .filter_map(|e| Some((base.prepend_label(&*e.host).ok()?, address(e.ip))))
            .collect();
        glue.dedup();
        services(answers, glue)
    }

    fn find_pod(&self, label: &str, ns: &str, kind: RecordType) -> Found {
        let Some(ip) = undashed(label) else { return Found::NoName };
        let known = match &self.pods {
            PodNames::Any => true,
            PodNames::Listed(list) => {
                // Only the canonical form of the address is a name.
                dashed(ip) == label && list.binary_search(&PodAddress { ns: ns.into(), ip }).is_ok()
            }
        };
        if known { addresses(std::iter::once(ip), kind) } else { Found::NoName }
    }

    fn has_pods(&self, ns: &str) -> bool {
        match &self.pods {
            PodNames::Any => true,
            PodNames::Listed(list) => {
                list.get(list.partition_point(|p| &*p.ns < ns)).is_some_and(|p| &*p.ns == ns)
            }
        }
    }

    /// Looks up a reverse name. Addresses that are not the cluster's are outside of the zone.
    fn find_reverse(&self, labels: &[String], kind: RecordType) -> Found {
        let Some(ip) = arpa(labels) else { return Found::Outside };
        let first = self.reverse.partition_point(|(a, ..)| *a < ip);
        let entries = self.reverse.get(first..).unwrap_or_default().iter().take_while(|(a, ..)| *a == ip);
        // A ClusterIP has the name of its Service only.
        let cluster = entries.clone().any(|(_, _, endpoint)| endpoint.is_none());
        let names: Vec<RData> = entries
            .filter(|(_, _, endpoint)| !cluster || endpoint.is_none())
            .filter_map(|(_, service, endpoint)| self.pointer(*service, *endpoint))
            .collect();
        match kind {
            _ if names.is_empty() => Found::Outside,
            RecordType::PTR => exists(names),
            _ => nodata(),
        }
    }

    fn pointer(&self, service: u32, endpoint: Option<u32>) -> Option<RData> {
        let service = self.services.get(usize::try_from(service).ok()?)?;
        let name = self.name_of(service).ok()?;
        let Some(at) = endpoint else { return Some(RData::PTR(PTR(name))) };
        let (Target::Headless { endpoints, .. } | Target::Cluster { endpoints, .. }) = &service.target else {
            return None;
        };
        let host = &endpoints.get(usize::try_from(at).ok()?)?.host;
        name.prepend_label(&**host).ok().map(|name| RData::PTR(PTR(name)))
    }

    fn name_of(&self, service: &ZoneService) -> Result<Name, ()> {
        let labels = [service.name.as_bytes(), service.ns.as_bytes(), b"svc"];
        let name = Name::from_labels(labels).and_then(|name| {
            let mut name = name;
            name.set_fqdn(false);
            name.append_domain(&self.domain)
        });
        name.map_err(|_unfit| ())
    }
}

fn by_host(
    endpoints: &mut [ZoneEndpoint],
    service: u32,
    reverse: &mut Vec<(IpAddr, u32, Option<u32>)>,
) -> Result<(), String> {
    endpoints.sort_unstable();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let i = u32::try_from(i).map_err(|_many| "too many endpoints")?;
        // The same address may be in two slices with other ports.
        let again = i.checked_sub(1).and_then(|b| endpoints.get(usize::try_from(b).ok()?));
        if again.is_none_or(|b| (&b.host, b.ip) != (&endpoint.host, endpoint.ip)) {
            reverse.push((endpoint.ip, service, Some(i)));
        }
    }
    Ok(())
}

/// The alias of an ExternalName Service. An address in place of a name has no record.
fn external(name: &str) -> Found {
    if name.parse::<IpAddr>().is_ok() {
        return nodata();
    }
    match Name::from_ascii(name) {
        Ok(mut name) if !name.is_root() => {
            name.set_fqdn(true);
            Found::Alias(name)
        }
        _ => nodata(),
    }
}

fn at_host(endpoints: &[ZoneEndpoint], host: &str, kind: RecordType) -> Found {
    let first = endpoints.partition_point(|e| &*e.host < host);
    let mut of =
        endpoints.get(first..).unwrap_or_default().iter().take_while(|e| &*e.host == host).peekable();
    if of.peek().is_none() {
        return Found::NoName;
    }
    addresses(of.map(|e| e.ip), kind)
}

fn ports_of<'a>(endpoint: &ZoneEndpoint, sets: &'a [Box<[ZonePort]>]) -> &'a [ZonePort] {
    usize::try_from(endpoint.ports).ok().and_then(|i| sets.get(i)).map(|s| &**s).unwrap_or_default()
}

fn has_proto(endpoints: &[ZoneEndpoint], sets: &[Box<[ZonePort]>], label: &str) -> bool {
    let has = |set: &[ZonePort]| set.iter().any(|p| p.proto.label() == label);
    [Proto::Tcp, Proto::Udp, Proto::Sctp].iter().any(|p| p.label() == label)
        && endpoints.iter().any(|e| has(ports_of(e, sets)))
}

fn is_port(port: &ZonePort, name: &str, proto: &str) -> bool {
    port.proto.label() == proto && name.strip_prefix('_') == Some(&*port.name)
}

/// The address of a complete name below in-addr.arpa or ip6.arpa.
fn arpa(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [d, c, b, a, "in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}").parse().ok().map(IpAddr::V4),
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut bits = 0u128;
            for nibble in nibbles.iter().rev() {
                let mut chars = nibble.chars();
                let (Some(c), None) = (chars.next(), chars.next()) else { return None };
                bits = (bits << 4) | u128::from(c.to_digit(16)?);
            }
            Some(IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}
