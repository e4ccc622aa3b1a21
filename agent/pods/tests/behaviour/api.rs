//! Pods of the API server: their end, their terminal phase, and the pods that the API server lists after their end.

use crate::fake::{
    Agent, Node, Trouble, everywhere,
    pods::{container, pod},
    store, wanted,
};
use berth_core::{
    ids::PodUid,
    model::{Origin, OriginKind, Pod},
    plan::{Desired, RunState},
    status::Phase,
};
use berth_pods::DesiredSet;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn set(pods: impl IntoIterator<Item = Desired>) -> DesiredSet {
    let pods = pods.into_iter().map(|p| (p.pod.uid.clone(), p)).collect();
    DesiredSet { pods, ..wanted([]) }
}

fn ending(pod: &Pod, grace: u32) -> Desired {
    Desired { end: Some(grace), ..pod.clone().into() }
}

/// Tells the agent that the API server granted the pod this grace period.
fn end(agent: &Agent, pod: &Pod, grace: u32) {
    agent.want(|d| drop(d.pods.insert(pod.uid.clone(), ending(pod, grace))));
}

/// Runs a pod that does not hear its signal and is then granted this grace period. Returns the time of the signal.
async fn deaf(agent: &Agent, node: &Node, pod: &Pod, grace: u32) -> Duration {
    agent.ready(&pod.uid).await;
    node.trouble(&pod.uid, "Signal", Trouble::Stuck);
    end(agent, pod, grace);
    node.until("signalled", |_| node.kinds(&pod.uid).contains(&"Signal")).await;
    node.elapsed()
}

fn never_began(node: &Node, uid: &PodUid) -> bool {
    node.kinds(uid)
        .iter()
        .all(|kind| !matches!(*kind, "Start" | "MakeSandbox" | "MountVolumes" | "EnsureImage"))
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_first_seen_while_it_terminates_starts_nothing_and_ends() {
    let (_dir, store) = store();
    let node = Node::new();
    // The node would reject the pod, which matters no more.
    let p = Pod { node_selector: [("no".to_owned(), "such".to_owned())].into(), ..pod("a", vec![]) };
    let _agent = Agent::start(&node, &store, set([ending(&p, 30)])).await;
    node.until("removed", |_| node.kinds(&p.uid).contains(&"RemovePod")).await;
    assert!(never_began(&node, &p.uid), "{:?}", node.kinds(&p.uid));
}

#[tokio::test(start_paused = true)]
async fn a_smaller_grace_period_shortens_a_stop_and_a_larger_one_changes_nothing() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    let signalled = deaf(&agent, &node, &p, 60).await;
    node.pass(SECOND * 10).await;
    end(&agent, &p, 500);
    node.pass(SECOND * 10).await;
    end(&agent, &p, 5);
    node.until("killed", |_| node.kinds(&p.uid).contains(&"Kill")).await;
    let took = node.elapsed() - signalled;
    assert!(
        took >= SECOND * 25 && took < SECOND * 27,
        "5 s from the moment at which they were granted: {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_granted_less_than_its_spec_says_keeps_that_when_it_is_absent() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = Pod { grace_seconds: 600, ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    let signalled = deaf(&agent, &node, &p, 20).await;
    node.pass(SECOND).await;
    agent.want(|d| d.pods.clear());
    node.until("killed", |_| node.kinds(&p.uid).contains(&"Kill")).await;
    let took = node.elapsed() - signalled;
    assert!(took < SECOND * 22, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_that_the_api_server_still_lists_gets_no_second_worker() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
    end(&agent, &p, 5);
    node.until("removed", |_| node.kinds(&p.uid).contains(&"RemovePod")).await;
    node.pass(SECOND).await;
    // A finalizer keeps the object for an hour, and others change it meanwhile.
    let actions = node.kinds(&p.uid).len();
    for grace in [4, 3, 2] {
        node.pass(SECOND * 1200).await;
        end(&agent, &p, grace);
    }
    node.pass(SECOND).await;
    assert_eq!(node.kinds(&p.uid).len(), actions, "{:?}", node.kinds(&p.uid));
    // The name is free for the next pod.
    let next = Pod { uid: "u-next".parse().unwrap(), ..p.clone() };
    agent.want(|d| drop(d.pods.insert(next.uid.clone(), next.clone().into())));
    agent.ready(&next.uid).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_source_of_its_own_origin_alone() {
    let (_dir, store) = store();
    let node = Node::new();
    let of = |name: &str, origin| Pod { origin, ..pod(name, vec![]) };
    let file = of("file", Origin::StaticFile("/static/p.yaml".into()));
    let api = of("api", Origin::Cluster);
    let agent = Agent::start(&node, &store, wanted([file.clone(), api.clone()])).await;
    for p in [&file, &api] {
        agent.ready(&p.uid).await;
    }
    agent.kill().await;

    // The API server is away, and the file of the static pod is gone: of the two only that pod ends.
    let listed = [OriginKind::Manifest, OriginKind::StaticFile].into();
    let agent = Agent::start(&node, &store, DesiredSet { listed, ..set([]) }).await;
    agent.gone(&file.uid).await;
    node.pass(SECOND * 600).await;
    assert!(node.running(&api.uid, "c").is_some());
    // The same with a pod that has its worker already.
    let again = of("again", Origin::StaticFile("/static/q.yaml".into()));
    agent.want(|d| drop(d.pods.insert(again.uid.clone(), again.clone().into())));
    agent.ready(&again.uid).await;
    agent.want(|d| d.pods.clear());
    agent.gone(&again.uid).await;
    assert!(node.running(&api.uid, "c").is_some());
    agent.want(|d| d.listed = everywhere());
    agent.gone(&api.uid).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_api_server_shows_as_failed_is_torn_down_and_never_runs_again() {
    let (_dir, store) = store();
    let node = Node::new();
    let (p, late) = (pod("a", vec![container("c"), container("d")]), pod("late", vec![]));
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
    let failed = |p: &Pod| Desired { terminal: Some(Phase::Failed), ..p.clone().into() };
    agent.want(|d| d.pods.extend([&p, &late].map(|p| (p.uid.clone(), failed(p)))));
    node.until("signalled", |_| node.kinds(&p.uid).contains(&"Signal")).await;
    for name in ["c", "d"] {
        node.until("it runs", |_| {
            node.running(&p.uid, name).is_some() || node.newest(&p.uid, name).is_some()
        })
        .await;
        if node.running(&p.uid, name).is_some() {
            node.exit(&p.uid, name, 0).await;
        }
    }
    node.until("torn down", |s| {
        s.pods.get(&p.uid).is_some_and(|(_, seen)| seen.sandbox.is_none() && !seen.volumes_present)
    })
    .await;
    node.pass(SECOND * 600).await;
    assert_eq!(agent.reports.report(&p.uid).status.phase, Phase::Failed, "the phase of the API server");
    assert_eq!(node.starts(&p.uid, "c").len(), 1);
    let records =
        node.lock().pods[&p.uid].1.containers.values().all(|c| matches!(c.state, RunState::Recorded(_)));
    assert!(records, "the records stay for their logs");
    assert!(never_began(&node, &late.uid), "{:?}", node.kinds(&late.uid));
    assert_eq!(agent.reports.report(&late.uid).status.phase, Phase::Failed);
    // Deleted at last.
    end(&agent, &p, 30);
    node.until("removed", |_| node.kinds(&p.uid).contains(&"RemovePod")).await;
}
