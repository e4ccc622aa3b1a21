//! Restarts of the agent, with and without its stored memory, before and after the source has listed and
//! containerd is up.

use crate::fake::{
    Agent, Node, Trouble, everywhere, memory_files,
    pods::{container, name, pod, probed, uid},
    store, wanted,
};
use berth_core::{
    model::{Container, Hook, Origin, Pod},
    plan::RunState,
    probe::ProbeResult,
    status::{ConditionType, Phase, Truth},
};
use berth_pods::{DesiredSet, MemoryStore, NodeEvent};
use std::{sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

fn full(text: &str) -> Pod {
    Pod {
        init_containers: vec![container("i")],
        ..pod(text, vec![Container { post_start: Some(Hook::Sleep(0)), ..probed("c") }])
    }
}

async fn up(node: &Arc<Node>, agent: &Agent, p: &Pod) {
    if !p.init_containers.is_empty() {
        node.until("init runs", |_| node.running(&p.uid, "i").is_some()).await;
        node.exit(&p.uid, "i", 0).await;
    }
    agent.ready(&p.uid).await;
}

/// Starts an agent, waits until these pods are ready and kills the agent.
async fn up_and_killed<const N: usize>(node: &Arc<Node>, store: &MemoryStore, pods: [&Pod; N]) {
    let agent = Agent::start(node, store, wanted(pods.map(Pod::clone))).await;
    for p in pods {
        up(node, &agent, p).await;
    }
    agent.kill().await;
}

#[tokio::test(start_paused = true)]
async fn with_its_memory_nothing_changes() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = full("a");
    up_and_killed(&node, &store, [&p]).await;
    let (run, before) = (node.running(&p.uid, "c"), node.kinds(&p.uid).len());
    node.pass(SECOND * 30).await;

    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&p.uid).await;
    node.pass(SECOND * 60).await;
    assert_eq!(node.running(&p.uid, "c"), run);
    assert_eq!(agent.reports.readiness(&p.uid), [Truth::True], "ready from the first word on");
    let done: Vec<&str> = node.kinds(&p.uid).into_iter().skip(before).collect();
    assert_eq!(done, ["MountVolumes"], "mounting is done once more rather than trusted");
    // The adopted pod ends as any other.
    agent.want(|d| d.pods.clear());
    agent.gone(&p.uid).await;
}

#[tokio::test(start_paused = true)]
async fn without_its_memory_what_runs_is_taken_for_started_and_readiness_for_unknown() {
    let (dir, store) = store();
    let node = Node::new();
    let p = full("a");
    up_and_killed(&node, &store, [&p]).await;
    let (run, before) = (node.running(&p.uid, "c"), node.kinds(&p.uid).len());
    std::fs::write(dir.path().join("run/memory/u-a.json"), "{\"boot\":\"boot-1\",").unwrap();
    node.lock().answers.insert(name("c"), ProbeResult::Unknown("?".into()));

    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    node.pass(SECOND * 60).await;
    assert_eq!(agent.reports.readiness(&p.uid), [Truth::Unknown], "never false");
    assert_eq!(memory_files(&dir), ["u-a.bad", "u-a.json"], "the torn file is set aside");
    node.lock().answers.clear();
    agent.ready(&p.uid).await;
    assert_eq!(agent.reports.readiness(&p.uid), [Truth::Unknown, Truth::True]);
    assert_eq!(node.running(&p.uid, "c"), run);
    let done: Vec<&str> = node.kinds(&p.uid).into_iter().skip(before).collect();
    assert_eq!(done, ["MountVolumes"], "no hook, no init container again");
    agent.want(|d| d.pods.clear());
    agent.gone(&p.uid).await;
    assert_eq!(memory_files(&dir), [""; 0], "what was set aside goes with its pod");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_at_is_not_taken_for_gone() {
    let (dir, store) = store();
    let node = Node::new();
    let (a, b) = (full("a"), pod("b", vec![]));
    up_and_killed(&node, &store, [&a, &b]).await;
    let run = node.running(&a.uid, "c");
    let before = node.kinds(&a.uid).len();
    // The relist cannot observe this pod, with its memory and without. Observing the pod alone works.
    for forget in [false, true] {
        node.lock().unseen.insert(a.uid.clone());
        if forget {
            std::fs::remove_file(dir.path().join("run/memory/u-a.json")).unwrap();
        }
        let agent = Agent::start(&node, &store, wanted([a.clone(), b.clone()])).await;
        agent.ready(&a.uid).await;
        // The same with an agent that already knows the pod.
        let looks = node.lock().observations.get(&a.uid).copied();
        node.outage().await;
        node.back().await;
        node.until("looked for itself", |s| s.observations.get(&a.uid).copied() > looks).await;
        node.pass(SECOND * 60).await;
        assert_eq!((node.running(&a.uid, "c"), agent.reports.is_ready(&a.uid)), (run.clone(), true));
        let mut done: Vec<&str> = node.kinds(&a.uid).into_iter().skip(before).collect();
        done.retain(|kind| *kind != "MountVolumes");
        assert_eq!(done, [""; 0], "nothing of it is made again");
        agent.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_ended_before_the_source_has_listed() {
    let (_dir, store) = store();
    let node = Node::new();
    let (a, b) = (full("a"), pod("b", vec![]));
    up_and_killed(&node, &store, [&a, &b]).await;
    let runs = [node.running(&a.uid, "c"), node.running(&b.uid, "c")];

    let agent = Agent::start(&node, &store, DesiredSet::default()).await;
    agent.ready(&a.uid).await;
    // Pods that no source has listed yet are still supervised.
    agent.ready(&b.uid).await;
    node.exit(&b.uid, "c", 1).await;
    node.until("restarted", |_| node.starts(&b.uid, "c").len() == 2).await;
    agent.ready(&b.uid).await;
    // The source has listed one pod, but has not finished its list: the other pod stays.
    agent.want(|d| drop(d.pods.insert(a.uid.clone(), a.clone().into())));
    node.pass(SECOND * 600).await;
    assert_eq!(node.running(&a.uid, "c"), runs[0]);
    assert!(agent.reports.is_ready(&b.uid));
    agent.want(|d| d.listed = everywhere());
    agent.gone(&b.uid).await;
    assert_eq!(node.running(&a.uid, "c"), runs[0]);
    assert!(agent.reports.is_ready(&a.uid));
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_before_containerd_has_answered_and_nothing_is_claimed() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = full("a");
    up_and_killed(&node, &store, [&p]).await;
    node.lock().up = false;
    let (run, before) = (node.running(&p.uid, "c"), node.kinds(&p.uid).len());

    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    node.until("shown", |_| agent.reports.shows(&p.uid)).await;
    node.pass(SECOND * 600).await;
    assert_eq!(node.kinds(&p.uid).len(), before);
    let status = agent.reports.report(&p.uid).status;
    assert_eq!(status.condition(ConditionType::Ready).unwrap().status, Truth::True, "as it was");
    assert_eq!(status.waiting_for.as_deref(), Some("containerd to answer"));
    assert!(!agent.reports.report(&p.uid).observed, "remembered, not observed");
    node.back().await;
    agent.ready(&p.uid).await;
    node.pass(SECOND * 60).await;
    assert!(agent.reports.report(&p.uid).observed);
    assert_eq!(agent.reports.readiness(&p.uid), [Truth::True], "no flap");
    assert_eq!(node.running(&p.uid, "c"), run);
}

/// On a busy machine the relist is outdated when it arrives, and observing the pod itself is slow.
#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_of_a_pod_that_nobody_has_looked_at_yet() {
    let (dir, store) = store();
    let node = Node::new();
    let (a, b) = (full("a"), full("b"));
    up_and_killed(&node, &store, [&a, &b]).await;
    let before = [&a, &b].map(|p| (node.running(&p.uid, "c"), node.kinds(&p.uid).len()));
    std::fs::remove_file(dir.path().join("run/memory/u-b.json")).unwrap();

    let agent = Agent::start_unlisted(&node, &store, wanted([a.clone(), b.clone()]));
    let list = node.list();
    node.pass(SECOND * 3).await;
    for p in [&a, &b] {
        node.trouble(&p.uid, "observe", Trouble::Slow(SECOND * 20));
    }
    node.send(list).await;
    node.until("observed", |s| s.observations.contains_key(&a.uid) && s.observations.contains_key(&b.uid))
        .await;
    node.pass(SECOND * 10).await;
    // containerd stops while the pods are observed; after that the observations end.
    node.send(NodeEvent::RuntimeLost).await;
    node.pass(SECOND * 5).await;
    assert_eq!(agent.reports.readiness(&a.uid), [Truth::True], "as it was");
    assert_eq!(agent.reports.readiness(&b.uid), [Truth::Unknown]);
    node.no_trouble();
    node.back().await;
    agent.ready(&a.uid).await;
    agent.ready(&b.uid).await;
    node.pass(SECOND * 60).await;
    assert_eq!(agent.reports.readiness(&a.uid), [Truth::True], "no flap");
    assert_eq!(agent.reports.readiness(&b.uid), [Truth::Unknown, Truth::True], "never false");
    for (p, (run, acted)) in [&a, &b].into_iter().zip(before) {
        assert_eq!(node.running(&p.uid, "c"), run);
        assert_eq!(node.kinds(&p.uid).split_off(acted), ["MountVolumes"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_agents_end_leaves_everything_as_it_is() {
    let (dir, store) = store();
    let node = Node::new();
    let pods = [full("a"), pod("b", vec![]), pod("c", vec![])];
    let agent = Agent::start(&node, &store, wanted(pods.clone())).await;
    for p in &pods {
        up(&node, &agent, p).await;
    }
    // One pod is being terminated.
    let ending = &pods[2].uid;
    node.trouble(ending, "Signal", Trouble::Stuck);
    agent.want(|d| drop(d.pods.remove(ending)));
    node.until("ending", |_| node.kinds(ending).contains(&"Signal")).await;
    let pods_before = node.lock().pods.clone();
    let log_before = node.lock().log.len();
    agent.stop().await;
    node.pass(SECOND * 600).await;
    assert_eq!(node.lock().pods, pods_before);
    assert_eq!(node.lock().log.len(), log_before);
    assert_eq!(memory_files(&dir).len(), 3);
    // The next agent continues the termination and does not restart the grace period.
    node.no_trouble();
    let agent = Agent::start(&node, &store, wanted(pods[..2].to_vec())).await;
    let begun = node.elapsed();
    agent.gone(ending).await;
    assert!(node.elapsed() - begun < SECOND * 3, "its grace was over");
}

#[tokio::test(start_paused = true)]
async fn memory_of_a_pod_of_which_nothing_is_left_ends_well() {
    let (dir, store) = store();
    let node = Node::new();
    let p = full("a");
    up_and_killed(&node, &store, [&p]).await;
    node.lock().pods.clear();
    let before = node.kinds(&p.uid).len();
    let agent = Agent::start(&node, &store, DesiredSet::default()).await;
    node.until("observed at", |s| s.observations.contains_key(&p.uid)).await;
    agent.want(|d| d.listed = everywhere());
    agent.gone(&p.uid).await;
    node.until("forgotten", |_| memory_files(&dir).is_empty()).await;
    let done: Vec<&str> = node.kinds(&p.uid).into_iter().skip(before).collect();
    assert_eq!(done.last(), Some(&"RemovePod"), "{done:?}");
    // Listed as unwanted from the start: the agent creates nothing of the pod only to remove the pod.
    up_and_killed(&node, &store, [&p]).await;
    node.lock().pods.clear();
    let before = node.kinds(&p.uid).len();
    let agent3 = Agent::start(&node, &store, wanted([])).await;
    agent3.gone(&p.uid).await;
    node.until("forgotten", |_| memory_files(&dir).is_empty()).await;
    assert_eq!(node.kinds(&p.uid).into_iter().skip(before).collect::<Vec<_>>(), ["RemovePod"]);
    drop(agent);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_waits_also_for_one_that_was_found() {
    let (_dir, store) = store();
    let node = Node::new();
    let first = full("a");
    up_and_killed(&node, &store, [&first]).await;
    // The manifest was replaced while the agent was down. By UID the new pod sorts first.
    let origin = Origin::Manifest("/manifests/a.yaml".into());
    let second = Pod { uid: uid("a-second"), origin, ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, wanted([second.clone()])).await;
    node.until("the first ends", |_| node.kinds(&first.uid).contains(&"Signal")).await;
    assert_eq!(node.kinds(&second.uid), [""; 0]);
    agent.gone(&first.uid).await;
    agent.ready(&second.uid).await;
}

#[tokio::test(start_paused = true)]
async fn containers_whose_pod_nobody_can_tell_are_left_alone() {
    let (dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    up_and_killed(&node, &store, [&p]).await;
    std::fs::remove_file(dir.path().join("run/memory/u-a.json")).unwrap();
    node.lock().pods.get_mut(&p.uid).unwrap().0 = None;
    // The pod's directory and cgroup still exist.
    node.lock().orphans.insert(p.uid.clone());
    let (run, before) = (node.running(&p.uid, "c"), node.kinds(&p.uid).len());
    let agent = Agent::start(&node, &store, wanted([])).await;
    node.until("cleaned", |s| s.sweeps == 1).await;
    node.pass(SECOND * 600).await;
    assert_eq!((node.running(&p.uid, "c"), node.kinds(&p.uid).len()), (run.clone(), before));
    assert_eq!(node.lock().cleaned, []);
    // The source lists the pod again.
    agent.want(|d| drop(d.pods.insert(p.uid.clone(), p.clone().into())));
    agent.ready(&p.uid).await;
    assert_eq!(node.running(&p.uid, "c"), run);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_shim_does_not_answer_is_not_taken_for_dead() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = full("a");
    up_and_killed(&node, &store, [&p]).await;
    let run = node.running(&p.uid, "c").unwrap();
    node.lock().unsure.insert(run.clone());
    let before = node.kinds(&p.uid).len();
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&p.uid).await;
    node.pass(SECOND * 300).await;
    assert_eq!(node.kinds(&p.uid).into_iter().skip(before).collect::<Vec<_>>(), ["MountVolumes"]);
    assert_eq!(agent.reports.readiness(&p.uid), [Truth::True]);
    let observations = node.lock().observations[&p.uid];
    assert!((5..=15).contains(&observations), "observed at again now and then: {observations}");
    // The shim answers again; the container ended while the agent could not observe it.
    {
        let mut state = node.lock();
        state.unsure.clear();
        let at = berth_core::time::Wall(1_700_000_100_000_000_000);
        let exit = berth_core::plan::Exit { code: 3, ..berth_core::plan::Exit::unknown(at) };
        state.pods.get_mut(&p.uid).unwrap().1.containers.get_mut(&run).unwrap().state = RunState::Ended(exit);
    }
    node.until("restarted", |_| node.starts(&p.uid, "c").len() == 2).await;
    agent.ready(&p.uid).await;
    let observations = node.lock().observations[&p.uid];
    node.pass(SECOND * 3600).await;
    assert_eq!(node.lock().observations[&p.uid], observations, "and then no more");
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_of_a_pods_life_it_comes_to_the_same_end() {
    for moment in 0..60 {
        let (dir, store) = store();
        let node = Node::new();
        let p = full("a");
        let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
        let life = async {
            up(&node, &agent, &p).await;
            agent.want(|d| d.pods.clear());
            agent.gone(&p.uid).await;
        };
        // A pod's whole life takes about 60 ms of work.
        let whole = tokio::time::timeout(Duration::from_millis(moment * 2), life).await.is_ok();
        let wants = !agent.desired.borrow().pods.is_empty();
        agent.kill().await;
        let agent = Agent::start(&node, &store, wanted(wants.then(|| p.clone()))).await;
        if wants {
            node.until("it comes up", |_| {
                let init = node.running(&p.uid, "i").is_some();
                init || agent.reports.is_ready(&p.uid)
            })
            .await;
            if node.running(&p.uid, "i").is_some() {
                node.exit(&p.uid, "i", 0).await;
            }
            agent.ready(&p.uid).await;
            assert_eq!(agent.reports.report(&p.uid).status.phase, Phase::Running);
            let attempts: Vec<u32> =
                ["i", "c"].iter().map(|c| agent.reports.container(&p.uid, c).restart_count).collect();
            assert_eq!(attempts, [0, 0], "killed after {} ms", moment * 2);
            agent.want(|d| d.pods.clear());
        }
        agent.gone(&p.uid).await;
        node.until("forgotten", |_| memory_files(&dir).is_empty()).await;
        if moment == 59 {
            assert!(whole, "the last moments lie behind the whole life");
        }
    }
}
