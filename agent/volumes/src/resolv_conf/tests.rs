use super::*;
use crate::testing::{facts, pod};
use proptest::prelude::*;
use std::sync::Arc;

const NODE: &str = "# comment\nsearch old.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
    search example.org. . sub.example.org\noptions edns0 ndots:2 ndots:3\nsortlist 1.2.3.4\n";

fn made(p: &Pod, f: &PodFacts) -> (String, Vec<String>) {
    let (conf, events) = pod_conf(p, f, Some(ResolvConf::parse(NODE))).unwrap();
    (conf.text(), events.into_iter().map(|e| e.reason).collect())
}

#[test]
fn the_dns_policy_chooses_cluster_or_node_resolver() {
    let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local example.org sub.example.org\n\
        nameserver 10.96.0.10\noptions ndots:5\n";
    let node = "search example.org sub.example.org\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
        options edns0 ndots:3\n";
    for (policy, host_network, expected) in [
        (DnsPolicy::ClusterFirst, false, cluster),
        (DnsPolicy::ClusterFirst, true, node),
        (DnsPolicy::ClusterFirstWithHostNet, true, cluster),
        (DnsPolicy::Default, false, node),
        (DnsPolicy::None, false, ""),
    ] {
        let mut p = pod("x");
        p.dns.policy = policy;
        p.namespaces.host_network = host_network;
        assert_eq!(made(&p, &facts()), (expected.to_owned(), vec![]), "{policy:?} {host_network}");
    }
}

#[test]
fn without_cluster_dns_the_nodes_resolver_is_used_with_an_event() {
    let mut f = facts();
    Arc::make_mut(&mut f.node).cluster_dns.clear();
    let (text, events) = made(&pod("x"), &f);
    assert!(text.contains("nameserver 192.0.2.1\n") && !text.contains("ndots:5"));
    assert_eq!(events, ["MissingClusterDNS"]);
}

#[test]
fn dns_config_is_merged() {
    let mut p = pod("x");
    p.dns.nameservers = vec!["10.96.0.10".parse().unwrap(), "1.1.1.1".parse().unwrap()];
    p.dns.searches = vec!["mine".into(), "cluster.local".into()];
    p.dns.options =
        vec![("ndots".into(), Some("2".into())), ("edns0".into(), None), ("x".into(), Some(String::new()))];
    assert_eq!(
        made(&p, &facts()).0,
        "search default.svc.cluster.local svc.cluster.local cluster.local example.org sub.example.org mine\n\
         nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0 x\n"
    );
    p.dns.policy = DnsPolicy::None;
    assert_eq!(
        made(&p, &facts()).0,
        "search mine cluster.local\nnameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0 x\n"
    );
}

#[test]
fn no_node_file_means_no_resolver() {
    let mut p = pod("x");
    p.dns.policy = DnsPolicy::Default;
    let mut f = facts();
    Arc::make_mut(&mut f.node).ips.push("fd00::1".parse().unwrap());
    let (conf, _) = pod_conf(&p, &f, None).unwrap();
    assert_eq!(conf.text(), "search .\nnameserver 127.0.0.1\nnameserver ::1\n");
}

#[test]
fn entries_beyond_a_limit_are_left_out_with_an_event() {
    let mut p = pod("x");
    p.dns.policy = DnsPolicy::None;
    p.dns.nameservers = (1..=4).map(|i| IpAddr::from([10, 0, 0, i])).collect();
    assert_eq!(
        made(&p, &facts()),
        (
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n".into(),
            vec!["DNSConfigForming".to_owned()]
        )
    );
    p.dns.nameservers.clear();
    p.dns.searches = (0..33).map(|i| format!("s{i}")).collect();
    let (text, events) = made(&p, &facts());
    assert_eq!((text.split(' ').count() - 1, events.len()), (32, 1));
    p.dns.searches = vec!["a".repeat(254), "ok".into()];
    assert_eq!(made(&p, &facts()), ("search ok\n".into(), vec!["DNSConfigForming".to_owned()]));
    p.dns.searches = (0..9).map(|i| format!("{i}{}", "b".repeat(249))).collect();
    let (text, events) = made(&p, &facts());
    assert_eq!((text.split(' ').count() - 1, events.len()), (8, 1));
    p.dns.searches.pop();
    p.dns.searches.push("c".repeat(41));
    assert_eq!(made(&p, &facts()).1.len(), 1, "2049 characters");
    p.dns.searches.pop();
    p.dns.searches.push("c".repeat(40));
    assert_eq!(
        made(&p, &facts()),
        (format!("search {}\n", p.dns.searches.join(" ")), vec![]),
        "just 2048 + 1 - 1"
    );
}

#[test]
fn dns_settings_cannot_add_lines_to_resolv_conf() {
    for bad in ["", "a b", "a\nnameserver 6.6.6.6", "#"] {
        let mut p = pod("x");
        p.dns.searches = vec![bad.into()];
        assert!(pod_conf(&p, &facts(), None).is_err(), "{bad:?}");
        let mut p = pod("x");
        p.dns.options = vec![(bad.into(), None)];
        assert!(pod_conf(&p, &facts(), None).is_err(), "{bad:?}");
        if !bad.is_empty() {
            p.dns.options = vec![("o".into(), Some(bad.into()))];
            assert!(pod_conf(&p, &facts(), None).is_err(), "{bad:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_node_file_gives_a_file_that_reads_back(
        lines in prop::collection::vec("(nameserver|search|options|#|domain|[a ]{0,3})[ \t]?[a.:;# \t\u{85}\u{2028}é]{0,12}", 0..8)
    ) {
        let mut p = pod("x");
        p.dns.policy = DnsPolicy::Default;
        let (conf, _) = pod_conf(&p, &facts(), Some(ResolvConf::parse(&lines.join("\n")))).unwrap();
        let text = conf.text();
        prop_assert!(text.lines().all(|l| ["search ", "nameserver ", "options "].iter().any(|k| l.starts_with(k))));
        prop_assert_eq!(ResolvConf::parse(&text).text(), text);
    }
}
