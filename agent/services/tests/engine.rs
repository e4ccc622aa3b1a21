//! Tests of the engine with an in-memory node and kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::{
    model::{EndpointSlice, Protocol, Service, ServiceType, TrafficPolicy},
    status::{Condition, ConditionType, Truth},
    time::Wall,
};
use berth_ebpf_abi::{client, local_pod};
use berth_ebpf_loader::{Frontend, Role, StalePeer};
use berth_services::{Config, Device, Engine, Net as _, NoticeReason, ObservedPod};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use support::{
    endpoint, key, service, slice,
    world::{FakeKernel, FakeNode, HOST, State, World, network, pod, uid},
};

fn engine(world: &World) -> Engine<FakeKernel, FakeNode> {
    reconciling(world, Duration::from_secs(3600))
}

/// Engine that compares the maps with the written entries at that interval.
fn reconciling(world: &World, reconcile: Duration) -> Engine<FakeKernel, FakeNode> {
    let networks = vec![(ip("10.96.0.0"), 16)];
    let config = Config { node: "n".into(), zone: "".into(), networks, reconcile, next_id: 1 };
    Engine::new(config, world.kernel(), world.node())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn web(name: &str, address: &str) -> Arc<Service> {
    Arc::new(service(name, address, &[("", Protocol::Tcp, 80, None)]))
}

fn selecting(name: &str, address: &str, app: &str) -> Arc<Service> {
    let mut service = service(name, address, &[("", Protocol::Udp, 80, None)]);
    service.selector = vec![("app".into(), app.into())];
    Arc::new(service)
}

fn behind(name: &str, addresses: &[&str]) -> Arc<EndpointSlice> {
    let endpoints = addresses.iter().map(|a| endpoint(a, "")).collect();
    Arc::new(slice(&format!("{name}-x"), name, &[("", Protocol::Tcp, 80)], endpoints))
}

/// World whose sources have listed and that has no pod to wait for.
fn listed() -> World {
    let world = World::default();
    world.state().listed = true;
    world
}

/// Runs rounds, as the engine's thread does, until the condition holds.
fn rounds(engine: &mut Engine<FakeKernel, FakeNode>, world: &World, holds: impl Fn(&World) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(world) {
        assert!(Instant::now() < deadline, "{:?}", world);
        let due = engine.round().unwrap_or(Duration::from_millis(10));
        std::thread::park_timeout(due.min(Duration::from_millis(10)));
    }
}

fn lost(backend: &str, frontend: Option<Frontend>) -> StalePeer {
    StalePeer { backend: backend.parse().unwrap(), frontend }
}

fn backends(world: &World, address: &str) -> Option<u16> {
    world.state().frontends.get(&(ip(address), 80)).copied()
}

fn published(world: &World) -> (usize, usize) {
    let state = world.state();
    (state.zones, state.files)
}

#[test]
fn nothing_is_written_before_all_is_known() {
    let world = World::default();
    world.state().services = Arc::new(vec![selecting("web", "10.96.0.1", "a")]);
    world.state().wanted = vec![uid("a")];
    let mut engine = engine(&world);
    engine.round();
    assert_eq!(world.state().opened, 0, "the sources have not listed");
    world.state().listed = true;
    world.state().pods.insert(uid("a"), None);
    engine.round();
    assert_eq!(world.state().opened, 0, "a wanted pod was not looked at");
    world.state().pods.insert(uid("a"), Some(pod("a", "a", "10.1.0.1")));
    world.state().networks.insert(uid("a"), network(7, 70));
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(1));
    let state = world.state();
    assert_eq!((state.opened, state.hooked, state.configured), (1, 1, 1));
    assert_eq!(state.attached.get(&70), Some(&Role::Pod));
    assert_eq!(state.clients.keys().copied().collect::<Vec<_>>(), [HOST, 70]);
}

#[test]
fn a_change_is_followed_alone() {
    let world = listed();
    for n in 0..50 {
        let (name, address) = (format!("s{n}"), format!("10.96.0.{n}"));
        Arc::make_mut(&mut world.state().services).push(web(&name, &address));
        Arc::make_mut(&mut world.state().slices).push(behind(&name, &["10.1.0.1", "10.1.0.2"]));
    }
    for n in 0..20 {
        Arc::make_mut(&mut world.state().services).push(selecting(
            &format!("p{n}"),
            &format!("10.96.1.{n}"),
            &format!("app{}", n % 10),
        ));
        let (name, app) = (format!("pod{n}"), format!("app{n}"));
        world.state().pods.insert(uid(&name), Some(pod(&name, &app, &format!("10.2.0.{n}"))));
        world.state().networks.insert(uid(&name), network(n + 1, 100 + n as u32));
    }
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| published(w) == (1, 1));
    let written = world.state().written;
    world.state().made_for.clear();

    engine.round();
    assert_eq!(world.state().written, written, "nothing changed");
    assert_eq!(world.state().looked_at, 20, "nothing changed");

    Arc::make_mut(&mut world.state().slices)[7] = behind("s7", &["10.1.0.1"]);
    engine.round();
    assert_eq!(world.state().written, written + 1, "one value");
    assert_eq!(backends(&world, "10.96.0.7"), Some(1));
    assert!(world.state().made_for.is_empty());

    world.state().pods.insert(uid("pod3"), Some(pod("pod3", "app3", "10.2.0.33")));
    engine.round();
    assert_eq!(world.state().made_for, [key("p13"), key("p3")], "those that select it");
    assert_eq!(world.state().written, written + 3);
    assert_eq!(world.state().looked_at, 21, "one pod's network");
    let ended: Vec<_> = world.state().ended.iter().map(|(dead, _)| dead.clone()).collect();
    let by = |address| lost("10.2.0.3:80", Some(Frontend { address: Some(ip(address)), port: 80 }));
    assert_eq!(
        ended,
        [[by("10.96.1.3"), by("10.96.1.13")].into()],
        "UDP clients of the old address, by their way"
    );
    assert_eq!(
        world.state().noted_at,
        [written + 1, written + 3],
        "before the tables, and when all were ended"
    );
    assert!(world.state().dead.is_empty());

    world.state().pods.remove(&uid("pod3"));
    engine.round();
    assert_eq!(backends(&world, "10.96.1.3"), Some(0));
    let state = world.state();
    assert!(!state.attached.contains_key(&103) && !state.clients.contains_key(&40));
    assert_eq!((state.zones, state.files), (1, 1), "no name follows from any of this");
    drop(state);

    Arc::make_mut(&mut world.state().services).remove(7);
    engine.round();
    assert_eq!(backends(&world, "10.96.0.7"), None);
    rounds(&mut engine, &world, |w| published(w) == (2, 2));
}

#[test]
fn sockets_that_an_agent_did_not_get_to_are_ended_by_the_next() {
    let world = listed();
    Arc::make_mut(&mut world.state().services).push(web("s", "10.96.0.1"));
    let gone = lost("10.1.0.9:53", Some(Frontend { address: None, port: 30053 }));
    world.state().dead.insert(gone);
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| published(w) == (1, 1));
    let ended: Vec<_> = world.state().ended.iter().map(|(dead, _)| dead.clone()).collect();
    assert_eq!(ended, [[gone].into()], "once");
    assert!(world.state().dead.is_empty());
}

#[test]
fn clients_of_an_earlier_address_lose_their_backend_too() {
    let world = listed();
    Arc::make_mut(&mut world.state().services).push(selecting("s", "10.96.0.1", "app"));
    world.state().pods.insert(uid("p"), Some(pod("p", "app", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| backends(w, "10.96.0.1") == Some(1));
    Arc::make_mut(&mut world.state().services)[0] = selecting("s", "10.96.0.2", "app");
    rounds(&mut engine, &world, |w| backends(w, "10.96.0.2") == Some(1));
    assert!(world.state().ended.is_empty(), "the backend is there still");
    world.state().pods.remove(&uid("p"));
    rounds(&mut engine, &world, |w| backends(w, "10.96.0.2") == Some(0));
    let by = |address| lost("10.2.0.1:80", Some(Frontend { address: Some(ip(address)), port: 80 }));
    let ended: Vec<_> = world.state().ended.iter().map(|(dead, _)| dead.clone()).collect();
    assert_eq!(ended, [[by("10.96.0.1"), by("10.96.0.2")].into()]);
}

#[test]
fn a_headless_services_endpoints_are_names() {
    let world = listed();
    let mut headless = service("db", "10.96.0.1", &[("", Protocol::Tcp, 80, None)]);
    (headless.headless, headless.cluster_ips) = (true, Vec::new());
    world.state().services = Arc::new(vec![Arc::new(headless)]);
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().zones == 1);
    world.state().slices = Arc::new(vec![behind("db", &["10.1.0.1"])]);
    rounds(&mut engine, &world, |w| w.state().zones == 2);
    Arc::make_mut(&mut world.state().slices).clear();
    rounds(&mut engine, &world, |w| w.state().zones == 3);
}

#[test]
fn what_a_source_does_not_list_stays() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1"), web("b", "10.96.0.2")]);
    let mut engine = engine(&world);
    engine.round();
    {
        let mut state = world.state();
        state.listed = false;
        state.services = Arc::new(vec![web("b", "10.96.0.3")]);
    }
    engine.round();
    assert!(backends(&world, "10.96.0.1").is_some(), "not listed is not gone");
    assert!(backends(&world, "10.96.0.3").is_some() && backends(&world, "10.96.0.2").is_none());
    world.state().listed = true;
    engine.round();
    assert!(backends(&world, "10.96.0.1").is_none());
}

#[test]
fn devices_and_addresses_are_followed() {
    let device = |index, addresses: &[&str], bridge| Device {
        index,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        bridge,
        loopback: index == 1,
        ..Device::default()
    };
    let world = listed();
    // An earlier agent attached loopback as an uplink.
    world.state().attached.insert(1, Role::Uplink);
    world.state().devices = [
        ("lo".to_owned(), device(1, &["127.0.0.1", "::1", "10.96.0.10"], false)),
        ("eth0".to_owned(), device(2, &["192.0.2.1"], false)),
        ("br0".to_owned(), device(3, &["10.1.0.254"], true)),
        ("down0".to_owned(), device(4, &[], false)),
    ]
    .into();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    let mut engine = engine(&world);
    engine.round();
    let uplinks = |world: &World| world.state().attached.keys().copied().collect::<Vec<_>>();
    let nodes = |world: &World| {
        let state = world.state();
        state.nodes4.iter().map(|(a, v)| (a.ip().to_string(), v.node_ports)).collect::<Vec<_>>()
    };
    assert_eq!(uplinks(&world), [2]);
    let mut there = nodes(&world);
    there.sort();
    let own = [("10.1.0.254", 0), ("10.96.0.10", 0), ("192.0.2.1", 1)];
    assert_eq!(there, own.map(|(ip, node_ports)| (ip.to_owned(), node_ports)));
    {
        let mut state = world.state();
        state.devices.insert("down0".to_owned(), device(4, &["198.51.100.1"], false));
        state.devices.remove("eth0");
    }
    engine.round();
    assert_eq!(uplinks(&world), [2], "nobody told");
    world.state().devices_told = true;
    engine.round();
    assert_eq!(uplinks(&world), [4]);
    assert!(nodes(&world).contains(&("198.51.100.1".to_owned(), 1)), "node ports follow the node's address");
    assert!(nodes(&world).iter().all(|(ip, _)| ip != "192.0.2.1"), "{:?}", nodes(&world));
    let masquerade = |world: &World| world.state().masquerade4.map(|v4| v4.ip());
    assert_eq!(masquerade(&world), Some(ip("198.51.100.1")), "and so does the masquerade");
    {
        let mut state = world.state();
        state.node_ips = vec![ip("192.0.2.1")];
        state.devices_told = true;
    }
    engine.round();
    assert!(nodes(&world).contains(&("192.0.2.1".to_owned(), 1)), "an address that was given counts anyhow");
    assert!(nodes(&world).contains(&("198.51.100.1".to_owned(), 0)));
}

#[test]
fn an_address_that_moved_on_stays_with_its_new_pod() {
    let world = listed();
    world.state().pods.insert(uid("old"), Some(pod("old", "a", "10.1.0.1")));
    world.state().networks.insert(uid("old"), network(1, 11));
    // An earlier agent left another client entry.
    world.state().clients.insert(99, Default::default());
    let mut engine = engine(&world);
    engine.round();
    assert_eq!(world.state().clients.keys().copied().collect::<Vec<_>>(), [HOST, 10]);
    {
        let mut state = world.state();
        state.pods = [(uid("new"), Some(pod("new", "a", "10.1.0.1")))].into();
        state.networks = [(uid("new"), network(2, 12))].into();
    }
    engine.round();
    let state = world.state();
    assert_eq!(state.clients.keys().copied().collect::<Vec<_>>(), [HOST, 20]);
    assert_eq!(state.clients.get(&HOST).map(|c| (c.v4, c.flags)), Some((0, client::HOST)));
    assert_eq!(state.pods4.values().map(|p| p.ifindex).collect::<Vec<_>>(), [12]);
    assert_eq!(state.attached.keys().copied().collect::<Vec<_>>(), [12]);
}

#[test]
fn a_pod_may_opt_out_of_the_socket_hooks() {
    let world = listed();
    let annotated = |value: Option<&str>| {
        let ObservedPod { pod, status } = pod("a", "a", "10.1.0.1");
        let mut pod = Arc::unwrap_or_clone(pod);
        pod.annotations.extend(value.map(|v| ("berth.dev/socket-hooks".to_owned(), v.to_owned())));
        ObservedPod { pod: Arc::new(pod), status }
    };
    world.state().networks.insert(uid("a"), network(1, 11));
    let mut engine = engine(&world);
    for (value, flags) in [(None, 0), (Some("off"), local_pod::NO_SOCKET_HOOKS), (Some("on"), 0)] {
        world.state().pods.insert(uid("a"), Some(annotated(value)));
        engine.round();
        let state = world.state();
        assert_eq!(
            state.clients.values().map(|c| c.flags).collect::<Vec<_>>(),
            [client::HOST, flags],
            "{value:?}"
        );
        let own = local_pod::OWN_SOURCE | local_pod::DIRECT;
        assert_eq!(state.pods4.values().map(|p| p.flags).collect::<Vec<_>>(), [flags | own], "{value:?}");
    }
}

/// The plugin that attached a pod decides the treatment of its packets.
#[test]
fn only_pods_of_our_own_plugin_go_past_the_stack() {
    let world = listed();
    let mut engine = engine(&world);
    let (own, direct) = (local_pod::OWN_SOURCE, local_pod::DIRECT);
    for (number, ours, clear, flags) in
        [(1, true, true, own | direct), (2, true, false, own), (3, false, true, 0), (4, false, false, 0)]
    {
        let (inode, mut network) = network(number, 10);
        network.clear = clear;
        network.pair.as_mut().unwrap().ours = ours;
        world.state().networks.insert(uid("a"), (inode, network));
        world.state().pods.insert(uid("a"), Some(pod("a", "a", &format!("10.1.0.{number}"))));
        engine.round();
        let state = world.state();
        assert_eq!(state.pods4.values().map(|p| p.flags).collect::<Vec<_>>(), [flags], "{ours} {clear}");
    }
}

#[test]
fn a_network_that_is_not_there_yet_is_looked_for_again() {
    let world = listed();
    let seen: ObservedPod = pod("a", "a", "10.1.0.1");
    world.state().pods.insert(uid("a"), Some(seen));
    let mut engine = engine(&world);
    engine.round();
    assert_eq!(world.state().clients.keys().copied().collect::<Vec<_>>(), [HOST]);
    world.state().networks.insert(uid("a"), network(1, 11));
    engine.round();
    assert_eq!(world.state().clients.len(), 2);
    let looked = world.state().looked_at;
    engine.round();
    assert_eq!(world.state().looked_at, looked);
}

#[test]
fn a_kernel_that_refuses_is_asked_again_later_and_the_owner_hears_of_conflicts() {
    let world = listed();
    world.state().refuse_open = true;
    world.state().services = Arc::new(vec![web("a", "10.96.0.1"), web("b", "10.96.0.1")]);
    let mut engine = engine(&world);
    let due = engine.round().unwrap();
    assert!(due <= Duration::from_secs(1));
    engine.round();
    assert_eq!(world.state().opened, 1, "a wake alone does not try it again");
    world.state().refuse_open = false;
    rounds(&mut engine, &world, |w| w.state().opened == 2);
    engine.round();
    let state = world.state();
    let told: Vec<_> = state.told.iter().map(|n| (n.service.name.to_string(), n.why.reason())).collect();
    assert_eq!(told, [("b".to_owned(), "ClusterIPAlreadyAllocated")]);
    assert!(matches!(&state.told[0].why, NoticeReason::Taken { by, .. } if *by == key("a")));
}

#[test]
fn a_table_that_is_full_stops_nothing_else_and_is_told() {
    let world = listed();
    // Each Service has two keys: its port and its bare address.
    world.state().capacity = Some(4);
    world.state().services =
        Arc::new(vec![web("a", "10.96.0.1"), web("b", "10.96.0.2"), web("c", "10.96.0.3")]);
    world.state().slices = Arc::new(vec![behind("a", &["10.1.0.1", "10.1.0.2"])]);
    world.state().pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    world.state().devices =
        [("eth0".to_owned(), Device { index: 2, addresses: vec![ip("192.0.2.1")], ..Device::default() })]
            .into();
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().files == 1);
    {
        let state = world.state();
        assert_eq!(
            state.attached.keys().copied().collect::<Vec<_>>(),
            [2, 100],
            "devices get their programs"
        );
        assert!(state.hooked > 0 && state.health.hooked);
        let told: Vec<_> = state.told.iter().map(|n| (n.service.name.to_string(), n.why.reason())).collect();
        assert_eq!(told, [("c".to_owned(), "ServiceTablesFull")]);
        assert_eq!(state.notices.len(), 1);
        let [full, ..] = &*state.health.failures else { panic!("{:?}", state.health) };
        assert!(full.contains("the tables are full: "), "{full}");
    }
    // One round with a change of another Service and a new Service that does not fit.
    Arc::make_mut(&mut world.state().slices)[0] = behind("a", &["10.1.0.2"]);
    Arc::make_mut(&mut world.state().services).push(web("d", "10.96.0.4"));
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(1));
    Arc::make_mut(&mut world.state().services).drain(..2);
    Arc::make_mut(&mut world.state().slices).clear();
    rounds(&mut engine, &world, |w| w.state().notices.is_empty());
    assert!(backends(&world, "10.96.0.3").is_some() && backends(&world, "10.96.0.4").is_some());
    let failures = world.state().health.failures.clone();
    assert!(failures.iter().all(|f| f.contains("nearly full")), "{failures:?}");
}

#[test]
fn a_part_that_fails_is_told_and_the_others_go_on() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    world.state().pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    world.state().refuse_hooks = true;
    let mut engine = engine(&world);
    engine.round();
    {
        let state = world.state();
        assert_eq!(state.attached.keys().copied().collect::<Vec<_>>(), [100]);
        assert!(!state.health.hooked);
        assert_eq!(state.health.failures, ["cannot attach the hooks: no cgroup"]);
    }
    assert!(backends(&world, "10.96.0.1").is_some());
    world.state().refuse_hooks = false;
    rounds(&mut engine, &world, |w| w.state().health.hooked);
    assert!(world.state().health.failures.is_empty());
}

/// Removes an entry from a map.
type Spoiling = fn(&mut State);

#[test]
fn what_somebody_else_did_to_the_maps_is_mended() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    world.state().slices = Arc::new(vec![behind("a", &["10.1.0.1"])]);
    world.state().node_ips = vec![ip("192.0.2.1")];
    world.state().pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    let mut engine = reconciling(&world, Duration::from_millis(1));
    rounds(&mut engine, &world, |w| w.state().files == 1);
    let spoil: [(&str, Spoiling); 6] = [
        ("SERVICE", |s| s.spoil.services = true),
        ("NODE", |s| s.nodes4.clear()),
        ("POD", |s| s.pods4.clear()),
        ("POD_DEVICE", |s| s.pod_devices.clear()),
        ("CLIENT", |s| s.clients.clear()),
        ("CONFIG", |s| s.masquerade4 = None),
    ];
    let whole = |w: &World| {
        let s = w.state();
        let maps =
            s.nodes4.len() == 1 && s.pods4.len() == 1 && s.clients.len() == 2 && s.masquerade4.is_some();
        let maps = maps && s.pod_devices.len() == 1;
        let host = s.clients.get(&HOST).is_some_and(|c| c.flags == client::HOST);
        maps && host
            && !s.spoil.services
            && s.frontends.contains_key(&(ip("10.96.0.1"), 80))
            && s.attached.len() == 1
    };
    for (what, spoil) in spoil {
        assert!(whole(&world), "before {what}");
        {
            let mut state = world.state();
            spoil(&mut state);
            state.spoil.maps = true;
        }
        rounds(&mut engine, &world, whole);
    }
}

#[test]
fn a_pair_of_devices_that_is_made_anew_is_found_without_being_told() {
    let world = listed();
    world.state().pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    let mut engine = reconciling(&world, Duration::from_millis(1));
    engine.round();
    assert_eq!(world.state().attached.keys().copied().collect::<Vec<_>>(), [100]);
    // Namespace and address stay the same. The old pair has taken its links along.
    world.state().attached.remove(&100);
    world.state().networks.insert(uid("p"), network(1, 101));
    rounds(&mut engine, &world, |w| {
        let state = w.state();
        state.pods4.values().all(|p| p.ifindex == 101)
            && state.attached.keys().copied().eq([101])
            && state.pod_devices.keys().copied().eq([101])
    });
}

#[test]
fn a_ready_pods_device_has_its_program_before_the_pod_is_an_endpoint() {
    let world = listed();
    world.state().services = Arc::new(vec![selecting("web", "10.96.0.1", "a")]);
    let mut engine = engine(&world);
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(0));
    let written = world.state().written;
    let mut seen = pod("p", "a", "10.2.0.1");
    Arc::make_mut(&mut seen.status).conditions.push(Condition {
        kind: ConditionType::Ready,
        status: Truth::True,
        reason: None,
        message: None,
        since: Wall(0),
    });
    world.state().pods.insert(uid("p"), Some(seen));
    world.state().networks.insert(uid("p"), network(1, 100));
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(1));
    assert_eq!(world.state().attached_at, [(100, written)]);
}

#[test]
fn the_owner_hears_of_a_health_check_port_that_nobody_answers() {
    let world = listed();
    let mut service = service("web", "10.96.0.1", &[("", Protocol::Tcp, 80, Some(30080))]);
    service.kind = ServiceType::LoadBalancer;
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(32100);
    world.state().services = Arc::new(vec![Arc::new(service)]);
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().files == 1);
    let state = world.state();
    let told: Vec<_> = state.told.iter().map(|n| (n.why.reason(), n.why.to_string())).collect();
    let [("NotCarried", why)] = &*told else { panic!("{told:?}") };
    assert!(why.contains("healthCheckNodePort 32100 is not answered"), "{why}");
    assert_eq!(state.notices.len(), 1, "and `berth services` says so for as long as it holds");
}

/// The API server rejects a ClusterIP that another Service has, whatever their ports.
#[test]
fn a_cluster_ip_is_one_services_with_all_ports() {
    let world = listed();
    let mut other = service("b", "10.96.0.1", &[("", Protocol::Tcp, 81, None)]);
    other.created = Wall(1);
    world.state().services = Arc::new(vec![web("a", "10.96.0.1"), Arc::new(other)]);
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().files == 1);
    let served = |w: &World| w.state().frontends.keys().map(|(_, port)| *port).collect::<Vec<_>>();
    assert_eq!(served(&world), [0, 80]);
    let told: Vec<_> = world.state().told.iter().map(|n| n.why.to_string()).collect();
    assert_eq!(told, ["10.96.0.1 port 81/TCP is held by the older Service default/a"]);
    Arc::make_mut(&mut world.state().services).remove(0);
    rounds(&mut engine, &world, |w| w.state().files == 2);
    assert_eq!(served(&world), [0, 81], "it has the address now");
    assert!(world.state().notices.is_empty());
}

#[test]
fn what_the_tables_lack_is_a_problem_of_the_node() {
    let world = listed();
    let short = "table SERVICE4 has room for 16 entries, not for 32".to_owned();
    world.state().shortcomings = vec![short.clone()];
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().health.failures == [short.as_str()]);
}

#[test]
fn notices_end_with_their_service() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1"), web("b", "10.96.0.1")]);
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().files == 1);
    assert_eq!(world.state().notices.iter().map(|n| n.service.name.as_str()).collect::<Vec<_>>(), ["b"]);
    Arc::make_mut(&mut world.state().services).pop();
    rounds(&mut engine, &world, |w| w.state().files == 2);
    assert!(world.state().notices.is_empty());
    assert_eq!(world.state().told.len(), 1);
}

/// Duration of a round after a change of one slice, pod or Service among many. The test prints it
/// (`--nocapture`) and sets no limit.
#[test]
fn what_a_change_costs_among_ten_thousand_services() {
    const SERVICES: usize = 10_000;
    const PODS: usize = 110;
    let world = listed();
    let ip = |net: &str, n: usize| format!("{net}.{}.{}", n / 256, n % 256);
    {
        let mut state = world.state();
        for n in 0..SERVICES {
            let name = format!("s{n}");
            Arc::make_mut(&mut state.services).push(web(&name, &ip("10.96", n)));
            Arc::make_mut(&mut state.slices).push(behind(&name, &["10.1.0.1", "10.1.0.2", "10.1.0.3"]));
        }
        for n in 0..PODS {
            let (name, app) = (format!("pod{n}"), format!("app{n}"));
            Arc::make_mut(&mut state.services).push(selecting(&format!("p{n}"), &ip("10.97", n), &app));
            state.pods.insert(uid(&name), Some(pod(&name, &app, &ip("10.2", n))));
            state.networks.insert(uid(&name), network(n as u64 + 1, 100 + n as u32));
        }
    }
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| published(w) == (1, 1));
    let mut measure = |what: &str, change: &dyn Fn(usize)| {
        let mut times: Vec<Duration> = (0..1000)
            .map(|n| {
                change(n);
                let written = world.state().written;
                let begun = Instant::now();
                engine.round();
                let took = begun.elapsed();
                assert!(world.state().written > written, "{what} {n}");
                took
            })
            .collect();
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}", times[500], times[990]);
    };
    measure("a slice", &|n| {
        let at = n * 10 % SERVICES;
        let last = format!("10.1.1.{}", n % 250);
        Arc::make_mut(&mut world.state().slices)[at] = behind(&format!("s{at}"), &["10.1.0.1", &last]);
    });
    measure("a pod's address", &|n| {
        let (at, address) = (n % PODS, ip("10.3", n));
        world
            .state()
            .pods
            .insert(uid(&format!("pod{at}")), Some(pod(&format!("pod{at}"), &format!("app{at}"), &address)));
    });
    measure("a Service", &|n| {
        Arc::make_mut(&mut world.state().services)[n] = web(&format!("s{n}"), &ip("10.98", n));
    });
}
