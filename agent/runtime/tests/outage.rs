//! containerd or a shim dies or hangs: no container restarts, every exit is known afterwards, and other pods
//! are served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod support;

use berth_runtime::{
    FoundContainer, FoundState, Kind, Runtime, RuntimeConfig, RuntimeEvent, StartRequest, Started,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use support::{Node, PATIENCE, exit_of, until};
use tokio::sync::broadcast;

/// Shortest deadline for a shim that does not answer. A call that takes less has not waited for one.
const GIVEN_UP: Duration = Duration::from_secs(10);

async fn event(events: &mut broadcast::Receiver<RuntimeEvent>, wanted: RuntimeEvent) {
    let wait = async { while events.recv().await.unwrap() != wanted {} };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{wanted:?} comes"));
}

fn alive(started: &Started) -> bool {
    berth_sys::process::alive(started.pid, started.start_time).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_fails_at_once_without_a_containerd() {
    let mut node = Node::start().await;
    node.kill_containerd();
    let connecting = tokio::time::timeout(PATIENCE, Runtime::connect(node.config())).await;
    // A connect that waited for containerd would run into the test's time limit.
    assert_eq!(connecting.unwrap().unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_during_an_outage_is_known_after_it() {
    let mut node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let trap = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let (stays, stays_output) =
        node.request(&image, "pod-a", "stays", "while :; do echo tick; sleep 0.05; done");
    let (ends, ends_output) = node.request(&image, "pod-a", "ends", trap);
    let (alone, alone_output) = node.request(&image, "pod-b", "alone", trap);
    let (stays_on, ended, ended_alone) = (
        runtime.create_and_start(stays.clone()).await.unwrap(),
        runtime.create_and_start(ends.clone()).await.unwrap(),
        runtime.create_and_start(alone.clone()).await.unwrap(),
    );
    ends_output.has("up").await;
    alone_output.has("up").await;
    let mut events = runtime.events();
    node.kill_containerd();
    event(&mut events, RuntimeEvent::Lost).await;

    // The list fails at once and says that the state is unknown. Signals need no containerd.
    assert!(runtime.list().await.unwrap_err().is_unknown());
    runtime.signal(&ends.id, ended.pid, ended.start_time, 15).await.unwrap();
    runtime.signal(&alone.id, ended_alone.pid, ended_alone.start_time, 15).await.unwrap();
    until("both ended", || async { !alive(&ended) && !alive(&ended_alone) }).await;
    let so_far = stays_output.text().len();
    until("output goes on", || async { stays_output.text().len() > so_far }).await;

    node.start_containerd().await;
    event(&mut events, RuntimeEvent::Reestablished).await;
    let found = runtime.list().await.unwrap();
    let state = |id| found.iter().find(|f| f.id == id).unwrap().state;
    assert!(matches!(state(stays.id.clone()), FoundState::Running { pid, start_time, .. }
        if (pid, start_time) == (stays_on.pid, stays_on.start_time)));
    for id in [&ends.id, &alone.id] {
        assert!(matches!(state(id.clone()), FoundState::Stopped { code: 7, .. }), "{:?}", state(id.clone()));
        assert_eq!(runtime.delete_task(id).await.unwrap().unwrap().code, 7);
    }
    // The same connection works again, and the next exit comes as an event.
    runtime.signal(&stays.id, stays_on.pid, stays_on.start_time, 9).await.unwrap();
    assert_eq!(exit_of(&mut events, &stays.id).await, 137);
    runtime.shutdown().await;
}

/// Repeats the start until it succeeds, as a pod's worker does.
async fn persist(runtime: Runtime, request: StartRequest) -> Started {
    let end = Instant::now() + PATIENCE;
    loop {
        match runtime.create_and_start(request.clone()).await {
            Ok(started) => return started,
            Err(e) if Instant::now() < end => {
                assert!(e.is_unknown() || e.message().contains("containerd"), "{}", e.message());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => panic!("{}", e.message()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_killed_at_any_point_of_a_start_costs_nothing_but_time() {
    let mut node = Node::start().await;
    let (runtime, image) = node.ready().await;
    for round in 0_u64..6 {
        let pod = format!("pod-{round}");
        let (request, _output) = node.request(&image, &pod, "app", "exec sleep 1000");
        let start = tokio::spawn(persist(runtime.clone(), request.clone()));
        tokio::time::sleep(Duration::from_millis(10 + round * 37)).await;
        node.kill_containerd();
        node.start_containerd().await;
        let started = tokio::time::timeout(2 * PATIENCE, start).await.unwrap().unwrap();
        assert!(started.exit.is_none() && alive(&started), "round {round}: {started:?}");
        let found = runtime.list().await.unwrap();
        let mine = found.iter().find(|f| f.id == request.id).unwrap();
        assert!(
            matches!(mine.state, FoundState::Running { pid, .. } if pid == started.pid),
            "round {round}: {started:?}, {mine:?}"
        );
        assert_eq!(found.len() as u64, round + 1, "round {round}: {found:?}");
    }
    // Each container has one process, although some starts were repeated.
    for found in runtime.list().await.unwrap() {
        let pids = runtime.pids(&found.id).await.unwrap();
        assert_eq!(pids.len(), 1, "{pids:?} of {found:?}");
        runtime.remove(&found.id).await.unwrap();
    }
    assert!(node.cgroups().is_empty(), "{:?}", node.cgroups());
    until("the shims of the removed are gone", || async {
        let (shims, idle) = runtime.shims();
        shims.len() == idle && node.shims() == shims.into_iter().collect()
    })
    .await;
    runtime.shutdown().await;
}

/// A runc whose `create` is slow, as on a busy machine, and the file that shows that `create` was called.
fn slow_runc(node: &Node) -> (PathBuf, PathBuf) {
    let (dir, asked) = (node.dir.path().join("slow"), node.dir.path().join("slow/asked"));
    std::fs::create_dir(&dir).unwrap();
    let (runc, real) = (dir.join("runc"), support::tools().join("runc"));
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' create '*) : > {}; /bin/sleep 2;; esac\nexec {} \"$@\"\n",
        asked.display(),
        real.display()
    );
    std::fs::write(&runc, script).unwrap();
    std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755)).unwrap();
    (runc, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_outlives_containerd_is_met_again() {
    let mut node = Node::start().await;
    let (runc, asked) = slow_runc(&node);
    let config = RuntimeConfig { runc_binary: Some(runc), ..node.config() };
    let runtime = Runtime::connect(config).await.unwrap();
    let image = node.busybox(&runtime).await;
    let (request, _output) = node.request(&image, "pod", "app", "exec sleep 1000");
    let start = tokio::spawn(persist(runtime.clone(), request.clone()));
    until("runc is asked to create", || async { asked.exists() }).await;
    node.kill_containerd();
    node.start_containerd().await;
    let started = tokio::time::timeout(2 * PATIENCE, start).await.unwrap().unwrap();
    assert!(started.exit.is_none() && alive(&started));
    let found = runtime.list().await.unwrap();
    assert!(
        matches!(found[..], [FoundContainer { state: FoundState::Running { pid, .. }, .. }] if pid == started.pid),
        "{found:?}"
    );
    assert_eq!(runtime.pids(&request.id).await.unwrap(), [started.pid]);
    runtime.remove(&request.id).await.unwrap();
    assert!(node.cgroups().is_empty(), "{:?}", node.cgroups());
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_shim_holds_up_only_its_own_pod() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let (stuck, _o1) = node.request(&image, "pod-a", "stuck", "exec sleep 1000");
    let before = node.shims();
    runtime.create_and_start(stuck.clone()).await.unwrap();
    let used = shim_of(&node, &runtime, &stuck).await;
    assert!(before.contains(&used) || node.shims().contains(&used));
    let shim = Pid::from_raw(i32::try_from(used).unwrap()).unwrap();
    kill_process(shim, Signal::STOP).unwrap();

    let (other, _o2) = node.request(&image, "pod-b", "other", "exec sleep 1000");
    let from = Instant::now();
    runtime.create_and_start(other.clone()).await.unwrap();
    assert!(from.elapsed() < GIVEN_UP, "{:?}", from.elapsed());
    let found = runtime.list().await.unwrap();
    let state = |id| found.iter().find(|f| f.id == id).unwrap().state;
    assert_eq!(state(stuck.id.clone()), FoundState::Unknown, "what does not answer is not taken to be gone");
    assert!(matches!(state(other.id.clone()), FoundState::Running { .. }));

    kill_process(shim, Signal::CONT).unwrap();
    until("the shim answers again", || async {
        let found = runtime.list().await.unwrap();
        found.iter().all(|f| matches!(f.state, FoundState::Running { .. }))
    })
    .await;
    runtime.shutdown().await;
}

/// Whether a process has a handler for a signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

/// Pid of the shim, the parent of the container's process.
async fn shim_of(node: &Node, runtime: &Runtime, request: &StartRequest) -> u32 {
    let pid = runtime.pids(&request.id).await.unwrap()[0];
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    assert!(node.shims().contains(&parent));
    parent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_ends_its_containers_and_the_pod_gets_another() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let (first, _o1) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    runtime.create_and_start(first.clone()).await.unwrap();
    let mut events = runtime.events();
    let shim = shim_of(&node, &runtime, &first).await;
    kill_process(Pid::from_raw(i32::try_from(shim).unwrap()).unwrap(), Signal::KILL).unwrap();
    // containerd kills the shim's containers and reports their exits.
    assert_eq!(exit_of(&mut events, &first.id).await, 137);
    until("its end is on the list", || async {
        matches!(runtime.list().await.unwrap()[0].state, FoundState::NoTask | FoundState::Stopped { .. })
    })
    .await;
    let (second, _o2) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    let started = runtime.create_and_start(second.clone()).await.unwrap();
    assert!(alive(&started));
    assert_ne!(shim_of(&node, &runtime, &second).await, shim);
    runtime.remove(&first.id).await.unwrap();
    assert!(alive(&started));
    runtime.shutdown().await;
}

/// Creates the task of a container without one, as a start does that is interrupted before its last step.
async fn create_only(node: &Node, id: &str) -> u32 {
    use containerd_client::{Client, services::v1, with_namespace};
    use tonic::Request;
    let client = Client::from_path(&node.roots.containerd_socket).await.unwrap();
    let namespace = &node.roots.containerd_namespace;
    let mounts = v1::snapshots::MountsRequest { snapshotter: "overlayfs".into(), key: id.into() };
    let mounts = client.snapshots().mounts(with_namespace!(mounts, namespace)).await.unwrap().into_inner();
    let create = v1::CreateTaskRequest {
        container_id: id.into(),
        rootfs: mounts.mounts,
        ..v1::CreateTaskRequest::default()
    };
    client.tasks().create(with_namespace!(create, namespace)).await.unwrap().into_inner().pid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_released_unnoticed_is_not_started_again() {
    let node = Node::with(0, false).await;
    let (runtime, image) = node.ready().await;
    let script = "trap 'exit 9' TERM; while :; do sleep 0.05; done";
    let (request, _output) = node.request(&image, "pod-a", "app", script);
    let mut events = runtime.events();
    let first = runtime.create_and_start(request.clone()).await.unwrap();
    runtime.signal(&request.id, first.pid, first.start_time, 9).await.unwrap();
    exit_of(&mut events, &request.id).await;
    runtime.delete_task(&request.id).await.unwrap();

    let pid = create_only(&node, request.id.as_str()).await;
    let state = async || runtime.list().await.unwrap()[0].state;
    assert_eq!(state().await, FoundState::Created { pid });
    // runc has released the container, but the shim still reports it as created, as after an interrupted
    // `runc start`.
    let released = std::process::Command::new(support::tools().join("runc"))
        .arg("--root")
        .arg(node.dir.path().join("runc").join(&node.roots.containerd_namespace))
        .args(["start", request.id.as_str()])
        .status()
        .unwrap();
    assert!(released.success());
    until("the program runs", || async { matches!(state().await, FoundState::Running { .. }) }).await;
    // The kernel ignores a signal to the first process of a PID namespace that has no handler for it.
    until("the program has set its trap", || async { catches(pid, Signal::TERM) }).await;
    assert!(node.ctr(&["tasks", "ls"]).contains("CREATED"), "{}", node.ctr(&["tasks", "ls"]));
    let adopted = runtime.create_and_start(request.clone()).await.unwrap();
    assert_eq!((adopted.pid, adopted.adopted, adopted.exit.is_none()), (pid, true, true));
    runtime.signal(&request.id, adopted.pid, adopted.start_time, 15).await.unwrap();
    assert_eq!(exit_of(&mut events, &request.id).await, 9);
    assert_eq!(runtime.delete_task(&request.id).await.unwrap().unwrap().code, 9);
    runtime.remove(&request.id).await.unwrap();
    runtime.shutdown().await;
}
