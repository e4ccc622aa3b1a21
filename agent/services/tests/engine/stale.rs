//! Clients of stale UDP backends.

use crate::*;

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
