//! The node's devices, and the devices of pods.

use crate::*;

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
    world.state().attached.insert(1, DeviceRole::Uplink);
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
fn sockets_are_answered_while_the_programs_for_packets_are_loaded() {
    let world = listed();
    {
        let mut state = world.state();
        state.services = Arc::new(vec![web("a", "10.96.0.1")]);
        state.pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
        state.networks.insert(uid("p"), network(1, 100));
        state.loading = true;
    }
    let mut engine = engine(&world);
    let due = engine.round().unwrap();
    {
        let mut state = world.state();
        assert!(state.hooked > 0 && state.frontends.contains_key(&(ip("10.96.0.1"), 80)));
        assert!(state.attached.is_empty(), "a device gets all of its programs or none");
        assert!(!state.health.hooked, "not all is answered yet");
        assert_eq!(state.health.failures, [""; 0]);
        assert!(due < Duration::from_millis(100), "{due:?}");
        state.loading = false;
    }
    engine.round();
    let state = world.state();
    assert_eq!(state.attached.keys().copied().collect::<Vec<_>>(), [100]);
    assert!(state.health.hooked);
}

#[test]
fn programs_for_packets_that_the_kernel_refuses_are_loaded_again() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    world.state().loading = true;
    let mut engine = engine(&world);
    engine.round();
    world.state().refuse_packet_programs = true;
    engine.round();
    assert_eq!(world.state().health.failures, ["cannot open the tables of Services: refused"]);
    world.state().refuse_packet_programs = false;
    world.state().loading = false;
    rounds(&mut engine, &world, |w| w.state().health.hooked);
    assert_eq!(world.state().opened, 2);
}
