//! One pod from start to end.

use crate::fake::{
    Agent, Node, Trouble, memory_files,
    pods::{container, name, pod, probed},
    store, wanted,
};
use berth_core::{
    event::Event,
    model::{Container, Hook, Pod, PodNamespaces, RestartPolicy},
    plan::{Action, Exit, RunState},
    probe::ProbeResult,
    status::{ContainerState, Phase},
};
use berth_pods::WorkerMessage;
use std::{sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn comes_up_in_order_and_goes_without_a_trace() {
    let (dir, store) = store();
    let node = Node::new();
    let p = Pod {
        init_containers: vec![container("i"), Container { sidecar: true, ..container("s") }, container("j")],
        ..pod("a", vec![container("c"), probed("d")])
    };
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    for init in ["i", "j"] {
        node.until("init container runs", |_| node.running(&uid, init).is_some()).await;
        assert!(node.starts(&uid, "c").is_empty(), "main containers wait for {init}");
        node.exit(&uid, init, 0).await;
    }
    agent.ready(&uid).await;
    let begun: Vec<Duration> =
        ["i", "s", "j", "c"].iter().map(|c| *node.starts(&uid, c).first().unwrap()).collect();
    assert!(begun.is_sorted(), "{begun:?}");
    assert_eq!(agent.reports.report(&uid).status.phase, Phase::Running);
    assert_eq!(memory_files(&dir), ["u-a.json"]);
    let timeline = agent.reports.report(&uid).timeline;
    assert!(timeline.iter().any(|a| a.kind == "MakeSandbox" && a.failure.is_none()));

    agent.want(|d| d.pods.clear());
    agent.gone(&uid).await;
    assert_eq!(memory_files(&dir), [""; 0]);
    let kinds = node.kinds(&uid);
    assert_eq!(kinds.last(), Some(&"RemovePod"), "{kinds:?}");
    let signalled: Vec<Action> = node.actions(&uid).into_iter().filter(|a| a.kind() == "Signal").collect();
    assert_eq!(
        signalled.last().and_then(Action::container),
        Some(&name("s")),
        "sidecars go after the main containers"
    );
}

#[tokio::test(start_paused = true)]
async fn exits_restart_at_once_and_then_ever_later() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    for attempt in 0..4 {
        node.until("runs", |_| {
            node.running(&uid, "c").is_some() && node.starts(&uid, "c").len() == attempt + 1
        })
        .await;
        agent.ready(&uid).await;
        node.exit(&uid, "c", 1).await;
        node.until("the end is reported", |_| !agent.reports.is_ready(&uid)).await;
    }
    node.until("fifth run", |_| node.starts(&uid, "c").len() == 5).await;
    let starts = node.starts(&uid, "c");
    let gaps: Vec<Duration> = starts.iter().zip(starts.iter().skip(1)).map(|(a, b)| *b - *a).collect();
    for (gap, want) in gaps.iter().zip([0, 10, 20, 40]) {
        let want = SECOND * want;
        assert!(*gap >= want && *gap < want + SECOND, "{gaps:?}");
    }
    agent.ready(&uid).await;
    assert_eq!(agent.reports.container(&uid, "c").restart_count, 4);
    let key = agent.reports.report(&uid).pod.key.clone();
    let text = format!("Back-off restarting failed container c in pod {}_{}({uid})", key.name, key.namespace);
    assert!(agent.reports.messages(&uid, "BackOff").iter().all(|m| *m == text));
    let mut reasons = agent.reports.reasons(&uid);
    reasons.retain(|r| r != "BackOff");
    assert_eq!(reasons, ["Pulled", "Created", "Started"].repeat(5), "as the kubelet's events of a start");
    // Of the exited runs only the newest is kept.
    node.until("old runs removed", |s| s.pods[&uid].1.containers.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_comes_before_its_start_ends_is_not_lost() {
    let (_dir, store) = store();
    let node = Node::new();
    node.lock().ends_at_once.insert(name("c"));
    let p = Pod { restart_policy: RestartPolicy::Never, ..pod("a", vec![]) };
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    node.until("failed", |_| {
        agent.reports.shows(&uid) && agent.reports.report(&uid).status.phase == Phase::Failed
    })
    .await;
    let ContainerState::Terminated(t) = agent.reports.container(&uid, "c").state else { panic!("not ended") };
    assert_eq!((t.exit_code, t.reason.as_str()), (7, "Error"));
    assert!(t.started_at.is_some());
    assert_eq!(node.lock().observations.get(&uid), None, "nothing had to be observed at");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_action_is_a_failed_action() {
    let (_dir, store) = store();
    let node = Node::new();
    let (a, b) = (pod("a", vec![]), pod("b", vec![]));
    let (ua, ub) = (a.uid.clone(), b.uid.clone());
    for kind in ["MountVolumes", "MakeSandbox", "EnsureImage", "Start"] {
        node.trouble(&ua, kind, Trouble::Panics);
    }
    let agent = Agent::start(&node, &store, wanted([a, b])).await;
    agent.ready(&ub).await;
    assert!(node.elapsed() < SECOND, "the other pod does not wait");
    agent.ready(&ua).await;
    let failures: Vec<String> =
        agent.reports.report(&ua).timeline.into_iter().filter_map(|t| t.failure).collect();
    assert_eq!(failures.len(), 4, "{failures:?}");
    assert!(failures.iter().all(|f| f.starts_with("InternalError")), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_looked_into() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let uid = p.uid.clone();
    node.trouble(&uid, "Start", Trouble::Fails);
    let agent = Agent::start(&node, &store, wanted([p])).await;
    node.until("observed", |s| s.observations.contains_key(&uid)).await;
    let ContainerState::Waiting { reason, .. } = agent.reports.container(&uid, "c").state else {
        panic!("not waiting")
    };
    assert_eq!(reason, "Oops");
    node.no_trouble();
    agent.ready(&uid).await;
    let mounts = node.kinds(&uid).into_iter().filter(|k| *k == "MountVolumes").count();
    assert_eq!(mounts, 1, "what is mounted stays known as mounted");
}

#[tokio::test(start_paused = true)]
async fn a_kill_for_memory_is_reported_as_one_however_late_it_is_known() {
    let (_dir, store) = store();
    let node = Node::new();
    let names = ["before", "after"];
    let pods = names.map(|n| Pod { restart_policy: RestartPolicy::Never, ..pod(n, vec![]) });
    let uids = pods.clone().map(|p| p.uid);
    let agent = Agent::start(&node, &store, wanted(pods)).await;
    for (uid, text) in uids.iter().zip(names) {
        agent.ready(uid).await;
        let id = node.running(uid, "c").unwrap();
        if text == "before" {
            node.message(uid, WorkerMessage::Oom(id.clone())).await;
            // The kernel killed a child process: the container keeps running.
            assert!(agent.reports.is_ready(uid));
        }
        node.exit(uid, "c", 137).await;
        node.until("stored", |s| matches!(s.pods[uid].1.containers[&id].state, RunState::Recorded(_))).await;
        if text == "after" {
            node.message(uid, WorkerMessage::Oom(id.clone())).await;
        }
        node.until("stored as such", |s| {
            matches!(&s.pods[uid].1.containers[&id].state, RunState::Recorded(Exit { oom: true, .. }))
        })
        .await;
        node.until("reported", |_| {
            matches!(agent.reports.container(uid, "c").state, ContainerState::Terminated(t) if t.reason == "OOMKilled")
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_oom_kill_is_known_with_the_exit_before_containerd_tells_of_it() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = Pod { restart_policy: RestartPolicy::Never, ..pod("a", vec![]) };
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&p.uid).await;
    let id = node.running(&p.uid, "c").unwrap();
    node.lock().oom_killed.insert(id.clone());
    node.exit(&p.uid, "c", 137).await;
    node.until("reported", |_| {
        matches!(agent.reports.container(&p.uid, "c").state, ContainerState::Terminated(_))
    })
    .await;
    let ContainerState::Terminated(end) = agent.reports.container(&p.uid, "c").state else { panic!() };
    assert_eq!(end.reason, "OOMKilled", "the first report of the end has the reason");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_counts_for_nothing_and_is_asked_again() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![probed("c")]);
    let uid = p.uid.clone();
    node.lock().ask_panics = true;
    let agent = Agent::start(&node, &store, wanted([p])).await;
    node.until("asked", |s| s.asked >= 3).await;
    assert!(!agent.reports.is_ready(&uid));
    node.lock().ask_panics = false;
    agent.ready(&uid).await;
    let messages = agent.reports.messages(&uid, "Unhealthy");
    assert!(messages.len() >= 3, "each try has an event: {messages:?}");
    assert!(
        messages
            .iter()
            .all(|m| m == "Readiness probe errored and resulted in unknown state: asking panicked")
    );
    // First an unknown result, then failures below the threshold: only a full row of failures makes the pod
    // unready.
    node.lock().answers.insert(name("c"), ProbeResult::Unknown("?".into()));
    let asked = node.lock().asked;
    node.until("asked in vain", |s| s.asked > asked + 10).await;
    assert!(agent.reports.is_ready(&uid));
    node.lock().answers.insert(name("c"), ProbeResult::Failure("no".into()));
    let asked = node.lock().asked;
    node.until("not ready", |_| !agent.reports.is_ready(&uid)).await;
    assert_eq!(node.lock().asked, asked + 3);
    let failed =
        agent.reports.messages(&uid, "Unhealthy").into_iter().filter(|m| m == "Readiness probe failed: no");
    assert_eq!(failed.count(), 3, "each failure counts");
    let waiting = agent.reports.report(&uid).status.waiting_for.clone().unwrap();
    assert!(waiting.ends_with("readiness probe: no"), "{waiting}");
}

#[tokio::test(start_paused = true)]
async fn another_image_of_the_same_pod_is_run_at_once() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p.clone()])).await;
    agent.ready(&uid).await;
    let first = node.running(&uid, "c");
    let with = |image: &str| {
        let c = Container { image: image.into(), ..container("c") };
        let p = Arc::new(Pod { containers: vec![c], ..p.clone() });
        agent.want(|d| drop(d.pods.insert(uid.clone(), p.into())));
    };
    with("img:2");
    node.until("the next runs", |_| node.starts(&uid, "c").len() == 2).await;
    agent.ready(&uid).await;
    assert_ne!(node.running(&uid, "c"), first);
    assert_eq!(
        agent.reports.messages(&uid, "Killing"),
        ["Container c definition changed, will be restarted"]
    );
    // The pull of a missing image is retried after a pause; a change to another image does not wait for that
    // pause.
    node.trouble(&uid, "EnsureImage", Trouble::Fails);
    with("img:3");
    node.until("tried twice", |_| node.kinds(&uid).iter().filter(|k| **k == "EnsureImage").count() == 4)
        .await;
    node.no_trouble();
    let begun = node.elapsed();
    with("img:4");
    node.until("runs", |_| node.starts(&uid, "c").len() == 3).await;
    assert!(node.elapsed() - begun < SECOND, "{:?}", node.elapsed() - begun);
    agent.ready(&uid).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_a_warning_is_good_and_has_an_event() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![probed("c")]);
    let uid = p.uid.clone();
    node.lock().answers.insert(name("c"), ProbeResult::Warning("Probe terminated redirects".into()));
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    node.until("asked on", |s| s.asked >= 3).await;
    let messages = agent.reports.messages(&uid, "ProbeWarning");
    assert!(messages.len() >= 2, "{messages:?}");
    assert!(
        messages.iter().all(|m| m == "Readiness probe warning: Probe terminated redirects"),
        "{messages:?}"
    );
    let of = agent
        .reports
        .recorded()
        .events
        .iter()
        .find(|e| e.event.reason == "ProbeWarning")
        .unwrap()
        .event
        .field_path();
    assert_eq!(of.as_deref(), Some("spec.containers{c}"));
    assert!(agent.reports.is_ready(&uid) && agent.reports.messages(&uid, "Unhealthy").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_liveness_probe_restarts_its_container_alone() {
    let (_dir, store) = store();
    let node = Node::new();
    let dying = Container { liveness: Some(crate::fake::pods::probe(10)), ..container("c") };
    let p = pod("a", vec![dying, container("d")]);
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    let other = node.running(&uid, "d").unwrap();
    node.lock().answers.insert(name("c"), ProbeResult::Failure("no".into()));
    node.until("restarted", |_| node.starts(&uid, "c").len() == 2).await;
    node.lock().answers.clear();
    agent.ready(&uid).await;
    assert_eq!(node.running(&uid, "d"), Some(other));
    assert!(agent.reports.reasons(&uid).contains(&"Killing".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn events_of_the_node_are_published_once_a_pod() {
    let (_dir, store) = store();
    let node = Node::new();
    node.lock().events.push(Event::warning("DNSConfigForming", "left out: one"));
    let p = pod("a", vec![container("c"), container("d")]);
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    node.exit(&uid, "c", 0).await;
    node.until("again", |_| node.starts(&uid, "c").len() == 2).await;
    agent.ready(&uid).await;
    let events = agent.reports.reasons(&uid).into_iter().filter(|r| r == "DNSConfigForming").count();
    assert_eq!(events, 1, "three starts, one event");
}

#[tokio::test(start_paused = true)]
async fn the_death_of_pause_restarts_pause_and_no_container() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    let run = node.running(&uid, "c");
    node.message(&uid, WorkerMessage::PauseDied).await;
    node.until("again", |_| node.kinds(&uid).contains(&"EnsurePause")).await;
    node.pass(SECOND * 60).await;
    assert_eq!((node.running(&uid, "c"), agent.reports.is_ready(&uid)), (run, true));
    assert_eq!(node.kinds(&uid).iter().filter(|k| **k == "EnsurePause").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_death_of_pause_in_a_shared_pid_namespace_brings_a_new_sandbox() {
    let (_dir, store) = store();
    let node = Node::new();
    let namespaces = PodNamespaces { share_pid: true, ..PodNamespaces::default() };
    let p = Pod { namespaces, ..pod("a", vec![container("c"), container("d")]) };
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    // The pause process is PID 1 of the pod's PID namespace: the kernel kills every process in it.
    node.message(&uid, WorkerMessage::PauseDied).await;
    node.exit(&uid, "c", 137).await;
    node.exit(&uid, "d", 137).await;
    node.until("taken down", |_| node.kinds(&uid).contains(&"TeardownSandbox")).await;
    node.until("both run anew", |_| {
        ["c", "d"].iter().all(|c| {
            node.newest(&uid, c)
                .is_some_and(|(_, c)| matches!(c.state, RunState::Running { .. }) && c.sandbox_attempt.0 == 1)
        })
    })
    .await;
    agent.ready(&uid).await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_and_the_grace_are_kept_on_the_boot_clock() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![Container { pre_stop: Some(Hook::Sleep(5)), ..container("c") }]);
    let uid = p.uid.clone();
    node.trouble(&uid, "PreStop", Trouble::Stuck);
    node.trouble(&uid, "Signal", Trouble::Slow(SECOND * 3600));
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    let begun = node.elapsed();
    agent.want(|d| d.pods.clear());
    node.until("killed", |_| node.kinds(&uid).contains(&"Kill")).await;
    let took = node.elapsed() - begun;
    // 30 s of grace, used up by the hook, and the 2 s that always follow a signal.
    assert!(took >= SECOND * 32 && took < SECOND * 33, "{took:?}");
    assert!(agent.reports.report(&uid).status.terminating);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_cannot_be_run_is_a_failed_run_and_no_start() {
    let (_dir, store) = store();
    let node = Node::new();
    node.lock().unstartable.insert(name("i"));
    let p = Pod {
        restart_policy: RestartPolicy::Never,
        init_containers: vec![container("i")],
        ..pod("a", vec![])
    };
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    node.until("failed", |_| {
        agent.reports.shows(&uid) && agent.reports.report(&uid).status.phase == Phase::Failed
    })
    .await;
    assert_eq!(agent.reports.reasons(&uid), ["Pulled", "Created", "Failed"]);
    assert_eq!(agent.reports.messages(&uid, "Failed"), ["Error: no such file"]);
    let path = agent.reports.recorded().events.last().unwrap().event.field_path();
    assert_eq!(path.as_deref(), Some("spec.initContainers{i}"));
    let ContainerState::Terminated(t) = agent.reports.container(&uid, "i").state else { panic!("not ended") };
    assert_eq!((t.exit_code, t.reason.as_str()), (128, "StartError"));
}

#[tokio::test(start_paused = true)]
async fn a_status_does_not_run_backwards_while_the_pod_is_cleared_away() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = Pod { restart_policy: RestartPolicy::Never, ..pod("a", vec![container("c"), container("d")]) };
    let uid = p.uid.clone();
    let agent = Agent::start(&node, &store, wanted([p])).await;
    agent.ready(&uid).await;
    node.exit(&uid, "c", 0).await;
    node.exit(&uid, "d", 0).await;
    node.until("ended", |_| agent.reports.report(&uid).status.phase == Phase::Succeeded).await;
    let ips = agent.reports.report(&uid).status.pod_ips.clone();
    assert_eq!(ips.len(), 1, "the address that it had is shown on");
    // RemovePod, the last action, is slow; everything before it is done.
    node.trouble(&uid, "RemovePod", Trouble::Slow(SECOND * 60));
    agent.want(|d| d.pods.clear());
    node.until("all but gone", |s| s.pods[&uid].1.containers.is_empty()).await;
    node.pass(SECOND).await;
    let status = agent.reports.report(&uid).status;
    assert_eq!((status.phase, status.pod_ips.clone()), (Phase::Succeeded, ips));
    for c in &status.containers {
        assert!(matches!(&c.state, ContainerState::Terminated(t) if t.reason == "Completed"), "{c:?}");
    }
    agent.gone(&uid).await;
}
