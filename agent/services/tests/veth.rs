//! Lookup of a pod's veth pair on the real kernel. Needs root and `ip`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_harness::netns::Netns;
use berth_services::veth_pair;
use std::process::Command;

fn ip(args: &str) -> String {
    let out = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_pods_pair_is_found_from_its_namespace() {
    let host = format!("bv{}", std::process::id());
    let netns = Netns::unique("veth").unwrap();
    let path = netns.path();
    assert_eq!(veth_pair(&path).unwrap(), None, "no device yet");
    ip(&format!("link add {host} type veth peer name eth0 netns {}", netns.name()));
    let pair = veth_pair(&path).unwrap().unwrap();
    let shown = ip(&format!("-o link show dev {host}"));
    assert!(shown.starts_with(&format!("{}: ", pair.host_index)), "{shown}");
    let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
    assert!(shown.contains(&format!("link/ether {}", text(pair.host_mac))), "{shown} {pair:?}");
    let inside = netns.ip("-o link show dev eth0").unwrap();
    assert!(inside.contains(&format!("link/ether {}", text(pair.pod_mac))), "{inside} {pair:?}");
    assert!(!pair.ours, "of some other plugin");
    ip(&format!("link set dev {host} alias berth-cni/0011223344556677/s/eth0"));
    assert!(veth_pair(&path).unwrap().unwrap().ours);
    // A device of another kind is no pod's device.
    ip(&format!("link del {host}"));
    netns.ip("link add eth0 type bridge").unwrap();
    assert_eq!(veth_pair(&path).unwrap(), None);
    assert!(veth_pair(&path.with_file_name("berth-none")).is_err());
}
