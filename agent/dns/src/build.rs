//! Builds the zone from Services, EndpointSlices and pods. Pure.
//!
//! Follows the Kubernetes DNS specification 1.1.0, sections 2.3 to 2.6. Where the specification
//! leaves the host name of an endpoint open, it is the address with dashes, as in CoreDNS.

use crate::zone::{PodNames, Proto, Target, VERSION, Zone, ZoneEndpoint, ZonePort, ZoneService};
use berth_core::model::{EndpointSlice, Service, ServiceType};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// The distinct sets of named ports of a Service's slices.
type PortSets = Box<[Box<[ZonePort]>]>;

/// Builds the zone of these Services and slices. Slices without a Service are left out. The order
/// of the input does not matter. The serial is 0, because [`Publisher`](crate::Publisher) assigns
/// it.
pub fn build<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    pods: PodNames,
    domain: &str,
) -> Zone {
    let mut of: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices {
        let key = (slice.service.namespace.as_str(), slice.service.name.as_str());
        of.entry(key).or_default().push(slice);
    }
    let mut services: Vec<ZoneService> = services
        .into_iter()
        .filter_map(|service| {
            let (ns, name) = (service.key.namespace.as_str(), service.key.name.as_str());
            let slices = of.get(&(ns, name)).map(Vec::as_slice).unwrap_or_default();
            Some(ZoneService { ns: ns.into(), name: name.into(), target: target(service, slices)? })
        })
        .collect();
    services.sort_unstable_by(|a, b| (&a.ns, &a.name).cmp(&(&b.ns, &b.name)));
    services.dedup_by(|a, b| a.ns == b.ns && a.name == b.name);
    let pods = match pods {
        PodNames::Listed(mut list) => {
            list.sort_unstable();
            list.dedup();
            PodNames::Listed(list)
        }
        PodNames::Any => PodNames::Any,
    };
    let domain = domain.trim_end_matches('.').to_ascii_lowercase().into();
    Zone { version: VERSION, serial: 0, domain, services, pods }
}

/// The records of a Service. None if the Service has no name yet, because its ClusterIP is not
/// assigned.
fn target(service: &Service, slices: &[&EndpointSlice]) -> Option<Target> {
    if service.kind == ServiceType::ExternalName {
        let name = service.external_name.as_deref()?.trim_end_matches('.');
        return Some(Target::External { name: name.into() });
    }
    if service.headless {
        let (endpoints, port_sets) = endpoints(service, slices, true);
        return Some(Target::Headless { endpoints, port_sets });
    }
    if service.cluster_ips.is_empty() {
        return None;
    }
    let ports = service.ports.iter().filter(|p| !p.name.is_empty()).map(|p| ZonePort {
        name: p.name.to_ascii_lowercase().into(),
        proto: Proto::from(p.protocol),
        port: p.port,
    });
    let (endpoints, _sets) = endpoints(service, slices, false);
    Some(Target::Cluster {
        ips: service.cluster_ips.as_slice().into(),
        ports: sorted(ports).into(),
        // The ports of these endpoints are the Service's ports.
        endpoints: endpoints.into_iter().map(|e| ZoneEndpoint { ports: 0, ..e }).collect(),
    })
}

/// The ready endpoints and their port sets. Without `unnamed`, only the endpoints with a host name.
fn endpoints(service: &Service, slices: &[&EndpointSlice], unnamed: bool) -> (Box<[ZoneEndpoint]>, PortSets) {
    let mut sets: Vec<Box<[ZonePort]>> = Vec::new();
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|p| !p.name.is_empty()).map(|p| ZonePort {
            name: p.name.to_ascii_lowercase().into(),
            proto: Proto::from(p.protocol),
            port: p.port,
        });
        let ports = sorted(ports);
        let at = sets.iter().position(|s| *s == ports).unwrap_or_else(|| {
            sets.push(ports);
            sets.len().saturating_sub(1)
        });
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        for endpoint in &slice.endpoints {
            // The endpoint controller marks such endpoints ready. A slice made by hand may not.
            if !endpoint.ready && !service.publish_not_ready {
                continue;
            }
            let host = match endpoint.hostname() {
                Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
                _ if unnamed => dashed(endpoint.address),
                _ => continue,
            };
            found.insert(ZoneEndpoint { host: host.into(), ip: endpoint.address, ports: at });
        }
    }
    (found.into_iter().collect(), sets.into())
}

fn sorted(ports: impl Iterator<Item = ZonePort>) -> Box<[ZonePort]> {
    let ports: BTreeSet<ZonePort> = ports.collect();
    ports.into_iter().collect()
}

/// An address as a DNS label: `10-0-0-1`, `fd00--1`.
pub(crate) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address of a DNS label in lower case.
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_not_v4| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}
