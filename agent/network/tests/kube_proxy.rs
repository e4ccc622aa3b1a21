//! The rules of a kube-proxy in a network namespace of the test, as both of its modes leave them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use berth_harness::netns::Netns;
use berth_network::{
    end_kube_proxy_handover, forget_kube_proxy_connections, legacy_kube_proxy_tables,
    remove_kube_proxy_handover, remove_kube_proxy_rules,
};
use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

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

/// A connection that kube-proxy has translated goes on when its rules go, and the table that it needs goes after it.
fn a_translated_connection_goes_on(rules: &str, told: &[&str]) {
    let net = Netns::unique("kube-proxy").unwrap();
    net.nft(rules).unwrap();
    let (mut client, mut server) = net
        .enter(|| {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
            let client = TcpStream::connect("127.0.0.9:80").unwrap();
            (client, listener.accept().unwrap().0)
        })
        .unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    assert_eq!(net.enter(remove_kube_proxy_rules).unwrap().unwrap(), told);
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut client, &mut server];
        ends[from].write_all(b"on").unwrap();
        let mut read = [0; 2];
        ends[to].read_exact(&mut read).unwrap();
        assert_eq!(&read, b"on");
    }
    assert!(net.enter(end_kube_proxy_handover).unwrap().unwrap(), "the connection needs the table");
    assert!(ruleset(&net).contains("table ip berth-handover"));
    net.enter(remove_kube_proxy_handover).unwrap().unwrap();
    assert!(!ruleset(&net).contains("berth-handover"));
}

#[test]
fn a_translated_connection_goes_on_without_the_rules_of_mode_nftables() {
    let rules = "table ip kube-proxy {
        chain nat-output { type nat hook output priority -100; policy accept; ip daddr 127.0.0.9 tcp dport 80 dnat to 127.0.0.1:8080; }
    }";
    a_translated_connection_goes_on(rules, &["table ip kube-proxy"]);
}

#[test]
fn a_translated_connection_goes_on_without_the_rules_of_mode_iptables() {
    let rules = "table ip nat {
        chain KUBE-SERVICES { ip daddr 127.0.0.9 tcp dport 80 dnat to 127.0.0.1:8080; }
        chain OUTPUT { type nat hook output priority -100; policy accept; jump KUBE-SERVICES; }
    }";
    a_translated_connection_goes_on(rules, &["1 chains of table ip nat"]);
}

#[test]
fn without_a_translated_connection_nothing_stays() {
    let net = Netns::unique("kube-proxy").unwrap();
    net.nft(NFTABLES_MODE).unwrap();
    net.enter(remove_kube_proxy_rules).unwrap().unwrap();
    assert!(!net.enter(end_kube_proxy_handover).unwrap().unwrap());
    assert_eq!(ruleset(&net), "");
}

/// Where the machine has `iptables-legacy`. The question alone makes no table.
#[test]
fn chains_of_the_older_tables_are_told_of() {
    let net = Netns::unique("legacy").unwrap();
    let names = "/proc/thread-self/net/ip_tables_names";
    let found = || net.enter(|| legacy_kube_proxy_tables().unwrap()).unwrap();
    assert_eq!(found(), Vec::<String>::new());
    let Ok(tables) = net.enter(|| std::fs::read_to_string(names)).unwrap() else { return };
    assert_eq!(tables, "", "the question has made a table");
    let iptables = |args: &str| {
        let run = || Command::new("iptables-legacy").args(args.split(' ')).output();
        net.enter(run).unwrap().ok().filter(|out| out.status.success())
    };
    if iptables("-t nat -N OTHER").is_none() {
        return;
    }
    assert_eq!(found(), Vec::<String>::new());
    iptables("-t nat -N KUBE-SERVICES").unwrap();
    iptables("-t nat -A PREROUTING -j KUBE-SERVICES").unwrap();
    assert_eq!(found(), ["ip nat"]);
    iptables("-t filter -N KUBE-NODEPORTS").unwrap();
    assert_eq!(found().len(), 2);
}

/// A client that goes on to send keeps its connection in the kernel, and with it a backend that is gone.
#[test]
fn a_datagram_is_not_sent_to_a_backend_of_kube_proxys_that_serves_no_more() {
    let net = Netns::unique("kube-proxy").unwrap();
    net.ip("link set lo up").unwrap();
    net.nft(
        "table ip kube-proxy {
            chain nat-output { type nat hook output priority -100; policy accept; ip daddr 127.0.0.9 udp dport 53 dnat to 127.0.0.1:5353; }
        }",
    )
    .unwrap();
    let (server, client) = net
        .enter(|| {
            let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect("127.0.0.9:53").unwrap();
            (server, client)
        })
        .unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let received = || {
        client.send(b"question").unwrap();
        server.recv(&mut [0; 16]).unwrap()
    };
    assert_eq!(received(), 8);
    net.enter(remove_kube_proxy_rules).unwrap().unwrap();
    assert_eq!(received(), 8, "the connection goes on");
    let forget = |backend: &str| {
        let backends = HashSet::from([backend.parse().unwrap()]);
        net.enter(|| forget_kube_proxy_connections(&backends)).unwrap().unwrap()
    };
    assert_eq!([forget("127.0.0.1:5354"), forget("127.0.0.9:5353")], [0, 0]);
    assert_eq!(forget("127.0.0.1:5353"), 1);
    client.send(b"question").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(server.recv(&mut [0; 16]).is_err(), "the rules are gone, and so is the connection");
    net.enter(remove_kube_proxy_handover).unwrap().unwrap();
}
