//! Which pods the node accepts, in which order, and in conflict with which others.

use crate::fake::{
    Agent, Node, Trouble,
    pods::{container, pod, uid},
    store, wanted,
};
use berth_core::{
    model::{Container, ContainerPort, Origin, Pod, Protocol},
    status::Phase,
    time::Wall,
};
use std::time::Duration;

fn on_port(name: &str) -> Pod {
    let port =
        ContainerPort { name: None, port: 80, protocol: Protocol::Tcp, host_port: Some(8080), host_ip: None };
    pod(name, vec![Container { ports: vec![port], ..container("c") }])
}

fn in_file(name: &str, file: &str, created: i64) -> Pod {
    Pod { origin: Origin::Manifest(file.into()), created: Wall(created), ..on_port(name) }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_an_ending_pod_has_is_free_for_its_successor() {
    let (_dir, store) = store();
    let node = Node::new();
    let (old, renamed) = (on_port("old"), on_port("renamed"));
    let agent = Agent::start(&node, &store, wanted([old.clone()])).await;
    agent.ready(&old.uid).await;
    node.trouble(&old.uid, "UnmountVolumes", Trouble::Slow(Duration::from_secs(60)));
    agent.want(|d| *d = wanted([renamed.clone()]));
    agent.ready(&renamed.uid).await;
    assert!(agent.reports.shows(&old.uid), "the other has not even ended");
    agent.gone(&old.uid).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_no_source_wants_any_more_keeps_nobody_out_after_a_restart() {
    let (_dir, store) = store();
    let node = Node::new();
    let (old, renamed) = (on_port("old"), on_port("renamed"));
    let agent = Agent::start(&node, &store, wanted([old.clone()])).await;
    agent.ready(&old.uid).await;
    agent.kill().await;
    // The sources of the next agent have not all listed yet, so the agent does not end the old pod.
    let unlisted = berth_pods::DesiredSet { listed: Default::default(), ..wanted([renamed.clone()]) };
    let agent = Agent::start(&node, &store, unlisted).await;
    agent.ready(&renamed.uid).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_that_want_one_port_the_first_of_the_file_has_it() {
    // By UID the second pod would sort first. In the last case the second pod is a second younger: age
    // decides before the file name.
    let second = 1_000_000_000;
    for (first, then) in [
        (in_file("z", "/m/a.yaml", 0), in_file("a", "/m/a.yaml", 1)),
        (in_file("z", "/m/a.yaml", 5), in_file("a", "/m/b.yaml", 0)),
        (in_file("z", "/m/b.yaml", 0), in_file("a", "/m/a.yaml", second)),
    ] {
        let (_dir, store) = store();
        let node = Node::new();
        let agent = Agent::start(&node, &store, wanted([then.clone(), first.clone()])).await;
        agent.ready(&first.uid).await;
        node.until("refused", |_| agent.reports.shows(&then.uid)).await;
        let report = agent.reports.report(&then.uid);
        assert!(report.observed, "its worker knows that nothing of it is there");
        let status = report.status;
        assert_eq!((status.phase, status.reason.as_deref()), (Phase::Failed, Some("NodePorts")));
        let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports \
                   (pod default/z has port 8080/TCP)";
        assert_eq!(status.message, Some(format!("Pod was rejected: {why}")));
        let recorded = agent.reports.recorded();
        let events: Vec<_> = recorded.events.iter().filter(|e| e.involved.is_pod(&uid("u-a"))).collect();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].event.reason.as_str(), events[0].event.message.as_str()), ("NodePorts", why));
        assert!(
            status.waiting_for.as_ref().is_some_and(|w| w.contains(why) && w.contains("not tried again"))
        );
    }
}
