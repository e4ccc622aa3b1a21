//! Names of ids and addresses: Services by the agent's file, pods by the node's state.

use super::ports::{Endpoint, Port};
use crate::{error::Error, v1};
use berth_api::{
    services::{NamedPort, ServicesFile},
    view::PodView,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

/// A pod that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodAt {
    key: String,
    host_network: bool,
    ports: BTreeSet<i64>,
    ended: bool,
}

/// Names of the Service ports and backends in the tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    ports: BTreeMap<(bool, u32), NamedPort>,
    pods: HashMap<IpAddr, Vec<PodAt>>,
    /// Whether the agent has written names of Services.
    pub(crate) published: bool,
    /// Facts about Services that the tables do not carry, for people: conflicts and unsupported parts.
    pub(crate) notices: Vec<String>,
}

impl Names {
    /// Names by the agent's file and these pods.
    pub(crate) fn new(file: Option<ServicesFile>, pods: &[PodView]) -> Names {
        let mut names = Names { published: file.is_some(), ..Names::default() };
        let ServicesFile { ports, notices, .. } = file.unwrap_or_default();
        names.ports = ports.into_iter().map(|p| ((p.v6, p.id), p)).collect();
        names.notices = notices;
        for view in pods {
            let pod = v1::Pod::of(view);
            let at = PodAt {
                key: view.key.to_string(),
                host_network: pod.spec.host_network,
                ports: pod.spec.containers.iter().flat_map(|c| &c.ports).map(|p| p.container_port).collect(),
                ended: view.gone || matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
            };
            for ip in pod.status.pod_ips.iter().filter_map(|a| a.ip.parse().ok()) {
                names.pods.entry(ip).or_default().push(at.clone());
            }
        }
        names
    }

    /// The Service port with an id.
    pub(crate) fn port(&self, v6: bool, id: u32) -> Option<&NamedPort> {
        self.ports.get(&(v6, id))
    }

    /// All named Service ports, by family and id.
    pub(crate) fn all(&self) -> impl Iterator<Item = &NamedPort> {
        self.ports.values()
    }

    /// The name of a Service port, `namespace/service` or `namespace/service:port`; `(id n)`
    /// without a name.
    pub(crate) fn service_port(&self, v6: bool, id: u32) -> String {
        match self.port(v6, id) {
            Some(named) if named.port.is_empty() => named.service.to_string(),
            Some(named) => format!("{}:{}", named.service, named.port),
            None => format!("(id {id})"),
        }
    }

    /// The name of a port's Service, `namespace/service`; `(id n)` without a name.
    pub(crate) fn service(&self, v6: bool, id: u32) -> String {
        self.port(v6, id).map_or_else(|| format!("(id {id})"), |named| named.service.to_string())
    }

    /// The pod with this address as its own. A running pod wins over an ended one, whose address
    /// may have been reused.
    pub(crate) fn pod(&self, ip: IpAddr) -> Option<&str> {
        let own = || self.pods.get(&ip).into_iter().flatten().filter(|p| !p.host_network);
        own().find(|p| !p.ended).or_else(|| own().next()).map(|p| p.key.as_str())
    }

    /// The pod behind a backend: by its address, or, with host network, by its declared port.
    pub(crate) fn behind(&self, at: SocketAddr, host_network: bool) -> Option<&str> {
        if !host_network {
            return self.pod(at.ip());
        }
        let there = self.pods.get(&at.ip()).into_iter().flatten();
        let mut fits =
            there.filter(|p| p.host_network && !p.ended && p.ports.contains(&i64::from(at.port())));
        fits.next().map(|p| p.key.as_str())
    }

    /// The pod behind an endpoint.
    pub(crate) fn endpoint(&self, endpoint: &Endpoint) -> Option<&str> {
        self.behind(endpoint.at, endpoint.host_network())
    }

    /// The Service ports that a name selects; all without a name. A name is `namespace/service`,
    /// `service` (looked up in `default` first, then in all namespaces, then as a prefix), an
    /// address, or an address and port.
    pub(crate) fn select(&self, ports: Vec<Port>, name: Option<&str>) -> Result<Vec<Port>, Error> {
        let Some(name) = name else { return Ok(ports) };
        let address = name.parse::<IpAddr>().map(|ip| (ip, None));
        let address = address.or_else(|_| name.parse::<SocketAddr>().map(|at| (at.ip(), Some(at.port()))));
        if let Ok((ip, port)) = address {
            return some(ports.into_iter().filter(|p| p.answers(ip, port)).collect(), name, true);
        }
        let (namespace, short) = name.split_once('/').map_or((None, name), |(ns, n)| (Some(ns), n));
        if short.is_empty() || short.contains('/') {
            return Err(Error::Usage(format!("{name:?} is not of the form namespace/service")));
        }
        let keys: BTreeSet<_> =
            ports.iter().filter_map(|p| self.port(p.v6, p.id)).map(|n| n.service.clone()).collect();
        let inside = |ns: &str| namespace.is_none_or(|wanted| wanted == ns);
        let tries: [Vec<_>; 3] = [
            keys.iter()
                .filter(|k| {
                    k.namespace.as_str() == "default" && inside("default") && k.name.as_str() == short
                })
                .collect(),
            keys.iter().filter(|k| inside(k.namespace.as_str()) && k.name.as_str() == short).collect(),
            keys.iter()
                .filter(|k| inside(k.namespace.as_str()) && k.name.as_str().starts_with(short))
                .collect(),
        ];
        match tries.into_iter().find(|found| !found.is_empty()).as_deref() {
            None => some(Vec::new(), name, self.published),
            Some([one]) => {
                let is = |p: &Port| self.port(p.v6, p.id).is_some_and(|n| n.service == **one);
                Ok(ports.into_iter().filter(is).collect())
            }
            Some(more) => {
                let mut fits: Vec<String> = more.iter().take(8).map(ToString::to_string).collect();
                if more.len() > fits.len() {
                    fits.push("others".to_owned());
                }
                Err(Error::Ambiguous { name: name.to_owned(), fits: fits.join(", ") })
            }
        }
    }
}

fn some(ports: Vec<Port>, name: &str, published: bool) -> Result<Vec<Port>, Error> {
    if !ports.is_empty() {
        return Ok(ports);
    }
    let why = if published {
        "; headless and ExternalName Services are in none: they answer by their names alone"
    } else {
        "; the agent has not named any: ask by address"
    };
    Err(Error::NotFound(format!("no Service in the tables is named {name:?}{why}")))
}
