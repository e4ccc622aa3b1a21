//! The steps of a trace: each map lookup of the decision with its key, the entry found and its
//! meaning.

use super::{
    QueryClient,
    page::{Page, Row},
};
use crate::services::{
    family::{MapFamily, by_class},
    names::Names,
    ports::Protocol,
};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, Flow, LocalPod, MemberKey, NodeAddress, SERVING, ServiceKey,
    Set, Tuple, backend, flow as flag, local_pod, maps,
};
use berth_ebpf_decide::{Header, is_host, trace::Step};
use berth_ebpf_tables::socket;

/// Text of a lookup that found no entry.
const NOTHING: &str = "nothing";

impl<A: MapFamily> Page<'_, A> {
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.client_lookup().into_iter().collect();
        let mut service = None;
        for step in &self.traced.steps {
            if let Step::Service { found: Some(header), .. } = step {
                service = Some(header.id);
            }
            rows.push(row(self.names, step, service));
        }
        // The decision repeats a lookup where that is cheaper than to keep its result.
        rows.dedup();
        rows
    }

    /// The number of backends from which one was drawn at random; `None` where none was drawn.
    pub(super) fn drawn(&self, set: Set) -> Option<u16> {
        let drawn = |step: &Step<A>| matches!(step, Step::Inline { .. } | Step::ChunkBackend { .. });
        self.traced.steps.iter().find(|step| drawn(step))?;
        let header = self.traced.steps.iter().rev().find_map(|step| match step {
            Step::Service { found, .. } => *found,
            _ => None,
        })?;
        let [cluster, local] = header.counts;
        Some(match set {
            Set::Cluster => cluster,
            Set::Local => local,
        })
    }

    /// The lookup of the socket's network namespace in the map of clients.
    fn client_lookup(&self) -> Option<Row> {
        let QueryClient::Socket { addr, client } = self.query.client else { return None };
        let row = |key: String, found: &str, means: String| {
            Some([maps::CLIENT.to_owned(), key, found.to_owned(), means])
        };
        match client {
            None if addr == A::ANY => row(
                "netns of the node".into(),
                NOTHING,
                "the node's network is not known yet: it counts as a client from outside".into(),
            ),
            None => row(
                format!("netns of {}", addr.ip()),
                NOTHING,
                format!(
                    "{} is not known as a pod: it counts as a client from outside",
                    self.with_pod(addr.ip())
                ),
            ),
            Some((cookie, client)) if is_host(client.flags) => {
                row(format!("netns {cookie}"), "host", "the node itself".into())
            }
            Some((cookie, client)) => {
                let alone = client.flags & local_pod::NO_SOCKET_HOOKS != 0;
                let how = if alone { ", sockets left alone: packets are translated" } else { "" };
                row(
                    format!("netns {cookie}"),
                    &addr.ip().to_string(),
                    format!("{}{how}", self.with_pod(addr.ip())),
                )
            }
        }
    }
}

/// The row of a step; `service`: the id of the last Service entry found.
fn row<A: MapFamily>(names: &Names, step: &Step<A>, service: Option<u32>) -> Row {
    let map = A::MAPS;
    match step {
        Step::Service { key, found } => service_row(names, key, found.as_ref()),
        Step::Inline { index, backend } => {
            backend_row(names, A::TABLES.service, format!("backend {index}"), backend)
        }
        Step::Chunk { key, found } => chunk_row::<A>(names, key, *found),
        Step::ChunkBackend { index, backend } => {
            backend_row(names, A::TABLES.chunk, format!("backend {}", index % 16), backend)
        }
        Step::Affinity { key, found } => affinity_row(key, found.as_ref()),
        Step::Stick { key, value } => {
            cells(map.affinity, affinity_key(key), affinity(value), "would be written")
        }
        Step::Member { key, found } => member_row(key, *found),
        Step::Node { addr, found } => node_row(*addr, found.as_ref()),
        Step::Range { addr, found } => {
            let means = if *found { "in a Service range" } else { "in no Service range" };
            cells(maps::CONFIG, addr.ip().to_string(), yes(*found), means)
        }
        Step::Changed => {
            let key = service.map(|id| format!("id {id}")).unwrap_or_default();
            cells(A::TABLES.service, key, "changed".to_owned(), "changed while it was read: read once more")
        }
        Step::Flow { class, key, found } => {
            let means = if found.is_some() { "a connection that is known" } else { "no connection yet" };
            let found = found.as_ref().map_or_else(|| NOTHING.to_owned(), entry);
            cells(by_class(map.flows, *class), tuple(key), found, means)
        }
        Step::Insert { class, key, value, done } => {
            let means = match (done, value.flags & flag::REPLY != 0) {
                (false, _) => "taken by another connection",
                (true, true) => "would be written for the answers",
                (true, false) => "would be written for the client's packets",
            };
            cells(by_class(map.flows, *class), tuple(key), entry(value), means)
        }
        Step::Touch { class, key, generation, .. } => {
            let found = format!("generation {generation}");
            cells(by_class(map.flows, *class), tuple(key), found, "would be renewed")
        }
        Step::Remove { class, key } => {
            cells(by_class(map.flows, *class), tuple(key), String::new(), "would be removed")
        }
        Step::Fragment { key, found } => {
            cells(map.fragment, key.src.ip().to_string(), yes(found.is_some()), "a fragment")
        }
        Step::KeepFragment { key, .. } => {
            cells(map.fragment, key.src.ip().to_string(), String::new(), "would be written")
        }
        Step::Pod { addr, found } => pod_row(names, *addr, found.as_ref()),
    }
}

fn cells(map: &str, key: String, found: String, means: &str) -> Row {
    [map.to_owned(), key, found, means.to_owned()]
}

fn service_row<A: MapFamily>(names: &Names, key: &ServiceKey<A>, found: Option<&Header>) -> Row {
    let frontend = match key.port {
        0 => format!("{} (any port)", key.addr.ip()),
        port if key.addr == A::ANY => format!("*:{}/{}", u16::from_be(port), Protocol(key.proto)),
        port => format!("{}/{}", socket(key.addr, port), Protocol(key.proto)),
    };
    let means = match found {
        Some(_) if key.port == 0 => "a Service's address: other ports are refused".to_owned(),
        Some(header) => names.service_port(A::V6, header.id),
        None if key.port == 0 => "no Service's address".to_owned(),
        None => "no Service port".to_owned(),
    };
    cells(A::TABLES.service, frontend, found.map_or_else(|| NOTHING.to_owned(), header), &means)
}

fn backend_row<A: MapFamily>(names: &Names, map: &str, key: String, found: &Backend<A>) -> Row {
    let at = socket(found.addr, found.port);
    let pod = names.behind(at, found.flags & backend::HOST_NETWORK != 0);
    let place = if found.flags & backend::LOCAL != 0 { "this node" } else { "elsewhere" };
    let means = pod.map_or_else(|| place.to_owned(), |pod| format!("{pod}, {place}"));
    cells(map, key, at.to_string(), &means)
}

fn chunk_row<A: MapFamily>(names: &Names, key: &ChunkKey, found: bool) -> Row {
    let set = if key.set == 0 { "cluster" } else { "local" };
    let text = format!("id {} generation {} {set} {}", key.id, key.generation, key.index);
    cells(A::TABLES.chunk, text, yes(found), &names.service_port(A::V6, key.id))
}

fn affinity_row<A: MapFamily>(key: &AffinityKey<A>, found: Option<&Affinity<A>>) -> Row {
    let means = match found {
        Some(last) => format!("stayed with {} last", socket(last.backend.addr, last.backend.port)),
        None => "stays with no backend yet".to_owned(),
    };
    let found = found.map_or_else(|| NOTHING.to_owned(), affinity);
    cells(A::MAPS.affinity, affinity_key(key), found, &means)
}

fn affinity_key<A: MapFamily>(key: &AffinityKey<A>) -> String {
    format!("id {} client {}", key.id, key.client.ip())
}

fn member_row<A: MapFamily>(key: &MemberKey<A>, found: bool) -> Row {
    let set = match key.set {
        0 => "cluster",
        SERVING => "serving",
        _ => "local",
    };
    let means = if found { "still a backend" } else { "no longer a backend: another is chosen" };
    cells(A::TABLES.member, format!("id {} {} {set}", key.id, socket(key.addr, key.port)), yes(found), means)
}

fn node_row<A: MapFamily>(addr: A, found: Option<&NodeAddress>) -> Row {
    let (found, means) = match found {
        Some(node) if node.node_ports != 0 => ("yes", "an address of the node, with NodePorts"),
        Some(_) => ("yes", "an address of the node, without NodePorts"),
        None => (NOTHING, "no address of the node"),
    };
    cells(A::MAPS.node, addr.ip().to_string(), found.to_owned(), means)
}

fn pod_row<A: MapFamily>(names: &Names, addr: A, found: Option<&LocalPod>) -> Row {
    let ip = addr.ip();
    match found {
        Some(pod) => {
            let means = names.pod(ip).unwrap_or("a pod of this node");
            cells(A::MAPS.pod, ip.to_string(), format!("device {}", pod.ifindex), means)
        }
        None => cells(A::MAPS.pod, ip.to_string(), NOTHING.to_owned(), "no pod of this node"),
    }
}

fn header(header: &Header) -> String {
    let [cluster, local] = header.counts;
    if header.frontend & berth_ebpf_abi::frontend::ADDRESS != 0 {
        return "the bare address".to_owned();
    }
    let affinity =
        if header.affinity_s == 0 { String::new() } else { format!(", affinity {}s", header.affinity_s) };
    format!("id {} generation {}, {cluster} cluster, {local} local{affinity}", header.id, header.generation)
}

fn affinity<A: MapFamily>(value: &Affinity<A>) -> String {
    format!("{} at {}s", socket(value.backend.addr, value.backend.port), value.seen_s)
}

fn tuple<A: MapFamily>(tuple: &Tuple<A>) -> String {
    let (src, dst) = (socket(tuple.src, tuple.src_port), socket(tuple.dst, tuple.dst_port));
    format!("{src} -> {dst}/{}", Protocol(tuple.proto))
}

fn entry<A: MapFamily>(entry: &Flow<A>) -> String {
    let masked = if entry.flags & flag::MASQUERADE != 0 { ", masqueraded" } else { "" };
    format!("becomes {}{masked}", tuple(&entry.to))
}

fn yes(found: bool) -> String {
    if found { "yes".to_owned() } else { NOTHING.to_owned() }
}
