//! Entries and programs of pods.

use crate::*;

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
    assert_eq!(
        state.attached.keys().copied().collect::<Vec<_>>(),
        [11, 12],
        "the old pod's device is not deleted yet"
    );
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
        generation: None,
    });
    world.state().pods.insert(uid("p"), Some(seen));
    world.state().networks.insert(uid("p"), network(1, 100));
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(1));
    assert_eq!(world.state().attached_at, [(100, written)]);
}
