//! Addresses that the node answers itself are not served as a Service's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::model::Protocol;
use berth_services::{NodeFacts, NoticeReason, compile};
use support::{endpoint, service, slice};

#[test]
fn no_service_is_served_at_an_address_of_the_nodes_own_cluster_dns() {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let slices = [slice("x", "dns", &[("", Protocol::Udp, 5353)], vec![endpoint("10.1.0.1", "n")]).into()];
    let facts = NodeFacts { name: "n".into(), own: [ip("10.96.0.10")].into(), ..NodeFacts::default() };
    let port: &[_] = &[("", Protocol::Udp, 53, None)];
    // The cluster has CoreDNS of its own on other nodes.
    let wanted = compile(&service("dns", "10.96.0.10", port), &slices, &facts);
    assert_eq!((wanted.v4.len(), wanted.notices), (0, vec![NoticeReason::Own { address: ip("10.96.0.10") }]));
    // A Service at another address gets no frontend at the node's own address either.
    let mut other = service("dns", "10.96.0.11", port);
    other.external_ips = vec![ip("10.96.0.10"), ip("198.51.100.1")];
    other.load_balancer_ips = vec![ip("10.96.0.10")];
    let wanted = compile(&other, &slices, &facts);
    let own = NoticeReason::Own { address: ip("10.96.0.10") };
    assert_eq!((wanted.v4.len(), wanted.notices), (1, vec![own.clone(), own]));
    assert!(wanted.v4[0].frontends.iter().all(|(key, _)| key.addr != u32::from_ne_bytes([10, 96, 0, 10])));
    assert_eq!(
        wanted.v4[0].frontends.len(),
        3,
        "the ClusterIP with its bare address, and the other external address"
    );
    // Where the node does not answer the address, a Service may have it.
    let wanted = compile(&service("dns", "10.96.0.10", port), &slices, &NodeFacts::default());
    assert_eq!((wanted.v4.len(), wanted.notices), (1, vec![]));
}
