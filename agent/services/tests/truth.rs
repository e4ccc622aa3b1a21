//! Choice of endpoints, compared with kube-proxy's own results, which `tests/peers/cmd/endpoints` generates.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::model::{EndpointDetails, EndpointSlice, Protocol, ServiceType, TrafficPolicy, conditions};
use berth_services::{Net, NodeFacts, WantedPort, compile};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    sync::Arc,
};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn protocol(value: &Value) -> Protocol {
    match text(value, "protocol") {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        other => panic!("{other}"),
    }
}

fn port(value: &Value, key: &str) -> u16 {
    u16::try_from(value[key].as_u64().unwrap_or_default()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn words(value: &Value) -> Vec<Arc<str>> {
    list(value).iter().map(|w| w.as_str().unwrap().into()).collect()
}

fn slice(number: usize, value: &Value) -> EndpointSlice {
    let ports = list(&value["ports"]).iter().map(|p| (text(p, "name"), protocol(p), port(p, "port")));
    let ports: Vec<_> = ports.collect();
    let endpoints = list(&value["endpoints"]).iter().map(|e| {
        let (ready, serving, terminating) = conditions(e["r"].as_bool(), e["s"].as_bool(), e["t"].as_bool());
        let mut endpoint = support::endpoint(text(e, "a"), text(e, "n"));
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
        endpoint.with(EndpointDetails {
            zone_hints: words(&e["zh"]),
            node_hints: words(&e["nh"]),
            ..EndpointDetails::default()
        })
    });
    let mut slice = support::slice(&format!("web-{number}"), "web", &ports, endpoints.collect());
    slice.v6 = value["v6"].as_bool().unwrap_or_default();
    slice
}

/// The names of a set's endpoints, as kube-proxy prints them.
type Names = BTreeSet<String>;

/// One port's choice: family, port, protocol, cluster and local set, whether there is any endpoint.
type Choice = (bool, String, Protocol, Names, Names, bool);

fn choice<A: Net>(p: &WantedPort<A>) -> Choice {
    let names = |set: &[berth_ebpf_abi::Backend<A>]| {
        set.iter().map(|b| SocketAddr::new(b.addr.ip(), u16::from_be(b.port)).to_string()).collect()
    };
    let protocol = if p.transport.number() == 17 { Protocol::Udp } else { Protocol::Tcp };
    (A::V6, p.name.to_string(), protocol, names(&p.cluster), names(&p.local), p.has_endpoints)
}

#[test]
fn endpoints_are_chosen_as_kube_proxy_chooses_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/endpoints/cases.jsonl.gz");
    let mut cases = 0;
    let (mut local, mut none, mut fallback) = (0, 0, 0);
    for (number, line) in BufReader::new(GzDecoder::new(File::open(path).unwrap())).lines().enumerate() {
        let case: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let node = NodeFacts {
            name: "node-a".into(),
            zone: text(&case, "zone").into(),
            addresses: BTreeSet::new(),
            own: BTreeSet::new(),
        };
        let ports: Vec<_> = list(&case["ports"])
            .iter()
            .map(|p| {
                (
                    text(p, "name"),
                    protocol(p),
                    port(p, "port"),
                    Some(port(p, "node_port")).filter(|p| *p != 0),
                )
            })
            .collect();
        let ips: Vec<&str> = list(&case["families"])
            .iter()
            .map(|f| if f == "IPv4" { "10.96.0.10" } else { "fd00:96::10" })
            .collect();
        let mut service = support::service("web", &ips.join(","), &ports);
        if ports.iter().all(|p| p.3.is_none()) {
            service.kind = ServiceType::ClusterIp;
        }
        let policy = |key: &str| {
            if case[key].as_bool().unwrap() { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
        };
        (service.internal_policy, service.external_policy) =
            (policy("internal_local"), policy("external_local"));
        let slices: Vec<_> =
            list(&case["slices"]).iter().enumerate().map(|(i, s)| Arc::new(slice(i, s))).collect();
        let wanted = compile(&service, &slices, &node);
        let mut ours: Vec<Choice> =
            wanted.v4.iter().map(choice).chain(wanted.v6.iter().map(choice)).collect();
        let mut theirs: Vec<Choice> = list(&case["choices"])
            .iter()
            .map(|c| {
                let names = |key: &str| words(&c[key]).iter().map(|w| w.to_string()).collect();
                let v6 = c["v6"].as_bool().unwrap_or_default();
                let any = c["any"].as_bool().unwrap();
                (v6, text(c, "port").to_owned(), protocol(c), names("cluster"), names("local"), any)
            })
            .collect();
        let order = |c: &Choice| (c.0, c.1.clone());
        ours.sort_by_key(order);
        theirs.sort_by_key(order);
        assert_eq!(ours, theirs, "case {number}: {case}");
        cases += 1;
        local += theirs.iter().filter(|c| !c.4.is_empty()).count();
        none += theirs.iter().filter(|c| c.5 && c.3.is_empty() && c.4.is_empty()).count();
        fallback += slices.iter().flat_map(|s| &s.endpoints).filter(|e| e.serving && e.terminating).count();
    }
    assert!(cases >= 5000, "{cases} cases");
    // The table must cover the relevant cases often enough.
    assert!(local > 500 && none > 100 && fallback > 1000, "{local} {none} {fallback}");
}
