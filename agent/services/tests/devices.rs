//! The kernel's word of devices, on the real kernel. Needs root and `ip`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_services::DeviceEvents;
use berth_sys::netlink::RouteEvents;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

fn ip(args: &str) {
    let out = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A network namespace with that name; its devices go with it.
struct Netns(String);

impl Drop for Netns {
    fn drop(&mut self) {
        // One that could not be made is no matter.
        Command::new("ip").args(["netns", "del", &self.0]).output().ok();
    }
}

/// Waits until the kernel has told that the device is gone: by then it has told all that came before.
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
    let netns = Netns(format!("berth-devices-{}", std::process::id()));
    ip(&format!("netns add {}", netns.0));
    let path = PathBuf::from("/run/netns").join(&netns.0);
    let change = |args: &[&str]| args.iter().for_each(|args| ip(&format!("-n {} {args}", netns.0)));
    // The name of a device that an address is told of is looked up where the events are read.
    let run = || {
        let all = RouteEvents::open(&[1, 5, 9]).unwrap();
        // What the namespace's own beginning tells is read up to here.
        change(&["link add first type bridge", "link del first"]);
        told_gone(&all, "first");
        let events = DeviceEvents::open(vec!["vethup".to_owned()]).unwrap();
        change(&[
            "link add vethpod type veth peer name vethpeer",
            "link set vethpod up",
            "addr add 192.0.2.9/24 dev vethpod",
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
