//! Pods of the API server: their end, their terminal phase, and the pods that the API server lists after their end.

use crate::fake::{
    Agent, Node, Trouble, everywhere, memory_files,
    pods::{container, name, pod, probed},
    store, wanted,
};
use berth_core::{
    ids::PodUid,
    model::{Container, Origin, OriginKind, Pod, Resources},
    plan::{Desired, RunState},
    probe::ProbeResult,
    status::{ApiStatus, ConditionType, ContainerState, ContainerStatus, Phase, TerminalPhase, Truth},
    time::Wall,
};
use berth_pods::DesiredSet;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

fn set(pods: impl IntoIterator<Item = Desired>) -> DesiredSet {
    let pods = pods.into_iter().map(|p| (p.pod.uid.clone(), p)).collect();
    DesiredSet { pods, ..wanted([]) }
}

/// The desired set while the API server is away: it has no pods, and none is known to be absent.
fn unlisted() -> DesiredSet {
    DesiredSet { listed: [OriginKind::Manifest, OriginKind::StaticFile].into(), ..set([]) }
}

fn evicted() -> TerminalPhase {
    TerminalPhase { phase: Phase::Failed, reason: Some("Evicted".into()), message: Some("taint".into()) }
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
async fn an_agent_that_dies_before_the_api_server_lets_the_pod_go_leaves_the_rest_to_the_publisher() {
    let (dir, store) = store();
    let node = Node::new();
    let p = Pod { origin: Origin::Cluster, ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
    end(&agent, &p, 5);
    agent.gone(&p.uid).await;
    node.pass(SECOND).await;
    agent.kill().await;
    let actions = node.kinds(&p.uid).len();

    // The API server is away at first, then it still has the pod.
    let agent = Agent::start(&node, &store, unlisted()).await;
    node.pass(SECOND * 600).await;
    assert!(!agent.reports.shows(&p.uid) && agent.reports.recorded().removed.is_empty());
    agent.want(|d| *d = set([ending(&p, 5)]));
    node.until("reported", |_| agent.reports.recorded().removed.contains_key(&p.uid)).await;
    let last = agent.reports.recorded().removed[&p.uid].clone();
    assert!(last.status.phase.is_terminal() && last.observed && last.gone, "{last:?}");
    assert!(last.status.containers.iter().all(|c| matches!(c.state, ContainerState::Terminated(_))));
    for grace in [4, 3] {
        node.pass(SECOND * 1200).await;
        end(&agent, &p, grace);
    }
    node.pass(SECOND).await;
    assert_eq!(node.kinds(&p.uid).len(), actions, "no second worker: {:?}", node.kinds(&p.uid));
    assert_eq!(memory_files(&dir), ["u-a.json"]);
    agent.want(|d| d.pods.clear());
    node.pass(SECOND).await;
    assert_eq!(memory_files(&dir), [""; 0]);
    agent.kill().await;

    // A manifest that was put back in the meantime is a new pod.
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
    end(&agent, &p, 5);
    agent.gone(&p.uid).await;
    node.pass(SECOND).await;
    agent.kill().await;
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
}

/// The status of a pod with one restart of its ready container `c`, as an API server has it that was told of this run.
fn told(agent: &Agent, p: &Pod) -> Arc<ApiStatus> {
    let status = agent.reports.report(&p.uid).status;
    let container = ContainerStatus { restart_count: 4, ..status.containers[0].clone() };
    Arc::new(ApiStatus {
        phase: Some(Phase::Running),
        start_time: Some(Wall(7_000_000_000)),
        conditions: status
            .conditions
            .iter()
            .map(|c| (c.kind.name().to_owned(), (c.status, Some(c.since))))
            .collect(),
        containers: vec![container],
        ..ApiStatus::default()
    })
}

#[tokio::test(start_paused = true)]
async fn without_its_memory_a_pod_has_the_past_that_the_api_server_tells_also_later() {
    let (dir, store) = store();
    let node = Node::new();
    let p = Pod { origin: Origin::Cluster, ..pod("a", vec![probed("c")]) };
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    agent.ready(&p.uid).await;
    let past = BTreeMap::from([(p.uid.clone(), told(&agent, &p))]);
    let run = node.running(&p.uid, "c");
    agent.kill().await;
    node.lock().answers.insert(name("c"), ProbeResult::Unknown("?".into()));
    for late in [false, true] {
        std::fs::remove_file(dir.path().join("run/memory/u-a.json")).unwrap();
        let both = || DesiredSet { past: past.clone(), ..set([p.clone().into()]) };
        let agent = if late {
            let listed = [OriginKind::Manifest, OriginKind::StaticFile].into();
            let agent = Agent::start(&node, &store, DesiredSet { listed, ..set([]) }).await;
            node.pass(SECOND * 60).await;
            assert_eq!(agent.reports.readiness(&p.uid), [Truth::Unknown]);
            agent.want(|d| *d = both());
            agent
        } else {
            Agent::start(&node, &store, both()).await
        };
        agent.ready(&p.uid).await;
        node.pass(SECOND * 60).await;
        let readiness = agent.reports.readiness(&p.uid);
        assert_eq!(readiness.last(), Some(&Truth::True));
        assert!(late || readiness == [Truth::True], "ready from the first word on: {readiness:?}");
        let status = agent.reports.report(&p.uid).status;
        assert_eq!((status.start_time, status.containers[0].restart_count), (Some(Wall(7_000_000_000)), 4));
        // The agent's own memory is newer than any status.
        let mut old = ApiStatus::clone(&past[&p.uid]);
        old.containers[0].restart_count = 9;
        agent.want(|d| drop(d.past.insert(p.uid.clone(), Arc::new(old))));
        node.pass(SECOND).await;
        assert_eq!(agent.reports.container(&p.uid, "c").restart_count, 4);
        agent.kill().await;
    }
    assert_eq!(node.running(&p.uid, "c"), run);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_readiness_gate_or_of_the_generation_reaches_the_status() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = Pod { readiness_gates: vec!["a.b/c".into()], generation: Some(1), ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, set([p.clone().into()])).await;
    node.until("it runs", |_| node.running(&p.uid, "c").is_some()).await;
    node.pass(SECOND * 5).await;
    assert!(!agent.reports.is_ready(&p.uid));
    let gated = |p: &Pod| Desired { gates: [("a.b/c".into(), Truth::True)].into(), ..p.clone().into() };
    agent.want(|d| drop(d.pods.insert(p.uid.clone(), gated(&p))));
    agent.ready(&p.uid).await;
    assert_eq!(agent.reports.report(&p.uid).status.observed_generation, Some(1));
    let p = Pod { generation: Some(2), ..p };
    agent.want(|d| drop(d.pods.insert(p.uid.clone(), gated(&p))));
    node.until("seen", |_| agent.reports.report(&p.uid).status.observed_generation == Some(2)).await;
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
    let agent = Agent::start(&node, &store, unlisted()).await;
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
    let failed = |p: &Pod| Desired { terminal: Some(evicted()), ..p.clone().into() };
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
    let status = agent.reports.report(&p.uid).status;
    let shown = (status.phase, status.reason.as_deref(), status.message.as_deref());
    assert_eq!(shown, (Phase::Failed, Some("Evicted"), Some("taint")), "those of the API server");
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

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_a_label_of_the_node_and_is_rejected_where_none_comes() {
    let (_dir, store) = store();
    let node = Node::new();
    let needy = |name: &str, value: &str| Pod {
        origin: Origin::Cluster,
        node_selector: [("disk".to_owned(), value.to_owned())].into(),
        ..pod(name, vec![])
    };
    let (fits, fits_not) = (needy("a", "ssd"), needy("b", "tape"));
    let agent = Agent::start(&node, &store, wanted([fits.clone(), fits_not.clone()])).await;
    node.until("they wait", |_| agent.reports.shows(&fits.uid) && agent.reports.shows(&fits_not.uid)).await;
    let report = agent.reports.report(&fits.uid);
    let waiting_for =
        "the node's labels and taints to match the pod's node selector, affinity and tolerations";
    assert_eq!(report.status.waiting_for.as_deref(), Some(waiting_for));
    assert!(!report.observed && never_began(&node, &fits.uid));
    // The label was set before the pod was bound; its news comes after the pod's.
    node.lock().labels.insert("disk".to_owned(), "ssd".to_owned());
    agent.ready(&fits.uid).await;
    node.until("rejected", |_| agent.reports.report(&fits_not.uid).status.phase == Phase::Failed).await;
    let status = agent.reports.report(&fits_not.uid).status;
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    assert!(never_began(&node, &fits_not.uid) && node.elapsed() >= 5 * SECOND);
    // A pod whose labels match already waits for nothing.
    let begun = node.elapsed();
    let late = needy("c", "ssd");
    agent.want(|d| drop(d.pods.insert(late.uid.clone(), late.clone().into())));
    agent.ready(&late.uid).await;
    assert!(node.elapsed() - begun < SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_without_the_api_server_keeps_the_newest_image_of_a_pod() {
    let (_dir, store) = store();
    let node = Node::new();
    let of = |image: &str| Pod {
        origin: Origin::Cluster,
        ..pod("a", vec![Container { image: image.into(), ..container("c") }, container("d")])
    };
    let (old, new) = (of("i:1"), of("i:2"));
    let agent = Agent::start(&node, &store, wanted([old.clone()])).await;
    agent.ready(&old.uid).await;
    agent.want(|d| drop(d.pods.insert(new.uid.clone(), new.clone().into())));
    node.until("replaced", |_| node.starts(&new.uid, "c").len() == 2).await;
    agent.ready(&new.uid).await;
    agent.kill().await;
    // The container of the other image and the untouched one were created from the first specification.
    let agent = Agent::start(&node, &store, unlisted()).await;
    agent.ready(&new.uid).await;
    node.pass(SECOND * 60).await;
    assert_eq!((node.starts(&new.uid, "c").len(), node.starts(&new.uid, "d").len()), (2, 1));
}

/// The pod `name`, whose container requests this much CPU, in this generation of its spec.
fn sized(name: &str, generation: i64, cpu: &str) -> Pod {
    let requests = [("cpu".to_owned(), cpu.parse().unwrap())].into();
    let resources = Resources { requests, ..Resources::default() };
    Pod {
        origin: Origin::Cluster,
        generation: Some(generation),
        ..pod(name, vec![Container { resources, ..container("c") }])
    }
}

fn put(agent: &Agent, pod: &Pod) {
    agent.want(|d| drop(d.pods.insert(pod.uid.clone(), pod.clone().into())));
}

/// The resources of the pod's container, as its run has them.
fn runs_with(node: &Node, uid: &PodUid) -> Option<Resources> {
    let state = node.lock();
    let (_, seen) = state.pods.get(uid)?;
    seen.containers.values().next()?.resources.clone()
}

fn resizes(agent: &Agent, uid: &PodUid) -> Vec<String> {
    agent.reports.reasons(uid).into_iter().filter(|r| r.starts_with("Resize")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_fits_is_set_on_the_running_container_and_told() {
    let (_dir, store) = store();
    let node = Node::new();
    let (first, resized) = (sized("a", 1, "1"), sized("a", 2, "2"));
    let uid = &first.uid;
    let agent = Agent::start(&node, &store, wanted([first.clone()])).await;
    agent.ready(uid).await;
    put(&agent, &resized);
    let wanted_now = Some(resized.containers[0].resources.clone());
    node.until("resized", |_| resizes(&agent, uid).len() == 2).await;
    assert_eq!(runs_with(&node, uid), wanted_now);
    assert_eq!(resizes(&agent, uid), ["ResizeStarted", "ResizeCompleted"]);
    let status = agent.reports.report(uid).status;
    assert_eq!((status.observed_generation, status.is_ready()), (Some(2), true));
    assert_eq!(status.condition(ConditionType::PodResizeInProgress), None);
    agent.kill().await;
    let agent = Agent::start(&node, &store, wanted([resized.clone()])).await;
    agent.ready(uid).await;
    assert!(resizes(&agent, uid).is_empty(), "an earlier agent told of it");
    assert_eq!(node.starts(uid, "c").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_does_not_fit_waits_until_another_pod_has_ended() {
    let (_dir, store) = store();
    let node = Node::new();
    let cpus = [("cpu".to_owned(), "3".parse().unwrap())].into();
    node.lock().allocatable = cpus;
    let (first, other, resized) = (sized("a", 1, "1"), sized("b", 1, "1"), sized("a", 2, "2500m"));
    let uid = &first.uid;
    let pending = |agent: &Agent| {
        let status = agent.reports.report(uid).status;
        let condition = status.condition(ConditionType::PodResizePending)?.clone();
        Some((condition.reason?, condition.message?, condition.generation?))
    };
    let agent = Agent::start(&node, &store, wanted([first.clone(), other.clone()])).await;
    agent.ready(uid).await;
    agent.ready(&other.uid).await;
    put(&agent, &resized);
    node.until("deferred", |_| pending(&agent).is_some()).await;
    let text = "Node didn't have enough resource: cpu, requested: 2500m, used: 1000m, capacity: 3000m";
    let deferred = Some(("Deferred".to_owned(), text.to_owned(), 2));
    assert_eq!(pending(&agent), deferred);
    assert_eq!(agent.reports.report(uid).pod.containers, first.containers);
    assert_eq!(resizes(&agent, uid), ["ResizeDeferred"]);
    agent.kill().await;
    // The next agent knows what is allocated, and that the resize was told of.
    let agent = Agent::start(&node, &store, wanted([resized.clone(), other.clone()])).await;
    agent.ready(uid).await;
    assert_eq!((pending(&agent), resizes(&agent, uid).len()), (deferred, 0));
    assert_eq!(agent.reports.report(uid).pod.containers, first.containers);
    agent.want(|d| drop(d.pods.remove(&other.uid)));
    node.until("resized", |_| resizes(&agent, uid).len() == 2).await;
    assert_eq!(pending(&agent), None);
    assert_eq!(runs_with(&node, uid), Some(resized.containers[0].resources.clone()));
    // A resize that is taken back before it is allocated leaves nothing.
    put(&agent, &sized("a", 3, "10"));
    node.until("deferred", |_| pending(&agent).is_some()).await;
    put(&agent, &sized("a", 4, "2500m"));
    node.until("taken back", |_| pending(&agent).is_none()).await;
    assert_eq!(node.starts(uid, "c").len(), 1);
}
