//! The rules of a kube-proxy in a network namespace of the test, as both of its modes leave them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use berth_harness::netns::Netns;
use berth_network::remove_kube_proxy_rules;
use std::process::Command;

/// The tables of mode nftables, in part.
const NFTABLES_MODE: &str = "
table ip kube-proxy {
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
    }
    chain service-a { ip daddr 10.96.0.7 counter; }
    chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
    chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
}
table ip6 kube-proxy {
    chain services { counter; }
}
";

/// The chains of mode iptables as iptables-nft keeps them, in part, beside those of the kubelet and of a plugin.
const IPTABLES_MODE: &str = "
table ip nat {
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; }
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; }
    chain KUBE-SERVICES { }
    chain KUBE-POSTROUTING { }
    chain KUBE-SVC-ABC { }
    chain KUBE-SEP-ABC { }
    chain KUBE-KUBELET-CANARY { }
    chain CNI-HOSTPORT-DNAT { }
}
table ip filter {
    chain INPUT { type filter hook input priority filter; policy accept; }
    chain KUBE-FIREWALL { }
    chain KUBE-FORWARD { }
}
add rule ip nat PREROUTING counter jump CNI-HOSTPORT-DNAT
add rule ip nat PREROUTING counter jump KUBE-SERVICES
add rule ip nat POSTROUTING counter jump KUBE-POSTROUTING
add rule ip nat KUBE-SERVICES ip daddr 10.96.0.7 counter jump KUBE-SVC-ABC
add rule ip nat KUBE-SVC-ABC counter jump KUBE-SEP-ABC
add rule ip nat KUBE-SEP-ABC tcp dport 80 counter
add rule ip filter INPUT counter jump KUBE-FIREWALL
add rule ip filter INPUT counter jump KUBE-FORWARD
add rule ip filter KUBE-FIREWALL counter drop
";

fn ruleset(net: &Netns) -> String {
    let out = net.enter(|| Command::new("nft").args(["list", "ruleset"]).output()).unwrap().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn kube_proxys_rules_go_and_all_others_stay() {
    let net = Netns::unique("kube-proxy").unwrap();
    net.nft(NFTABLES_MODE).unwrap();
    net.nft(IPTABLES_MODE).unwrap();
    net.nft("table inet of-others {\n chain c { counter; }\n}\n").unwrap();
    let removed = net.enter(remove_kube_proxy_rules).unwrap().unwrap();
    assert_eq!(
        removed,
        [
            "table ip kube-proxy",
            "4 chains of table ip nat",
            "1 chains of table ip filter",
            "table ip6 kube-proxy"
        ]
    );
    let left = ruleset(&net);
    for gone in ["kube-proxy", "KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-POSTROUTING", "KUBE-FORWARD"] {
        assert!(!left.contains(gone), "{gone}: {left}");
    }
    for kept in [
        "jump CNI-HOSTPORT-DNAT",
        "jump KUBE-FIREWALL",
        "chain KUBE-FIREWALL",
        "chain KUBE-KUBELET-CANARY",
        "table inet of-others",
    ] {
        assert!(left.contains(kept), "{kept}: {left}");
    }
    assert!(net.enter(remove_kube_proxy_rules).unwrap().unwrap().is_empty(), "there is nothing more");
}
