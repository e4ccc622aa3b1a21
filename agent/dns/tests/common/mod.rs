//! Services and questions for the tests.
#![allow(dead_code, reason = "each suite takes what it needs")]

pub(crate) mod node;

use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{
        Endpoint, EndpointDetails, EndpointPort, EndpointSlice, Protocol, Service, ServicePort, ServiceType,
    },
};
use berth_dns::{
    PodAddress, PodNames, Zone,
    question::{self, Parsed, Transport},
    resolve::{Step, resolve},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};

pub(crate) fn key(ns: &str, name: &str) -> PodKey {
    PodKey { namespace: Namespace::new(ns).unwrap(), name: PodName::new(name).unwrap() }
}

pub(crate) fn service(ns: &str, name: &str, ips: &[&str]) -> Service {
    Service {
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: ips.is_empty(),
        ..Service::new(key(ns, name), format!("{ns}-{name}"))
    }
}

pub(crate) fn external(ns: &str, name: &str, target: &str) -> Service {
    let kind = ServiceType::ExternalName;
    Service { kind, headless: false, external_name: Some(target.into()), ..service(ns, name, &[]) }
}

pub(crate) fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort::new(name, protocol, port)
}

pub(crate) fn slice(
    ns: &str,
    service: &str,
    ports: &[(&str, Protocol, u16)],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        key: key(ns, &format!("{service}-1")),
        service: key(ns, service),
        v6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        endpoints,
        triggered: None,
    }
}

pub(crate) fn endpoint(ip: &str, hostname: Option<&str>, ready: bool) -> Endpoint {
    let hostname = hostname.map(Into::into);
    let endpoint = Endpoint { ready, serving: ready, ..Endpoint::new(ip.parse().unwrap()) };
    endpoint.with(EndpointDetails { hostname, ..EndpointDetails::default() })
}

/// One Service of each kind.
pub(crate) fn zone() -> Zone {
    let tcp = Protocol::Tcp;
    let mut web = service("default", "web", &["10.96.0.20", "fd00:96::20"]);
    web.ports = vec![port("http", tcp, 80), port("", Protocol::Udp, 53)];
    let mut db = service("default", "db", &[]);
    db.ports = vec![port("sql", tcp, 5432)];
    let mut early = service("default", "early", &[]);
    early.publish_not_ready = true;
    let services = [
        web,
        service("default", "v4", &["10.96.0.21"]),
        db,
        early,
        service("default", "none", &[]),
        external("default", "out", "www.example.com"),
        external("default", "alias", "web.default.svc.cluster.local"),
        external("default", "loop", "loop.default.svc.cluster.local"),
        external("default", "literal", "192.0.2.7"),
        service("other", "web", &["10.96.0.30"]),
    ];
    let slices = [
        slice(
            "default",
            "db",
            &[("sql", tcp, 15432)],
            vec![
                endpoint("10.0.0.1", Some("db-0"), true),
                endpoint("10.0.0.2", None, true),
                endpoint("10.0.0.3", Some("db-2"), false),
            ],
        ),
        slice("default", "db", &[("sql", tcp, 15432)], vec![endpoint("fd00::1", Some("db-0"), true)]),
        slice("default", "early", &[], vec![endpoint("10.0.0.9", Some("e-0"), false)]),
        slice("default", "none", &[], vec![endpoint("10.0.0.8", Some("n-0"), false)]),
        slice(
            "default",
            "web",
            &[("http", tcp, 8080)],
            vec![endpoint("10.0.0.4", Some("web-0"), true), endpoint("10.0.0.5", None, true)],
        ),
    ];
    let pods = PodNames::Listed(vec![
        PodAddress { ns: "default".into(), ip: "10.0.0.1".parse().unwrap() },
        PodAddress { ns: "default".into(), ip: "fd00::1".parse().unwrap() },
    ]);
    berth_dns::build(&services, &slices, pods, "Cluster.Local.")
}

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

pub(crate) fn query(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0);
    message.set_edns(edns);
    message
}

/// The zone's answer, encoded and parsed again.
pub(crate) fn ask(index: &berth_dns::index::Index, asked: &Message, transport: Transport) -> Option<Message> {
    let bytes = match question::read(&asked.to_vec().unwrap(), transport) {
        Parsed::Question(question) => {
            match resolve(index, question.query.name(), question.query.query_type()) {
                Step::Done(answer) => question.write(&answer)?,
                Step::Forward { .. } => return None,
            }
        }
        Parsed::Refused(bytes) => bytes,
        Parsed::Ignored => return None,
    };
    Some(Message::from_vec(&bytes).unwrap())
}

/// An answer on one line: the code, then the sorted records.
pub(crate) fn line(message: &Message) -> String {
    let texts = |records: &[hickory_proto::rr::Record]| {
        let mut texts: Vec<String> =
            records.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect();
        texts.sort();
        texts
    };
    let mut line = format!("{:?}", message.metadata.response_code);
    for text in texts(&message.answers) {
        line += &format!(" | {text}");
    }
    for text in texts(&message.additionals) {
        line += &format!(" + {text}");
    }
    if message.authorities.iter().any(|r| r.record_type() == RecordType::SOA) {
        line += " ; SOA";
    }
    line
}
