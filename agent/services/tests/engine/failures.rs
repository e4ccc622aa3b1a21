//! Failures of parts, and repair of what others did to the maps.

use crate::*;

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
fn what_the_tables_lack_is_a_problem_of_the_node() {
    let world = listed();
    let short = "table SERVICE4 has room for 16 entries, not for 32".to_owned();
    world.state().shortcomings = vec![short.clone()];
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| w.state().health.failures == [short.as_str()]);
}

#[test]
fn after_a_failed_self_test_the_kernel_is_compared_at_once() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    let mut engine = engine(&world);
    engine.round();
    let there = world.state().frontends.len();
    assert!(there > 0);
    world.state().spoil.services = true;
    engine.round();
    world.state().doubted = true;
    engine.round();
    assert_eq!(world.state().frontends.len(), there);
    assert!(!world.state().spoil.services, "the maps were read");
}

#[test]
fn the_service_of_the_self_test_is_in_the_tables_beside_the_others() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    let test =
        berth_services::SelfTest::open(&berth_core::roots::Roots::defaults("n".parse().unwrap())).unwrap();
    let config = Config {
        node: "n".into(),
        zone: "".into(),
        networks: Vec::new(),
        reconcile: Duration::from_secs(3600),
        next_id: 1,
        self_test: test.service(),
    };
    let mut engine = Engine::new(config, world.kernel(), world.node());
    engine.round();
    let state = world.state();
    assert_eq!(state.frontends.get(&(ip("192.0.0.8"), 10256)), Some(&1), "{:?}", state.frontends);
    assert!(state.frontends.contains_key(&(ip("10.96.0.1"), 80)));
}

#[test]
fn pins_that_somebody_has_removed_are_made_again_with_all_entries() {
    let world = listed();
    world.state().services = Arc::new(vec![web("a", "10.96.0.1")]);
    world.state().pods.insert(uid("p"), Some(pod("p", "a", "10.2.0.1")));
    world.state().networks.insert(uid("p"), network(1, 100));
    let mut engine = reconciling(&world, Duration::from_millis(1));
    engine.round();
    {
        let mut state = world.state();
        assert_eq!(state.opened, 1);
        state.lost = true;
        state.clients.clear();
        state.pods4.clear();
        state.attached.clear();
        state.frontends.clear();
    }
    rounds(&mut engine, &world, |w| {
        let state = w.state();
        state.opened == 2
            && state.clients.len() == 2
            && state.pods4.len() == 1
            && state.attached.len() == 1
            && state.frontends.contains_key(&(ip("10.96.0.1"), 80))
    });
}
