//! Several pods on one node. No pod waits for another one, except a pod of a file for one of the same name.

use crate::fake::{
    Agent, Node, Trouble, everywhere, memory_files,
    pods::{config_map, pod, probed, showing, uid},
    store, wanted,
};
use berth_core::{
    ids::PodUid,
    model::{Objects, Origin, Pod, ProjectedSource, Token, TokenRef, VolumeSource},
    status::Truth,
    time::Wall,
    value::Value,
};
use berth_pods::DesiredSet;
use std::{sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

/// A pod that comes from a file.
fn of_file(name: &str) -> Pod {
    Pod { origin: Origin::Manifest("/manifests/p.yaml".into()), ..pod(name, vec![]) }
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_api_server_starts_beside_the_end_of_an_earlier_one_of_its_name() {
    let (_dir, store) = store();
    let node = Node::new();
    let first = Pod { grace_seconds: 300, ..pod("a", vec![]) };
    let second = Pod { uid: uid("u-second"), ..first.clone() };
    let (u1, u2) = (first.uid.clone(), second.uid.clone());
    let agent = Agent::start(&node, &store, wanted([first])).await;
    agent.ready(&u1).await;
    node.trouble(&u1, "Signal", Trouble::Stuck);
    // Deleted by force: the API server has the first no more.
    agent.want(|d| *d = wanted([second]));
    agent.ready(&u2).await;
    assert!(node.running(&u1, "c").is_some(), "the first has its grace period");
    agent.gone(&u1).await;
    assert!(agent.reports.is_ready(&u2));
}

#[tokio::test(start_paused = true)]
async fn of_two_pods_with_one_name_the_second_waits_until_the_first_is_gone() {
    let (_dir, store) = store();
    let node = Node::new();
    let first = of_file("a");
    let second = Pod { uid: uid("u-second"), ..first.clone() };
    let (u1, u2) = (first.uid.clone(), second.uid.clone());
    let agent = Agent::start(&node, &store, wanted([first])).await;
    agent.ready(&u1).await;
    node.trouble(&u1, "UnmountVolumes", Trouble::Slow(SECOND * 60));
    agent.want(|d| *d = wanted([second]));
    node.until("shown", |_| agent.reports.shows(&u2)).await;
    let report = agent.reports.report(&u2);
    assert_eq!(report.status.waiting_for.as_deref(), Some("an earlier pod of the same name to be gone"));
    agent.ready(&u2).await;
    let log = node.lock().log.clone();
    let of_first = log.iter().rposition(|(_, u, _)| *u == u1).unwrap();
    let of_second = log.iter().position(|(_, u, _)| *u == u2).unwrap();
    assert!(of_first < of_second, "not begun before");
    assert_eq!(log[of_first].2.kind(), "RemovePod");
    assert!(!agent.reports.shows(&u1));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_pod_that_is_no_longer_wanted_is_no_longer_shown() {
    let (_dir, store) = store();
    let node = Node::new();
    let first = of_file("a");
    let second = Pod { uid: uid("u-second"), ..first.clone() };
    let agent = Agent::start(&node, &store, wanted([first.clone(), second.clone()])).await;
    // The pod whose UID sorts first gets the name.
    let (has, waits) = (first.uid.clone(), second.uid.clone());
    assert!(waits < has || has < waits);
    let has = if has < waits { has } else { waits.clone() };
    agent.ready(&has).await;
    let other = if has == first.uid { second.uid } else { first.uid };
    assert!(agent.reports.shows(&other));
    agent.want(|d| drop(d.pods.remove(&other)));
    node.until("not shown", |_| !agent.reports.shows(&other)).await;
    assert!(agent.reports.is_ready(&has));
    assert_eq!(node.kinds(&other), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_or_slow_action_or_look_holds_up_its_own_pod_only() {
    let (_dir, store) = store();
    let kinds = ["MountVolumes", "MakeSandbox", "EnsureImage", "Start", "observe"];
    let node = Node::new();
    let stuck: Vec<Pod> = kinds.iter().map(|k| pod(&k.to_lowercase(), vec![])).collect();
    for (p, kind) in stuck.iter().zip(kinds) {
        node.trouble(&p.uid, kind, Trouble::Stuck);
    }
    // The failing start makes the worker observe the pod.
    let observe = stuck.last().unwrap().uid.clone();
    node.trouble(&observe, "Start", Trouble::Fails);
    let others: Vec<Pod> = (0..20).map(|n| pod(&format!("p{n}"), vec![])).collect();
    let uids: Vec<PodUid> = others.iter().map(|p| p.uid.clone()).collect();
    let agent = Agent::start(&node, &store, wanted(stuck.iter().cloned().chain(others))).await;
    for uid in &uids {
        agent.ready(uid).await;
    }
    assert!(node.elapsed() < SECOND, "{:?}", node.elapsed());
    node.until("observed", |s| s.observations.contains_key(&observe)).await;
    // The other pods start and end as usual.
    let begun = node.elapsed();
    agent.want(|d| d.pods.retain(|u, _| !uids.contains(u)));
    for uid in &uids {
        agent.gone(uid).await;
    }
    assert!(node.elapsed() - begun < SECOND);
    assert!(stuck.iter().all(|p| !agent.reports.is_ready(&p.uid)));
    // A stuck observation does not block the pod's other work: the next start succeeds.
    node.lock().trouble.remove(&(observe.clone(), "Start"));
    agent.ready(&observe).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_worker_is_that_pods_failure_alone() {
    let (_dir, store) = store();
    let node = Node::new();
    let (a, b) = (pod("a", vec![probed("c")]), pod("b", vec![]));
    let (ua, ub) = (a.uid.clone(), b.uid.clone());
    let agent = Agent::start(&node, &store, wanted([a.clone(), b])).await;
    agent.ready(&ua).await;
    agent.ready(&ub).await;
    let run = node.running(&ua, "c");
    let begun = node.elapsed();
    // The next two reports of `a` panic; after each the manager restarts the worker.
    agent.reports.recorded().panics.insert(ua.clone(), 2);
    agent.want(|d| {
        let p = Pod { labels: [("l".to_owned(), "1".to_owned())].into(), ..a.clone() };
        d.pods.insert(ua.clone(), p.into());
    });
    node.exit(&ub, "c", 0).await;
    node.lock().answers.insert(
        berth_core::ids::ContainerName::new("c").unwrap(),
        berth_core::probe::ProbeResult::Failure("so that there is something to tell".into()),
    );
    node.until("panicked", |_| agent.reports.recorded().panics[&ua] == 1).await;
    node.lock().answers.clear();
    agent.ready(&ub).await;
    let at = node.elapsed();
    // Other pods start and end meanwhile.
    let c = pod("d", vec![]);
    let uc = c.uid.clone();
    agent.want(|d| drop(d.pods.insert(uc.clone(), c.into())));
    agent.ready(&uc).await;
    assert!(node.elapsed() - at < SECOND, "nobody rests with it");
    node.until("panicked again", |_| agent.reports.recorded().panics[&ua] == 0).await;
    assert!(node.elapsed() - at >= SECOND * 4);
    node.until("observed at anew", |s| s.observations.contains_key(&ua)).await;
    let rested = node.elapsed() - at;
    assert!(rested >= SECOND * 14 && rested < SECOND * 20, "5 s, then 10 s: {rested:?}");
    assert_eq!(node.running(&ua, "c"), run, "it ran on");
    assert!(node.elapsed() > begun);
    assert_eq!(node.starts(&ua, "c").len(), 1);
    agent.want(|d| drop(d.pods.remove(&ua)));
    agent.gone(&ua).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_rests_after_a_panic_keeps_its_name_and_can_be_ended() {
    let (_dir, store) = store();
    let node = Node::new();
    let first = of_file("a");
    let second = Pod { uid: uid("u-second"), ..first.clone() };
    let (u1, u2) = (first.uid.clone(), second.uid.clone());
    let agent = Agent::start(&node, &store, wanted([first])).await;
    agent.ready(&u1).await;
    agent.reports.recorded().panics.insert(u1.clone(), 1);
    node.exit(&u1, "c", 0).await;
    node.until("panicked", |_| agent.reports.recorded().panics[&u1] == 0).await;
    agent.want(|d| *d = wanted([second]));
    node.until("second waits", |_| agent.reports.shows(&u2)).await;
    assert_eq!(node.kinds(&u2), [""; 0]);
    agent.ready(&u2).await;
    assert!(!node.lock().pods.contains_key(&u1));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_objects_reaches_only_those_that_refer_to_them() {
    let (_dir, store) = store();
    let node = Node::new();
    let (a, b, plain) = (showing("a", "one"), showing("b", "two"), pod("plain", vec![]));
    let uids = [&a, &b, &plain].map(|p| p.uid.clone());
    let mut objects = Objects::listed();
    objects.put_config_map(config_map("one", "1"));
    objects.put_config_map(config_map("two", "1"));
    let set = DesiredSet { objects: Arc::new(objects.clone()), ..wanted([a, b, plain]) };
    let agent = Agent::start(&node, &store, set).await;
    for uid in &uids {
        agent.ready(uid).await;
    }
    assert_eq!(node.lock().refreshed, []);
    objects.put_config_map(config_map("one", "2"));
    agent.want(|d| d.objects = Arc::new(objects.clone()));
    node.until("refreshed", |s| !s.refreshed.is_empty()).await;
    node.pass(SECOND * 30).await;
    assert_eq!(node.lock().refreshed, [uids[0].clone()]);

    // A failed refresh is retried. A stuck refresh occupies one task, and one refresh follows to catch up.
    node.lock().refreshed.clear();
    node.trouble(&uids[1], "refresh", Trouble::Fails);
    objects.put_config_map(config_map("two", "2"));
    agent.want(|d| d.objects = Arc::new(objects.clone()));
    let begun = node.elapsed();
    node.until("tried again", |s| s.refreshed.len() == 3).await;
    assert_eq!((node.elapsed() - begun).as_secs(), 20, "every ten seconds");
    // For a failing volume the event's reason is the kubelet's `FailedMount`.
    let messages = agent.reports.messages(&uids[1], "Oops");
    assert!(
        messages.len() >= 2 && messages.iter().all(|m| m == "as the test wants"),
        "each try has an event: {messages:?}"
    );
    node.trouble(&uids[1], "refresh", Trouble::Slow(SECOND * 100));
    node.until("slow one begun", |s| s.refreshed.len() == 4).await;
    for n in 0..5 {
        objects.put_config_map(config_map("two", &format!("again {n}")));
        agent.want(|d| d.objects = Arc::new(objects.clone()));
        node.pass(SECOND).await;
    }
    assert_eq!(node.lock().refreshed.len(), 4);
    node.until("made up for", |s| s.refreshed.len() == 5).await;
    node.no_trouble();
    node.pass(SECOND * 300).await;
    assert_eq!(node.lock().refreshed.len(), 5);
    assert!(node.lock().refreshed.iter().all(|u| *u == uids[1]));
}

#[tokio::test(start_paused = true)]
async fn an_object_wakes_only_pods_that_name_its_kind() {
    let (_dir, store) = store();
    let node = Node::new();
    let a = showing("a", "one");
    let uid = a.uid.clone();
    let mut objects = Objects::listed();
    objects.put_config_map(config_map("one", "1"));
    let agent = Agent::start(&node, &store, DesiredSet { objects: Arc::new(objects.clone()), ..wanted([a]) });
    let agent = agent.await;
    agent.ready(&uid).await;
    objects.put_secret(config_map("one", "secret"));
    agent.want(|d| d.objects = Arc::new(objects.clone()));
    node.pass(SECOND * 60).await;
    assert_eq!(node.lock().refreshed, []);
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_token_and_shows_each_new_one() {
    let (_dir, store) = store();
    let node = Node::new();
    let mut a = showing("a", "one");
    let token = ProjectedSource::ServiceAccountToken {
        audience: None,
        expiration_seconds: 3607,
        path: "token".into(),
    };
    a.volumes[0].source = VolumeSource::Projected { sources: vec![token], default_mode: 0o644 };
    let (uid, wanted_token) = (a.uid.clone(), TokenRef::new(&a, None, 3607));
    let mut objects = Objects::default();
    let set = DesiredSet { objects: Arc::new(objects.clone()), ..wanted([a]) };
    let agent = Agent::start(&node, &store, set).await;
    let waits = "volumes: serviceaccount \"default\" is not read yet";
    node.until("waits", |_| {
        agent.reports.shows(&uid) && agent.reports.report(&uid).status.waiting_for.as_deref() == Some(waits)
    })
    .await;
    let mut put = |text: &str| {
        let token = Token { text: text.into(), expires: Wall(0) };
        objects.put_token(wanted_token.clone(), Value::Known(token));
        let objects = Arc::new(objects.clone());
        agent.want(|d| d.objects = objects);
    };
    put("first");
    agent.ready(&uid).await;
    let before = node.lock().refreshed.len();
    put("second");
    node.until("shown", |s| s.refreshed.len() > before).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_while_an_optional_object_is_unknown() {
    let (_dir, store) = store();
    let node = Node::new();
    let a = showing("a", "one");
    let uid = a.uid.clone();
    let unknown = DesiredSet { objects: Arc::default(), ..wanted([a]) };
    let agent = Agent::start(&node, &store, unknown).await;
    let waits = "volumes: configmap \"one\" is not read yet";
    node.until("waits", |_| {
        agent.reports.shows(&uid) && agent.reports.report(&uid).status.waiting_for.as_deref() == Some(waits)
    })
    .await;
    node.pass(SECOND * 600).await;
    let kinds = node.kinds(&uid);
    assert!(kinds.contains(&"MakeSandbox") && kinds.contains(&"EnsureImage"), "{kinds:?}");
    assert!(!kinds.contains(&"MountVolumes") && !kinds.contains(&"Start"), "{kinds:?}");
    assert_eq!(agent.reports.messages(&uid, "FailedMount"), [""; 0]);
    // The source lists, and has no such object.
    agent.want(|d| d.objects = Arc::new(Objects::listed()));
    agent.ready(&uid).await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_volumes_are_being_mounted_is_shown_after() {
    let (_dir, store) = store();
    let node = Node::new();
    let a = showing("a", "one");
    let uid = a.uid.clone();
    node.trouble(&uid, "MountVolumes", Trouble::Slow(SECOND * 10));
    let agent = Agent::start(&node, &store, wanted([a])).await;
    node.until("mounting", |_| node.kinds(&uid).contains(&"MountVolumes")).await;
    let mut objects = Objects::listed();
    objects.put_config_map(config_map("one", "1"));
    agent.want(|d| d.objects = Arc::new(objects));
    agent.ready(&uid).await;
    assert_eq!(node.lock().refreshed, std::slice::from_ref(&uid));
}

#[tokio::test(start_paused = true)]
async fn leftovers_of_unknown_pods_are_removed_and_nobody_works_on_them_meanwhile() {
    let (dir, store) = store();
    let node = Node::new();
    let (known, old) = (pod("known", vec![]), pod("old", vec![]));
    let (uk, uo) = (known.uid.clone(), old.uid.clone());
    node.lock().orphans.extend([uk.clone(), uo.clone(), uid("u-stuck")]);
    node.trouble(&uo, "cleanup", Trouble::Slow(SECOND * 20));
    node.trouble(&uid("u-stuck"), "cleanup", Trouble::Slow(SECOND * 40));
    let agent = Agent::start_unlisted(
        &node,
        &store,
        DesiredSet { listed: Default::default(), ..wanted([known.clone()]) },
    );
    node.back().await;
    agent.ready(&uk).await;
    node.pass(SECOND * 10).await;
    assert!(node.lock().cleaned.is_empty(), "not before the source has listed");
    agent.want(|d| d.listed = everywhere());
    node.until("cleaning", |_| node.lock().orphans.len() == 3).await;
    node.pass(SECOND).await;
    // The pod's manifest returns while the cleanup runs.
    let begun = node.elapsed();
    agent.want(|d| drop(d.pods.insert(uo.clone(), old.into())));
    node.until("shown", |_| agent.reports.shows(&uo)).await;
    assert_eq!(node.kinds(&uo), [""; 0]);
    agent.ready(&uo).await;
    let waited = node.elapsed() - begun;
    assert!(waited > SECOND * 15 && waited < SECOND * 25, "{waited:?}");
    node.until("swept", |s| s.sweeps == 1).await;
    assert_eq!(node.lock().cleaned, [uo, uid("u-stuck")], "known pods are not orphans");
    assert_eq!(memory_files(&dir).len(), 2);
    assert_eq!(agent.reports.readiness(&uk), [Truth::Unknown, Truth::False, Truth::True]);
}

#[tokio::test(start_paused = true)]
async fn leftovers_that_resist_are_tried_again() {
    let (_dir, store) = store();
    let node = Node::new();
    let left = uid("u-left");
    node.lock().orphans.insert(left.clone());
    node.trouble(&left, "cleanup", Trouble::Fails);
    let _agent = Agent::start(&node, &store, wanted([])).await;
    node.until("swept all the same", |s| s.sweeps == 1).await;
    assert!(node.lock().cleaned.is_empty());
    node.trouble(&left, "cleanup", Trouble::Panics);
    node.until("and again", |s| s.sweeps == 2).await;
    assert!(node.lock().cleaned.is_empty());
    node.until("cleaned", |s| s.cleaned == [left.clone()]).await;
    node.until("swept", |s| s.sweeps == 3).await;
    node.pass(SECOND * 3600).await;
    assert_eq!(node.lock().sweeps, 3, "and then only where there is something");
}

#[tokio::test(start_paused = true)]
async fn what_comes_to_be_nobodys_is_found_now_and_then() {
    let (_dir, store) = store();
    let node = Node::new();
    let _agent = Agent::start(&node, &store, wanted([])).await;
    node.until("swept once", |s| s.sweeps == 1).await;
    node.lock().orphans.insert(uid("u-late"));
    node.until("cleaned", |s| s.cleaned == [uid("u-late")]).await;
    node.until("swept after it", |s| s.sweeps == 2).await;
    assert!(node.elapsed() < SECOND * 600, "{:?}", node.elapsed());
}

/// Regression: mounting or the sandbox of an unwanted pod had failed half way. The failure did not report the
/// remains, and they stayed on the node.
#[tokio::test(start_paused = true)]
async fn what_a_failed_action_left_goes_with_the_pod() {
    for kind in ["MountVolumes", "MakeSandbox", "Start"] {
        let (_dir, store) = store();
        let node = Node::new();
        let p = pod("a", vec![]);
        let uid = p.uid.clone();
        node.trouble(&uid, kind, Trouble::FailsHalfWay);
        let agent = Agent::start(&node, &store, wanted([p])).await;
        node.until("failed", |_| {
            agent.reports.shows(&uid)
                && agent.reports.report(&uid).timeline.iter().any(|t| t.failure.is_some())
        })
        .await;
        agent.want(|d| d.pods.clear());
        // The fake node records a violation where RemovePod leaves anything.
        agent.gone(&uid).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_sandbox_left_is_taken_down_before_the_next_and_the_next_is_later_each_time() {
    let (_dir, store) = store();
    let node = Node::new();
    let p = pod("a", vec![]);
    let uid = p.uid.clone();
    node.trouble(&uid, "MakeSandbox", Trouble::FailsHalfWay);
    let agent = Agent::start(&node, &store, wanted([p])).await;
    let made = |s: &crate::fake::State| -> Vec<Duration> {
        let of_kind = |k: &'static str| s.log.iter().filter(move |(_, _, a)| a.kind() == k);
        assert!(of_kind("MakeSandbox").count() <= of_kind("TeardownSandbox").count() + 1);
        of_kind("MakeSandbox").map(|(at, ..)| *at).collect()
    };
    node.until("tried five times", |s| made(s).len() == 5).await;
    let tries = made(&node.lock());
    let gaps: Vec<Duration> = tries.iter().zip(tries.iter().skip(1)).map(|(a, b)| *b - *a).collect();
    for (gap, want) in gaps.iter().zip([1, 2, 4, 8]) {
        assert!(*gap >= SECOND * want && *gap < SECOND * (want + 1), "{gaps:?}");
    }
    node.no_trouble();
    agent.ready(&uid).await;
}
