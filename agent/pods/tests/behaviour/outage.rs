//! Behaviour when containerd stops and comes back.

use crate::fake::{
    Agent, Node,
    pods::{container, pod, probed},
    store, wanted,
};
use berth_core::{
    model::Pod,
    plan::{Exit, RunState},
    status::{ContainerState, Truth},
};
use berth_pods::NodeEvent;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn nothing_is_restarted_and_an_exit_of_that_time_is_learnt() {
    let (_dir, store) = store();
    let node = Node::new();
    let pods: Vec<Pod> = (0..5).map(|n| pod(&format!("p{n}"), vec![probed("c"), container("d")])).collect();
    let agent = Agent::start(&node, &store, wanted(pods.clone())).await;
    for p in &pods {
        agent.ready(&p.uid).await;
    }
    let runs: Vec<_> = pods.iter().map(|p| node.running(&p.uid, "c")).collect();
    let readiness: Vec<_> = pods.iter().map(|p| agent.reports.readiness(&p.uid)).collect();
    let before = node.lock().log.len();
    node.outage().await;
    node.exit(&pods[0].uid, "d", 9).await;
    node.pass(SECOND * 600).await;
    assert_eq!(node.lock().log.len(), before, "nothing is asked of it");
    assert!(node.lock().observations.is_empty(), "nor is it polled");
    for (p, shown) in pods.iter().zip(readiness) {
        assert_eq!(agent.reports.readiness(&p.uid), shown);
        assert_eq!(shown.last(), Some(&Truth::True));
    }
    let asked = node.lock().asked;
    assert!(asked >= 5 * 60, "probes go on: {asked}");
    node.back().await;
    node.until("restarted", |_| node.starts(&pods[0].uid, "d").len() == 2).await;
    agent.ready(&pods[0].uid).await;
    let last = agent.reports.container(&pods[0].uid, "d").last_state.unwrap();
    assert_eq!(last.exit_code, 9);
    assert!(last.started_at.is_some(), "known from before");
    node.pass(SECOND * 60).await;
    assert!(node.lock().asked > asked);
    for (p, run) in pods.iter().zip(runs) {
        assert_eq!(node.running(&p.uid, "c"), run);
        let restarts = agent.reports.container(&p.uid, "c").restart_count;
        assert_eq!(restarts, 0);
        let mounts = node.kinds(&p.uid).into_iter().filter(|k| *k == "MountVolumes").count();
        assert_eq!(mounts, 1, "what this life mounted is trusted");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_about_to_start_or_to_end_does_so_after() {
    let (_dir, store) = store();
    let node = Node::new();
    let (starting, ending) = (pod("starting", vec![]), pod("ending", vec![]));
    let agent = Agent::start(&node, &store, wanted([ending.clone()])).await;
    agent.ready(&ending.uid).await;
    node.outage().await;
    agent.want(|d| *d = wanted([starting.clone()]));
    node.pass(SECOND * 600).await;
    assert!(node.running(&ending.uid, "c").is_some());
    assert!(node.starts(&starting.uid, "c").is_empty());
    node.back().await;
    agent.ready(&starting.uid).await;
    agent.gone(&ending.uid).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_the_outage_cut_off_is_made_up_for() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    node.trouble(&p.uid, "Start", crate::fake::Trouble::Slow(SECOND));
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    node.until("starting", |_| !node.starts(&p.uid, "c").is_empty()).await;
    node.outage().await;
    node.pass(SECOND * 60).await;
    assert!(node.running(&p.uid, "c").is_none());
    node.no_trouble();
    node.back().await;
    agent.ready(&p.uid).await;
    assert_eq!(agent.reports.container(&p.uid, "c").restart_count, 0);
}

/// The relist is stale when it arrives: pods have started and exited since the listing.
#[tokio::test(start_paused = true)]
async fn a_list_from_before_a_start_or_an_exit_does_not_undo_it() {
    let (_dir, store) = store();
    let node = Node::new();
    let (a, b) = (pod("a", vec![]), pod("b", vec![]));
    let agent = Agent::start(&node, &store, wanted([b.clone()])).await;
    agent.ready(&b.uid).await;
    let stale = node.list();
    node.pass(Duration::from_millis(1)).await;
    agent.want(|d| drop(d.pods.insert(a.uid.clone(), a.clone().into())));
    agent.ready(&a.uid).await;
    node.exit(&b.uid, "c", 1).await;
    node.until("b again", |_| node.starts(&b.uid, "c").len() == 2).await;
    agent.ready(&b.uid).await;
    let runs = [node.running(&a.uid, "c"), node.running(&b.uid, "c")];
    let before = node.lock().log.len();
    node.send(stale).await;
    node.pass(SECOND * 60).await;
    assert_eq!([node.running(&a.uid, "c"), node.running(&b.uid, "c")], runs);
    let new: Vec<_> = node.lock().log.iter().skip(before).map(|(_, _, a)| a.clone()).collect();
    assert_eq!(new, [], "nothing was believed of it");
    assert!(agent.reports.is_ready(&a.uid) && agent.reports.is_ready(&b.uid));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_vanished_is_recorded_as_unknown_and_followed_by_the_next() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&p.uid).await;
    let id = node.running(&p.uid, "c").unwrap();
    node.outage().await;
    {
        // The shim was killed with its container, so containerd has no task and no exit status.
        let mut state = node.lock();
        let c = state.pods.get_mut(&p.uid).unwrap().1.containers.get_mut(&id).unwrap();
        (c.state, c.task) = (RunState::NotStarted, false);
    }
    node.pass(SECOND).await;
    node.back().await;
    node.until("next", |_| node.starts(&p.uid, "c").len() == 2).await;
    agent.ready(&p.uid).await;
    let last = agent.reports.container(&p.uid, "c").last_state.unwrap();
    assert_eq!((last.exit_code, last.reason.as_str()), (255, "Unknown"));
}

#[tokio::test(start_paused = true)]
async fn killed_for_memory_while_nobody_listened() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = Pod { restart_policy: berth_core::model::RestartPolicy::Never, ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&p.uid).await;
    let id = node.running(&p.uid, "c").unwrap();
    node.message(&p.uid, berth_pods::WorkerMessage::Oom(id.clone())).await;
    node.outage().await;
    node.exit(&p.uid, "c", 137).await;
    node.pass(SECOND).await;
    node.back().await;
    node.until("stored", |s| {
        matches!(&s.pods[&p.uid].1.containers[&id].state, RunState::Recorded(Exit { oom: true, .. }))
    })
    .await;
    node.until("reported", |_| {
        matches!(agent.reports.container(&p.uid, "c").state, ContainerState::Terminated(t) if t.reason == "OOMKilled")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_word_of_loss_after_the_list_is_not_overruled_by_an_earlier_look() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    node.trouble(&p.uid, "Start", crate::fake::Trouble::Fails);
    node.trouble(&p.uid, "observe", crate::fake::Trouble::Slow(SECOND * 5));
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    node.until("observations", |s| s.observations.contains_key(&p.uid)).await;
    node.pass(SECOND).await;
    node.send(NodeEvent::RuntimeLost).await;
    node.no_trouble();
    let before = node.lock().log.len();
    node.pass(SECOND * 120).await;
    assert_eq!(node.lock().log.len(), before, "the look had begun before the loss");
    node.back().await;
    agent.ready(&p.uid).await;
}
