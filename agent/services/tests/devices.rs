//! Device events and network reads on the real kernel. Needs root and `ip`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_harness::netns::Netns;
use berth_services::{DefaultRoute, DeviceEvents, LinkLayer, read_network};
use berth_sys::netlink::RouteEvents;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use std::time::{Duration, Instant};

/// Waits for the deletion event of the device. All earlier events have arrived by then.
fn told_gone(all: &RouteEvents, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let named = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(n) if n == name);
    loop {
        let told = all.drain().unwrap();
        let gone = |m: &RouteNetlinkMessage| matches!(m, RouteNetlinkMessage::DelLink(l) if l.attributes.iter().any(named));
        if told.iter().any(gone) {
            return;
        }
        assert!(Instant::now() < deadline, "the kernel does not tell that {name} is gone");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn the_nodes_own_devices_matter_and_pods_do_not() {
    let netns = Netns::unique("devices").unwrap();
    let path = netns.path();
    let change = |args: &[&str]| args.iter().for_each(|args| drop(netns.ip(args).unwrap()));
    // The device of an address event is looked up by name in the namespace of the reading thread.
    let run = || {
        let all = RouteEvents::open(&[1, 5, 9]).unwrap();
        // Events of the namespace's creation are read up to here.
        change(&["link add first type bridge", "link del first"]);
        told_gone(&all, "first");
        let events = DeviceEvents::open(vec!["vethup".to_owned()]).unwrap();
        change(&[
            "link add vethpod type veth peer name vethpeer",
            "link set vethpod up",
            "addr add 192.0.2.9/24 dev vethpod",
            "route add 192.0.2.10 dev vethpod",
            "link del vethpod",
        ]);
        told_gone(&all, "vethpod");
        assert!(!events.drain(), "a pod's devices do not matter");
        for matters in [
            "link add eth0 type bridge",
            "addr add 192.0.2.1/24 dev eth0",
            "addr del 192.0.2.1/24 dev eth0",
            "link del eth0",
            "link add vethup type bridge",
            "link add eth1 address 02:00:00:00:00:01 type bridge",
            "addr add 192.0.2.1/24 dev eth1",
            "link set eth1 up",
            "route add default via 192.0.2.254",
            "route del default",
        ] {
            let events = DeviceEvents::open(vec!["vethup".to_owned()]).unwrap();
            change(&[matters]);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !events.drain() {
                assert!(Instant::now() < deadline, "{matters}: not told");
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    };
    berth_sys::ns::in_net_ns(&path, run).unwrap();
}

#[test]
fn devices_addresses_and_default_routes_are_read() {
    let netns = Netns::unique("network").unwrap();
    let path = netns.path();
    let change = |args: &[&str]| args.iter().for_each(|args| drop(netns.ip(args).unwrap()));
    change(&[
        "link set lo up",
        "addr add 10.96.0.10/32 dev lo",
        "link add br0 type bridge",
        "link add vethpod type veth peer name eth0",
        "addr add 192.0.2.9/24 dev vethpod",
        "tuntap add dev tun0 mode tun",
        "addr add 10.8.0.2 peer 10.8.0.1 dev tun0",
        "addr add 198.51.100.1/24 dev br0",
        "addr add 198.51.100.2/24 dev br0",
        "addr add 2001:db8::7/64 dev br0 nodad preferred_lft 0",
        "addr add 2001:db8::1/64 dev br0 nodad",
        "link set br0 up",
        "link set vethpod up",
        "link set eth0 up",
        "route add default via 198.51.100.254 src 198.51.100.2 metric 7",
        "route add 203.0.113.0/24 via 198.51.100.254",
        "route add default via 198.51.100.253 table 100",
        "route add unreachable default metric 4000",
    ]);
    let found = berth_sys::ns::in_net_ns(&path, || read_network(&[]).unwrap()).unwrap();
    assert_eq!(found.devices.keys().collect::<Vec<_>>(), ["br0", "eth0", "lo", "tun0"]);
    let ips = |name: &str| {
        let all = found.devices[name].addresses.iter().map(ToString::to_string);
        all.filter(|ip| !ip.starts_with("fe80")).collect::<Vec<_>>()
    };
    // Deprecated addresses come last.
    assert_eq!(ips("br0"), ["198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::7"]);
    assert_eq!(ips("tun0"), ["10.8.0.2"], "not the peer's");
    assert!(ips("lo").contains(&"10.96.0.10".to_owned()));
    let kind = |name: &str| {
        let device = &found.devices[name];
        (device.loopback, device.bridge, device.layer)
    };
    assert_eq!(kind("lo"), (true, false, LinkLayer::Other));
    assert_eq!(kind("br0"), (false, true, LinkLayer::Ethernet));
    assert_eq!(kind("eth0"), (false, false, LinkLayer::Ethernet));
    assert_eq!(kind("tun0"), (false, false, LinkLayer::Layer3));
    let route = DefaultRoute {
        v6: false,
        metric: 7,
        source: Some("198.51.100.2".parse().unwrap()),
        devices: vec![found.devices["br0"].index],
    };
    assert_eq!(found.routes, [route]);
    // A named pod device is included, but without its addresses, which belong to the pod network.
    let named = || read_network(&["vethpod".to_owned()]).unwrap();
    let named = berth_sys::ns::in_net_ns(&path, named).unwrap();
    assert!(named.devices["vethpod"].addresses.is_empty());
}
