//! An agent that finds foreign pins: maps of another layout are refused, maps of another schema are replaced
//! by its own.

mod support;

use anyhow::{Result, ensure};
use berth_ebpf_abi::maps;
use berth_ebpf_loader::{OBJECT, Pins, attach, ensure_bpffs, load, report};
use berth_harness::{node::Node, wait};
use berth_tests_services::group::Group;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use support::{Guest, plain, service, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 3, 1);

/// A schema number that differs from this program's.
const OTHER: u32 = 4_000_000_000;

fn apply(node: &Node) -> Result<()> {
    node.apply("web.yaml", &service("web", VIP, 80))?;
    node.apply("web-slice.yaml", &slice("web", None, 8080, &[Ipv4Addr::new(192, 0, 2, 9)]))
}

fn pins(guest: &Guest) -> Result<Pins> {
    let pins = Pins::new(&guest.node.roots.bpf_pins);
    ensure_bpffs(&pins)?;
    Ok(pins)
}

#[test]
fn a_map_of_another_size_is_refused_and_left_alone() {
    if let Err(error) = refused() {
        panic!("{error:?}");
    }
}

fn refused() -> Result<()> {
    let guest = Guest::new("alien", plain()?)?;
    let pins = pins(&guest)?;
    load(&pins, OBJECT, |_| {})?;
    // Another map is pinned under the name, with other sizes of keys and values.
    fs::rename(pins.maps().join(maps::CHUNK4), pins.maps().join(maps::SERVICE4))?;
    let before = report(&pins, true)?;
    apply(&guest.node)?;
    guest.containerd()?;
    guest.agent()?;
    wait::until("the agent says what it refuses", wait::PATIENCE, || {
        fs::read_to_string(guest.node.agent_log()).is_ok_and(|log| log.contains(maps::SERVICE4))
    })?;
    ensure!(guest.node.agent().is_some(), "the agent ended over it");
    let after = report(&pins, true)?;
    ensure!(after.maps == before.maps, "the maps were changed: before {before:?}, after {after:?}");
    ensure!(after.links.is_empty(), "programs were attached over a refused map: {:?}", after.links);
    guest.end()
}

#[test]
fn maps_of_another_schema_are_not_adopted_and_their_hooks_are_taken_over() {
    if let Err(error) = replaced() {
        panic!("{error:?}");
    }
}

fn replaced() -> Result<()> {
    let guest = Guest::new("schema", plain()?)?;
    let pins = pins(&guest)?;
    let other = pins.clone().with_schema(OTHER);
    load(&other, OBJECT, |_| {})?;
    let group = Group::new(&guest.node.roots.cgroup_hooks.to_string_lossy())?;
    attach(&other, group.path())?;
    let before = report(&other, false)?;
    apply(&guest.node)?;
    guest.containerd()?;
    guest.agent()?;
    wait::until("the other schema is gone", wait::PATIENCE, || !other.maps().exists())?;
    let after = report(&pins, true)?;
    ensure!(
        after.maps.iter().all(|m| before.maps.iter().all(|b| b.id != m.id)),
        "a map was adopted: {after:?}"
    );
    let kept =
        before.links.iter().all(|b| after.links.iter().any(|l| l.id == b.id && l.program != b.program));
    ensure!(kept && !before.links.is_empty(), "hooks were not taken over: {before:?}, {after:?}");
    let services = after.maps.iter().find(|m| m.name == maps::SERVICE4).and_then(|m| m.entries);
    ensure!(services.is_some_and(|n| n > 0), "hooks were handed over to empty tables");
    let refused = guest.netns.enter(|| {
        let at = SocketAddr::new(IpAddr::V4(VIP), 80);
        std::net::TcpStream::connect_timeout(&at, Duration::from_millis(100)).is_err()
    })?;
    ensure!(refused, "a client outside of the hooked group reached a Service");
    // The test node removes its cgroup itself.
    std::mem::forget(group);
    guest.end()
}
