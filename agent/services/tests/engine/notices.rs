//! Notices for owners of Services.

use crate::*;

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
fn a_health_check_counts_the_ready_endpoints_of_this_node() {
    let world = listed();
    let mut service = service("web", "10.96.0.1", &[("", Protocol::Tcp, 80, Some(30080))]);
    service.kind = ServiceType::LoadBalancer;
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(32100);
    let mut slice = behind("web", &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
    {
        let slice = Arc::make_mut(&mut slice);
        for (endpoint, (node, ready)) in
            slice.endpoints.iter_mut().zip([("n", true), ("n", false), ("m", true), ("n", true)])
        {
            (endpoint.node, endpoint.ready) = (Some(node.into()), ready);
        }
    }
    world.state().services = Arc::new(vec![Arc::new(service.clone())]);
    world.state().slices = Arc::new(vec![slice]);
    let mut engine = engine(&world);
    let told =
        |w: &World| w.state().health_checks.values().map(|c| (c.port, c.local_endpoints)).collect::<Vec<_>>();
    rounds(&mut engine, &world, |w| told(w) == [(32100, 2)]);
    assert!(world.state().told.is_empty(), "{:?}", world.state().told);
    Arc::make_mut(&mut world.state().slices).clear();
    rounds(&mut engine, &world, |w| told(w) == [(32100, 0)]);
    service.external_policy = TrafficPolicy::Cluster;
    world.state().services = Arc::new(vec![Arc::new(service)]);
    rounds(&mut engine, &world, |w| told(w).is_empty());
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
