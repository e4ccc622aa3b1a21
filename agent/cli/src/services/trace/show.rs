//! A trace for people and for programs: each step with the map, the key, what was found, and what stands behind it.

use super::{ClientIdentity, Egress, End, Question, Traced};
use crate::{
    services::{
        family::{Net, by_class, socket},
        names::Names,
        snapshot::Protocol,
    },
    table::{Table, plain},
};
use berth_ebpf_abi::{
    Affinity, Backend, Flow, SERVING, ServiceKey, Set, Tuple, backend, flow as flag, local_pod, maps,
};
use berth_ebpf_decide::{
    Choice, DropReason, Header, RejectReason, Verdict,
    flow::{self, Dropped, Forwarding, Hook},
    is_host,
    trace::Step,
};
use serde_json::{Value, json};
use std::net::IpAddr;

/// What is shown.
pub(crate) struct Page<'t, A> {
    pub(crate) names: &'t Names,
    pub(crate) asked: &'t Question<A>,
    pub(crate) traced: &'t Traced<A>,
}

/// A step: map, key, what was found, what that means.
type Row = [String; 4];

const NOTHING: &str = "nothing";

impl<A: Net> Page<'_, A> {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&["MAP", "KEY", "FOUND", "MEANS"]);
        self.rows().into_iter().for_each(|row| table.row(row.into()));
        let (outcome, why) = self.verdict();
        let head = format!("{} -> {}", self.source(), self.destination());
        format!("{}\n\n{}\n{outcome}: {}\n", plain(&head), table.take(), plain(&why))
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let step =
            |[map, key, found, means]: Row| json!({ "map": map, "key": key, "found": found, "means": means });
        let (outcome, why) = self.verdict();
        let mut verdict = json!({ "outcome": outcome, "message": why });
        if let (Some(fields), Some(Value::Object(more))) = (verdict.as_object_mut(), self.target()) {
            fields.extend(more);
        }
        json!({
            "apiVersion": "berth/v1", "kind": "ServiceTrace",
            "source": self.source(), "destination": self.destination(),
            "decidedAt": match self.traced.end { End::Socket(..) => "socket", End::Packet { .. } => "packet" },
            "steps": self.rows().into_iter().map(step).collect::<Vec<_>>(),
            "verdict": verdict,
        })
    }

    /// Where it goes, as fields.
    fn target(&self) -> Option<Value> {
        Some(match &self.traced.end {
            End::Socket(Verdict::To(choice), _) => json!({
                "backend": socket(choice.backend.addr, choice.backend.port).to_string(),
                "pod": self.names.behind(
                    socket(choice.backend.addr, choice.backend.port),
                    choice.backend.flags & backend::HOST_NETWORK != 0,
                ),
                "service": self.names.told(A::V6, choice.service),
            }),
            End::Packet { verdict: flow::Verdict::Translate(_), to, .. } => json!({
                "backend": socket(to.dst, to.dst_port).to_string(),
                "pod": self.names.pod(to.dst.ip()),
                "source": socket(to.src, to.src_port).to_string(),
            }),
            _ => return None,
        })
    }

    /// An address with the pod that has it.
    fn who(&self, ip: IpAddr) -> String {
        self.names.pod(ip).map_or_else(|| ip.to_string(), |pod| format!("{ip} ({pod})"))
    }

    fn source(&self) -> String {
        match (self.asked.from, &self.traced.end) {
            (_, End::Packet { sent, hook, .. }) => {
                let at = socket(sent.src, sent.src_port);
                match (self.names.pod(at.ip()), hook) {
                    (Some(pod), _) => format!("{at} ({pod})"),
                    (None, Hook::Uplink) => format!("{at} (outside)"),
                    (None, _) => at.to_string(),
                }
            }
            (ClientIdentity::Socket { addr, .. }, _) if addr == A::ANY => "node".to_owned(),
            (ClientIdentity::Socket { addr, .. } | ClientIdentity::Outside { addr, .. }, _) => {
                self.who(addr.ip())
            }
        }
    }

    fn destination(&self) -> String {
        let proto = if self.asked.udp { flow::UDP } else { flow::TCP };
        format!("{}/{}", socket(self.asked.dst, self.asked.dst_port.to_be()), Protocol(proto))
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.socket_client().into_iter().collect();
        let mut service = None;
        for step in &self.traced.steps {
            if let Step::Service { found: Some(header), .. } = step {
                service = Some(header.id);
            }
            rows.push(self.row(step, service));
        }
        // The decision looks twice where that is cheaper than to remember.
        rows.dedup();
        rows
    }

    /// Among how many backends one was drawn; `None` where it was not.
    fn drawn(&self, set: Set) -> Option<u16> {
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

    /// How the socket's network namespace was looked for.
    fn socket_client(&self) -> Option<Row> {
        let ClientIdentity::Socket { addr, client } = self.asked.from else { return None };
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
                format!("{} is not known as a pod: it counts as a client from outside", self.who(addr.ip())),
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
                    format!("{}{how}", self.who(addr.ip())),
                )
            }
        }
    }

    fn row(&self, step: &Step<A>, service: Option<u32>) -> Row {
        let map = A::MAPS;
        let flows = |class| by_class(map.flows, class);
        let row = |map: &str, key: String, found: String, means: String| [map.to_owned(), key, found, means];
        match step {
            Step::Service { key, found } => {
                let found_text = found.as_ref().map_or_else(|| NOTHING.to_owned(), header);
                row(map.service, way_in(key), found_text, self.service(key, found.as_ref()))
            }
            Step::Inline { index, backend } => self.backend(map.service, format!("backend {index}"), backend),
            Step::Chunk { key, found } => {
                let set = if key.set == 0 { "cluster" } else { "local" };
                let text = format!("id {} generation {} {set} {}", key.id, key.generation, key.index);
                row(map.chunk, text, yes(*found), self.names.told(A::V6, key.id))
            }
            Step::ChunkBackend { index, backend } => {
                self.backend(map.chunk, format!("backend {}", index % 16), backend)
            }
            Step::Affinity { key, found } => {
                let means = match found {
                    Some(last) => {
                        format!("stayed with {} last", socket(last.backend.addr, last.backend.port))
                    }
                    None => "stays with no backend yet".to_owned(),
                };
                let found = found.as_ref().map_or_else(|| NOTHING.to_owned(), affinity);
                row(map.affinity, format!("id {} client {}", key.id, key.client.ip()), found, means)
            }
            Step::Stick { key, value } => row(
                map.affinity,
                format!("id {} client {}", key.id, key.client.ip()),
                affinity(value),
                "would be written".to_owned(),
            ),
            Step::Member { key, found } => {
                let set = match key.set {
                    0 => "cluster",
                    SERVING => "serving",
                    _ => "local",
                };
                let means = if *found { "still a backend" } else { "no longer a backend: another is chosen" };
                let key = format!("id {} {} {set}", key.id, socket(key.addr, key.port));
                row(map.member, key, yes(*found), means.to_owned())
            }
            Step::Node { addr, found } => {
                let (found, means) = match found {
                    Some(node) if node.node_ports != 0 => ("yes", "an address of the node, with NodePorts"),
                    Some(_) => ("yes", "an address of the node, without NodePorts"),
                    None => (NOTHING, "no address of the node"),
                };
                row(map.node, addr.ip().to_string(), found.to_owned(), means.to_owned())
            }
            Step::Range { addr, found } => {
                let means = if *found { "in a Service range" } else { "in no Service range" };
                row(maps::CONFIG, addr.ip().to_string(), yes(*found), means.to_owned())
            }
            Step::Changed => row(
                map.service,
                service.map(|id| format!("id {id}")).unwrap_or_default(),
                "changed".to_owned(),
                "changed while it was read: read once more".to_owned(),
            ),
            Step::Flow { class, key, found } => {
                let means = if found.is_some() { "a connection that is known" } else { "no connection yet" };
                row(
                    flows(*class),
                    tuple(key),
                    found.as_ref().map_or_else(|| NOTHING.to_owned(), entry),
                    means.to_owned(),
                )
            }
            Step::Insert { class, key, value, done } => {
                let means = match (done, value.flags & flag::REPLY != 0) {
                    (false, _) => "taken by another connection",
                    (true, true) => "would be written for the answers",
                    (true, false) => "would be written for the client's packets",
                };
                row(flows(*class), tuple(key), entry(value), means.to_owned())
            }
            Step::Touch { class, key, generation, .. } => row(
                flows(*class),
                tuple(key),
                format!("generation {generation}"),
                "would be renewed".to_owned(),
            ),
            Step::Remove { class, key } => {
                row(flows(*class), tuple(key), String::new(), "would be removed".to_owned())
            }
            Step::Fragment { key, found } => {
                row(map.fragment, key.src.ip().to_string(), yes(found.is_some()), "a fragment".to_owned())
            }
            Step::KeepFragment { key, .. } => {
                row(map.fragment, key.src.ip().to_string(), String::new(), "would be written".to_owned())
            }
            Step::Pod { addr, found } => match found {
                Some(pod) => {
                    let ip = addr.ip();
                    let means = self.names.pod(ip).unwrap_or("a pod of this node").to_owned();
                    row(map.pod, ip.to_string(), format!("device {}", pod.ifindex), means)
                }
                None => {
                    row(map.pod, addr.ip().to_string(), NOTHING.to_owned(), "no pod of this node".to_owned())
                }
            },
        }
    }

    fn service(&self, key: &ServiceKey<A>, found: Option<&Header>) -> String {
        match found {
            Some(_) if key.port == 0 => "a Service's address: other ports are refused".to_owned(),
            Some(header) => self.names.told(A::V6, header.id),
            None if key.port == 0 => "no Service's address".to_owned(),
            None => "no Service port".to_owned(),
        }
    }

    fn backend(&self, map: &str, key: String, found: &Backend<A>) -> Row {
        let at = socket(found.addr, found.port);
        let pod = self.names.behind(at, found.flags & backend::HOST_NETWORK != 0);
        let place = if found.flags & backend::LOCAL != 0 { "this node" } else { "elsewhere" };
        let means = pod.map_or_else(|| place.to_owned(), |pod| format!("{pod}, {place}"));
        [map.to_owned(), key, at.to_string(), means]
    }

    /// One word and its reason.
    fn verdict(&self) -> (&'static str, String) {
        match &self.traced.end {
            End::Socket(verdict, egress) => {
                let at_socket = self.at_socket(verdict);
                egress.as_ref().map_or(at_socket.clone(), |egress| leaving(at_socket, egress))
            }
            End::Packet { sent, verdict, to, .. } => self.for_packet(sent, verdict, to),
        }
    }

    fn at_socket(&self, verdict: &Verdict<A>) -> (&'static str, String) {
        match verdict {
            Verdict::Pass => ("passes", "no Service is meant, the address stays as it is".to_owned()),
            Verdict::To(Choice { backend: chosen, service, set, .. }) => {
                let at = socket(chosen.addr, chosen.port);
                let pod = self.names.behind(at, chosen.flags & backend::HOST_NETWORK != 0);
                let pod = pod.map(|pod| format!(" ({pod})")).unwrap_or_default();
                let drawn = match self.drawn(*set) {
                    Some(0 | 1) => String::new(),
                    Some(count) => format!(", each time one of {count} at random"),
                    None => ", with which this client stays".to_owned(),
                };
                let set = match set {
                    Set::Cluster => "cluster",
                    Set::Local => "local",
                };
                let service = self.names.told(A::V6, *service);
                ("backend", format!("{at}{pod}, of the {set} set of {service}{drawn}"))
            }
            Verdict::Reject(why) => {
                let why = match why {
                    RejectReason::NoEndpoints => "the Service has no endpoint",
                    RejectReason::UnknownPort => "the address is a Service's, the port is not",
                };
                ("refused", format!("ECONNREFUSED, for {why}"))
            }
            Verdict::Drop(why) => {
                let why = match why {
                    DropReason::NoSuchService => "the address lies in a Service range and is no Service's",
                    DropReason::Policy => "the traffic policy leaves this client no endpoint",
                    DropReason::Unsettled => "the tables changed in two readings in a row",
                };
                let host = matches!(self.asked.from, ClientIdentity::Socket { client: Some((_, c)), .. } if is_host(c.flags));
                if host {
                    ("refused", format!("EHOSTUNREACH, for {why}"))
                } else {
                    ("dropped", why.to_owned())
                }
            }
        }
    }

    fn for_packet(&self, sent: &Tuple<A>, verdict: &flow::Verdict, to: &Tuple<A>) -> (&'static str, String) {
        match verdict {
            flow::Verdict::Pass => ("passes", "no Service is meant, the packet stays as it is".to_owned()),
            flow::Verdict::Forward(pod) => {
                let pod = format!("straight to {} by device {}", self.who(sent.dst.ip()), pod.ifindex);
                ("passes", pod)
            }
            flow::Verdict::Reject => {
                ("refused", "port unreachable: the port is no Service's, or it has no endpoint".to_owned())
            }
            flow::Verdict::Drop(why) => {
                let why = match why {
                    Dropped::Service => {
                        "no Service has this address, or its traffic policy leaves no endpoint"
                    }
                    Dropped::Fragment => "a fragment without its first one",
                    Dropped::Ports => "no port is left to masquerade with",
                    Dropped::Address => "the node has no address to masquerade with",
                    Dropped::Leak => "a Service's address must not leave the node",
                    Dropped::Full => "all connections of its class are in use",
                    Dropped::Forged => "a pod's packet under an address that is not its own",
                };
                ("dropped", why.to_owned())
            }
            flow::Verdict::Translate(via) => {
                let at = socket(to.dst, to.dst_port);
                let pod = self.names.pod(at.ip()).map(|pod| format!(" ({pod})")).unwrap_or_default();
                let masked = to.src != sent.src || to.src_port != sent.src_port;
                let from =
                    if masked { format!(", as from {}", socket(to.src, to.src_port)) } else { String::new() };
                let via = match via {
                    Forwarding::Pod(pod) => format!("straight into the pod by device {}", pod.ifindex),
                    Forwarding::Neighbour(0) => "out as the routes say".to_owned(),
                    Forwarding::Neighbour(ifindex) => format!("out by device {ifindex}"),
                    Forwarding::Stack => "routed by the stack".to_owned(),
                };
                ("backend", format!("{at}{pod}{from}, {via}"))
            }
        }
    }
}

/// What the socket hook leaves as it is goes by a device: the program there has the last word.
fn leaving((_, why): (&'static str, String), egress: &Egress) -> (&'static str, String) {
    let device = &egress.device;
    match (egress.hooked, egress.drops) {
        (true, true) => (
            "dropped",
            format!(
                "{why}; at the socket it goes on, and the program at device {device} drops it: a Service's address must not leave the node"
            ),
        ),
        _ => ("passes", format!("{why}; it goes by device {device}")),
    }
}

fn way_in<A: Net>(key: &ServiceKey<A>) -> String {
    match key.port {
        0 => format!("{} (any port)", key.addr.ip()),
        port if key.addr == A::ANY => format!("*:{}/{}", u16::from_be(port), Protocol(key.proto)),
        port => format!("{}/{}", socket(key.addr, port), Protocol(key.proto)),
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

fn affinity<A: Net>(value: &Affinity<A>) -> String {
    format!("{} at {}s", socket(value.backend.addr, value.backend.port), value.seen_s)
}

fn tuple<A: Net>(tuple: &Tuple<A>) -> String {
    let (src, dst) = (socket(tuple.src, tuple.src_port), socket(tuple.dst, tuple.dst_port));
    format!("{src} -> {dst}/{}", Protocol(tuple.proto))
}

fn entry<A: Net>(entry: &Flow<A>) -> String {
    let masked = if entry.flags & flag::MASQUERADE != 0 { ", masqueraded" } else { "" };
    format!("becomes {}{masked}", tuple(&entry.to))
}

fn yes(found: bool) -> String {
    if found { "yes".to_owned() } else { NOTHING.to_owned() }
}
