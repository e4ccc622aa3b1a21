//! Forwarding and masquerade, in a network namespace in place of the host.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod common;

use berth_network::{MasqueradeConfig, NetworkConfig};
use common::{Netns, Node, run, sandbox};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

fn masquerading() -> NetworkConfig {
    NetworkConfig {
        masquerade: Some(MasqueradeConfig { non_masquerade_cidrs: vec!["198.51.100.0/24".parse().unwrap()] }),
        plugin_timeout: Duration::from_secs(20),
    }
}

/// Every sysctl of the namespace that routing could change.
fn sysctls(node: &Node) -> BTreeMap<String, String> {
    node.host
        .enter(|| {
            let mut found = BTreeMap::from(["ip_forward", "ip_local_reserved_ports"].map(|key| {
                let path = format!("/proc/sys/net/ipv4/{key}");
                (key.to_owned(), read(&path))
            }));
            for family in ["ipv4", "ipv6"] {
                let root = format!("/proc/sys/net/{family}/conf");
                for device in fs::read_dir(root).unwrap() {
                    for leaf in fs::read_dir(device.unwrap().path()).unwrap() {
                        let path = leaf.unwrap().path();
                        found.insert(path.display().to_string(), read(path.to_str().unwrap()));
                    }
                }
            }
            found
        })
        .unwrap()
}

/// Content of a sysctl; some are secrets that cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn nft(node: &Node, args: &[&str]) -> String {
    let output = node.host.enter(|| run(Command::new("nft").args(args))).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_hosts_sysctls_and_rules_are_put_back_as_they_were() {
    let node = Node::with_plugin("sysctl");
    node.host.ip("link add up0 type veth peer name up1").unwrap();
    node.host
        .enter(|| {
            // A new namespace inherits the machine's IPv4 settings.
            fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "1").unwrap();
            fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,50000").unwrap();
            fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "0").unwrap();
        })
        .unwrap();
    let before = sysctls(&node);
    assert_eq!(before["ip_forward"], "0");
    let network = node.open_with(masquerading());
    node.block_on(network.prepare_host()).unwrap();
    let during = sysctls(&node);
    assert_eq!(during["ip_forward"], "1");
    assert_eq!(during["ip_local_reserved_ports"], "1024-32767,50000");
    assert_eq!(during["/proc/sys/net/ipv6/conf/all/forwarding"], "1");
    assert_eq!(during["/proc/sys/net/ipv6/conf/up0/accept_ra"], "2", "still listens to its router");
    // A restarted agent finds its own changes and does not record them as the host's values.
    let later = node.open_with(masquerading());
    node.block_on(later.prepare_host()).unwrap();
    assert_eq!(nft(&node, &["list", "tables"]).lines().count(), 1);
    let without = node.open_with(NetworkConfig { masquerade: None, ..masquerading() });
    node.block_on(without.prepare_host()).unwrap();
    assert_eq!(nft(&node, &["list", "ruleset"]), "", "the masquerade was turned off");
    node.block_on(later.prepare_host()).unwrap();
    node.block_on(later.restore_host()).unwrap();
    assert_eq!(sysctls(&node), before);
    assert_eq!(nft(&node, &["list", "ruleset"]), "");
    node.block_on(later.restore_host()).unwrap();
    assert_eq!(sysctls(&node), before);
}

/// A node whose first configuration list is damaged starts, reports it, and masquerades with the
/// first ADD after the repair.
#[test]
fn a_broken_configuration_list_does_not_keep_the_host_from_being_prepared() {
    let node = Node::with_plugin("broken");
    fs::write(node.roots.cni_conf.join("00-x.conflist"), "{").unwrap();
    let network = node.open_with(masquerading());
    node.block_on(network.prepare_host()).unwrap();
    let status = node.block_on(network.ready()).unwrap();
    assert!(!status.ready && status.reason.unwrap().contains("00-x.conflist"));
    let a = Netns::unique("a").unwrap();
    let error = node.block_on(network.add(&sandbox("a", &a.path()))).unwrap_err().to_string();
    assert!(error.contains("00-x.conflist"), "{error}");
    fs::remove_file(node.roots.cni_conf.join("00-x.conflist")).unwrap();
    node.block_on(network.add(&sandbox("a", &a.path()))).unwrap();
    assert!(nft(&node, &["list", "ruleset"]).contains("10.77.0.0/24"));
    node.block_on(network.del("a", None)).unwrap();
    node.block_on(network.restore_host()).unwrap();
}

#[test]
fn two_nodes_on_one_machine_have_their_own_rules() {
    let node = Node::with_plugin("two");
    let other = Node::with_plugin("other");
    // Both nodes are in the first one's namespace.
    let (first, second) = (node.open_with(masquerading()), other.open_with(masquerading()));
    node.block_on(first.prepare_host()).unwrap();
    node.block_on(second.prepare_host()).unwrap();
    assert_eq!(nft(&node, &["list", "tables"]).lines().count(), 2);
    node.block_on(second.restore_host()).unwrap();
    assert_eq!(nft(&node, &["list", "tables"]).lines().count(), 1);
    node.block_on(first.restore_host()).unwrap();
    assert_eq!(nft(&node, &["list", "tables"]), "");
}

/// Source address that a server outside sees: the node's address, but the pod's own address for
/// exempt destinations and between pods.
#[test]
fn egress_is_masqueraded_except_to_pods_and_exempt_networks() {
    let node = Node::with_plugin("masq");
    let outside = Netns::unique("outside").unwrap();
    for (netns, args) in [
        (&node.host, format!("link add up0 type veth peer name up0 netns {}", outside.name()).as_str()),
        (&node.host, "addr add 203.0.113.1/24 dev up0"),
        (&node.host, "addr add 2001:db8:2::1/64 dev up0 nodad"),
        (&node.host, "link set up0 up"),
        (&node.host, "route add 198.51.100.7/32 via 203.0.113.2"),
        (&outside, "addr add 203.0.113.2/24 dev up0"),
        (&outside, "addr add 198.51.100.7/32 dev up0"),
        (&outside, "addr add 2001:db8:2::2/64 dev up0 nodad"),
        (&outside, "link set up0 up"),
        (&outside, "route add 10.77.0.0/24 via 203.0.113.1"),
    ] {
        netns.ip(args).unwrap();
    }
    // The rules must follow the configuration, which comes only after the start.
    let conflist = node.roots.cni_conf.join("10-test.conflist");
    fs::rename(&conflist, conflist.with_extension("later")).unwrap();
    let network = node.open_with(masquerading());
    node.block_on(network.prepare_host()).unwrap();
    fs::rename(conflist.with_extension("later"), &conflist).unwrap();
    let (a, b) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap());
    node.block_on(network.add(&sandbox("a", &a.path()))).unwrap();
    node.block_on(network.add(&sandbox("b", &b.path()))).unwrap();
    for (at, address, seen) in [
        (&outside, "203.0.113.2", "203.0.113.1"),
        (&outside, "198.51.100.7", "10.77.0.1"),
        (&b, "10.77.0.2", "10.77.0.1"),
        (&outside, "2001:db8:2::2", "2001:db8:2::1"),
        (&b, "fd77::2", "fd77::1"),
    ] {
        let listener =
            at.enter(|| TcpListener::bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap()).unwrap();
        let target = listener.local_addr().unwrap();
        let _client =
            a.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap()).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_string(), seen, "towards {address}");
    }
    for id in ["a", "b"] {
        node.block_on(network.del(id, None)).unwrap();
    }
    node.block_on(network.restore_host()).unwrap();
    assert_eq!((node.lasting_leftovers().as_str(), nft(&node, &["list", "ruleset"]).as_str()), ("", ""));
}
