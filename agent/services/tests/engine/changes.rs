//! Changes of objects and pods: what the engine waits for, and which entries follow.

use crate::*;

/// How often the hooks were attached and the configuration written.
fn written(world: &World) -> (usize, usize) {
    let state = world.state();
    (state.hooked, state.configured)
}

#[test]
fn nothing_is_written_before_all_is_known() {
    let world = World::default();
    world.state().services = Arc::new(vec![selecting("web", "10.96.0.1", "a")]);
    world.state().wanted = vec![uid("a")];
    let mut engine = engine(&world);
    engine.round();
    assert_eq!(written(&world), (0, 0), "the sources have not listed");
    world.state().listed = true;
    world.state().pods.insert(uid("a"), None);
    engine.round();
    assert_eq!(written(&world), (0, 0), "a wanted pod was not looked at");
    world.state().pods.insert(uid("a"), Some(pod("a", "a", "10.1.0.1")));
    world.state().networks.insert(uid("a"), network(7, 70));
    engine.round();
    assert_eq!(backends(&world, "10.96.0.1"), Some(1));
    let state = world.state();
    assert_eq!((state.opened, state.hooked, state.configured), (1, 1, 1));
    assert_eq!(state.attached.get(&70), Some(&DeviceRole::Pod));
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
    assert!(!state.clients.contains_key(&40));
    assert!(
        state.attached.contains_key(&103),
        "the plugin that deletes the device waits for no removal of links"
    );
    assert_eq!((state.zones, state.files), (1, 1), "no name follows from any of this");
    drop(state);

    Arc::make_mut(&mut world.state().services).remove(7);
    engine.round();
    assert_eq!(backends(&world, "10.96.0.7"), None);
    rounds(&mut engine, &world, |w| published(w) == (2, 2));
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
