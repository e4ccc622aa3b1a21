//! Tables and JSON of `berth services` and `berth backends`.

use super::{
    names::Names,
    ports::{Endpoint, Frontend, Port, Reach},
};
use crate::table::Table;
use berth_ebpf_abi::frontend;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The table of Service ports, a row for each frontend.
pub(crate) fn services(ports: &[Port], names: &Names) -> Table {
    let head = ["SERVICE", "PORT", "TYPE", "ADDRESS", "POLICY", "AFFINITY", "CLUSTER", "LOCAL", "CLIENTS"];
    let mut table = Table::new(&head);
    for (port, entry) in
        sorted(ports, names).into_iter().flat_map(|p| p.frontends.iter().map(move |f| (p, f)))
    {
        let named = names.port(port.v6, port.id);
        let [cluster, _] = port.counts;
        table.row(vec![
            names.service(port.v6, port.id),
            named.map_or("-", |n| if n.port.is_empty() { "-" } else { &n.port }).to_owned(),
            entry.kind().to_string(),
            entry.address(),
            policy(entry),
            if port.affinity_s == 0 { "-".to_owned() } else { format!("{}s", port.affinity_s) },
            cluster.to_string(),
            port.on_this_node().to_string(),
            clients(port, entry),
        ]);
    }
    table
}

/// The ports sorted by name; those without a name last, by id.
fn sorted<'p>(ports: &'p [Port], names: &Names) -> Vec<&'p Port> {
    let mut sorted: Vec<&Port> = ports.iter().collect();
    sorted.sort_by_cached_key(|p| {
        let named = names.port(p.v6, p.id);
        (named.is_none(), named.map(|n| (n.service.to_string(), n.port.clone())), p.v6, p.id)
    });
    sorted
}

fn policy(entry: &Frontend) -> String {
    let mut words = Vec::new();
    if entry.flags & frontend::INSIDE_LOCAL != 0 {
        words.push("internal=Local");
    }
    if entry.flags & frontend::OUTSIDE_LOCAL != 0 {
        words.push("external=Local");
    }
    if words.is_empty() { "Cluster".to_owned() } else { words.join(",") }
}

/// The CLIENTS column: one word where clients of this node and from outside are treated the same.
fn clients(port: &Port, entry: &Frontend) -> String {
    let (inside, outside) = (port.reach(entry, false), port.reach(entry, true));
    match (inside, outside) {
        (inside, outside) if inside == outside => inside.to_string(),
        (Reach::Served, outside) => format!("{outside} from outside"),
        (inside, Reach::Served) => format!("{inside} from this node"),
        (inside, outside) => format!("{inside} from this node, {outside} from outside"),
    }
}

/// The JSON list of Service ports.
pub(crate) fn services_json(ports: &[Port], names: &Names) -> Value {
    let items: Vec<Value> = sorted(ports, names).into_iter().map(|p| port_json(p, names)).collect();
    json!({ "apiVersion": "berth/v1", "kind": "ServicePortList", "items": items, "notices": names.notices })
}

fn port_json(port: &Port, names: &Names) -> Value {
    let named = names.port(port.v6, port.id);
    let frontends: Vec<Value> = port
        .frontends
        .iter()
        .map(|f| {
            json!({
                "type": f.kind().to_string(),
                "address": (!f.at.ip().is_unspecified()).then(|| f.at.ip()),
                "port": f.at.port(),
                "protocol": f.protocol.to_string(),
                "internalTrafficPolicy": word(f.flags & frontend::INSIDE_LOCAL != 0),
                "externalTrafficPolicy": word(f.flags & frontend::OUTSIDE_LOCAL != 0),
                "fromThisNode": port.reach(f, false).to_string(),
                "fromOutside": port.reach(f, true).to_string(),
            })
        })
        .collect();
    let [cluster, local] = port.counts;
    json!({
        "id": port.id,
        "ipFamily": if port.v6 { "IPv6" } else { "IPv4" },
        "namespace": named.map(|n| n.service.namespace.to_string()),
        "service": named.map(|n| n.service.name.to_string()),
        "portName": named.map(|n| n.port.clone()),
        "generation": port.generation,
        "affinitySeconds": (port.affinity_s != 0).then_some(port.affinity_s),
        "backends": { "cluster": cluster, "local": local, "onThisNode": port.on_this_node() },
        "fronts": frontends,
    })
}

fn word(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

/// The Service ports that use a backend.
#[derive(Debug, Clone, Default)]
struct Uses {
    /// Names of Service ports, each with whether the backend is in the cluster set and in the local
    /// set.
    of: BTreeMap<String, [bool; 2]>,
}

/// The backends, each with the Service ports that use it.
fn uses(ports: &[Port], names: &Names) -> BTreeMap<Endpoint, Uses> {
    let mut all: BTreeMap<Endpoint, Uses> = BTreeMap::new();
    for port in ports {
        let service = names.service_port(port.v6, port.id);
        let mut add = |endpoint: &Endpoint, local: bool| {
            let [in_cluster, in_local] =
                all.entry(*endpoint).or_default().of.entry(service.clone()).or_default();
            *(if local { in_local } else { in_cluster }) = true;
        };
        port.cluster.iter().for_each(|e| add(e, false));
        port.local.iter().for_each(|e| add(e, true));
    }
    all
}

fn sets([cluster, local]: [bool; 2]) -> Vec<&'static str> {
    [(cluster, "cluster"), (local, "local")].into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
}

fn place(endpoint: &Endpoint) -> &'static str {
    match (endpoint.local(), endpoint.host_network()) {
        (true, false) => "this node",
        (true, true) => "this node's own network",
        (false, _) => "elsewhere",
    }
}

/// The table of backends, a row for each Service port that uses one.
pub(crate) fn backends(ports: &[Port], names: &Names) -> Table {
    let mut table = Table::new(&["BACKEND", "POD", "NODE", "SETS", "SERVICE"]);
    for (endpoint, uses) in uses(ports, names) {
        for (service, used) in uses.of {
            table.row(vec![
                endpoint.at.to_string(),
                names.endpoint(&endpoint).unwrap_or("-").to_owned(),
                place(&endpoint).to_owned(),
                sets(used).join(","),
                service,
            ]);
        }
    }
    table
}

/// The JSON list of backends.
pub(crate) fn backends_json(ports: &[Port], names: &Names) -> Value {
    let item = |(endpoint, uses): (Endpoint, Uses)| {
        let of = uses.of.into_iter().map(|(service, used)| json!({ "service": service, "sets": sets(used) }));
        json!({
            "address": endpoint.at.ip(),
            "port": endpoint.at.port(),
            "pod": names.endpoint(&endpoint),
            "onThisNode": endpoint.local(),
            "hostNetwork": endpoint.host_network(),
            "services": of.collect::<Vec<_>>(),
        })
    };
    let items: Vec<Value> = uses(ports, names).into_iter().map(item).collect();
    json!({ "apiVersion": "berth/v1", "kind": "BackendList", "items": items })
}
