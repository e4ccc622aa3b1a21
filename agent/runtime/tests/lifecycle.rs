//! Lifecycle of a container in a real containerd: start, output, exit, adoption, removal.

mod support;

use berth_core::time::Wall;
use berth_runtime::{ExitRecord, FoundContainer, FoundState, RuntimeEvent, Stage, StartFailure};
use std::time::Duration;
use support::{Node, PATIENCE, exit_of, until};

fn exit(code: i32) -> ExitRecord {
    ExitRecord { code, at: Wall(1), oom: false, reason: None, message: None, started_at: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_is_known() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    assert!(
        runtime.version().await.unwrap().starts_with('v') || !runtime.version().await.unwrap().is_empty()
    );
    assert!(!runtime.cri_plugin_on().await.unwrap());
    let mut events = runtime.events();
    let (request, output) = node.request(
        &image,
        "pod-a",
        "app",
        "trap 'exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done",
    );
    let started = runtime.create_and_start(request.clone()).await.unwrap();
    assert!(!started.adopted);
    assert!(started.pid > 1 && started.start_time > 0);
    output.has("out\n").await;
    output.has("err\n").await;
    let steps: Vec<&str> = started.timings.iter().map(|(name, _)| *name).collect();
    assert_eq!(steps, ["lease", "shim", "record", "snapshot", "create", "start"]);

    let found = runtime.list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, request.id);
    assert_eq!(found[0].pod, request.pod);
    assert_eq!(found[0].key, request.key);
    assert_eq!(found[0].extension, request.extension);
    assert_eq!(found[0].image_id, image.image_id);
    assert_eq!(found[0].boot.as_str(), "boot-1");
    let FoundState::Running { pid, start_time, started_at } = found[0].state else {
        panic!("{:?}", found[0].state)
    };
    assert_eq!((pid, start_time), (started.pid, started.start_time));
    let drift = started_at.unwrap().0.abs_diff(started.started_at.0);
    assert!(drift < 1_000_000_000, "the same start told {drift} ns apart");
    assert_eq!(runtime.spec(&request.id).await.unwrap().unwrap(), request.spec);
    assert!(runtime.pids(&request.id).await.unwrap().contains(&started.pid));

    // A running task cannot be deleted.
    assert_eq!(runtime.delete_task(&request.id).await.unwrap_err().kind(), berth_runtime::Kind::Precondition);
    // A signal for an earlier process with the same pid has no effect; the signal with the right start time
    // ends the process.
    runtime.signal(&request.id, started.pid, started.start_time + 1, 9).await.unwrap();
    runtime.signal(&request.id, started.pid, started.start_time, 15).await.unwrap();
    assert_eq!(exit_of(&mut events, &request.id).await, 7);
    until("the list says stopped", || async {
        matches!(runtime.list().await.unwrap()[0].state, FoundState::Stopped { code: 7, .. })
    })
    .await;

    let record = ExitRecord { reason: Some("Error".into()), ..exit(7) };
    runtime.record_exit(&request.id, &record).await.unwrap();
    // The list of one pod includes its stopped task and no task of the other pod.
    let (other, _output) = node.request(&image, "pod-b", "app", "exec sleep 1000");
    runtime.create_and_start(other.clone()).await.unwrap();
    let of_pod = runtime.list_of(&request.pod).await.unwrap();
    assert!(
        matches!(&of_pod[..], [FoundContainer { id, state: FoundState::Stopped { code: 7, .. }, exit: Some(e), .. }]
            if *id == request.id && *e == record),
        "{of_pod:?}"
    );
    let of_other = runtime.list_of(&other.pod).await.unwrap();
    assert!(
        matches!(&of_other[..], [FoundContainer { id, state: FoundState::Running { .. }, .. }] if *id == other.id),
        "{of_other:?}"
    );
    runtime.remove(&other.id).await.unwrap();
    assert!(runtime.list_of(&other.pod).await.unwrap().is_empty());
    let deleted = runtime.delete_task(&request.id).await.unwrap().expect("the task was there");
    assert_eq!(deleted.code, 7);
    assert_eq!(runtime.delete_task(&request.id).await.unwrap(), None);
    let found = runtime.list().await.unwrap();
    assert_eq!((found[0].state, found[0].exit.clone()), (FoundState::NoTask, Some(record.clone())));

    // A container that has exited is not run again.
    let error = runtime.create_and_start(request.clone()).await.unwrap_err();
    assert_eq!((error.stage, error.failure), (Stage::Record, StartFailure::Finished(record)));
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_start_again_adopts() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let (request, _output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    let first = runtime.create_and_start(request.clone()).await.unwrap();
    let again = runtime.create_and_start(request.clone()).await.unwrap();
    assert!(again.adopted);
    assert_eq!((again.pid, again.start_time), (first.pid, first.start_time));

    // The next agent connects after a crash and has no state of the first.
    let other = node.connect().await;
    let adopted = other.create_and_start(request.clone()).await.unwrap();
    assert_eq!((adopted.adopted, adopted.pid), (true, first.pid));

    // The process has exited and its task still exists: the start returns the exit, because no event will
    // come.
    let mut events = other.events();
    other.signal(&request.id, first.pid, first.start_time, 9).await.unwrap();
    assert_eq!(exit_of(&mut events, &request.id).await, 137);
    let ended = other.create_and_start(request.clone()).await.unwrap();
    assert_eq!(ended.exit.map(|e| e.code), Some(137));
    runtime.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_a_task_is_begun_anew() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let (request, _output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    let first = runtime.create_and_start(request.clone()).await.unwrap();
    let mut events = runtime.events();
    runtime.signal(&request.id, first.pid, first.start_time, 9).await.unwrap();
    exit_of(&mut events, &request.id).await;
    runtime.delete_task(&request.id).await.unwrap();
    // As after a crash before the exit was stored: without the record the container counts as never run.
    let second = runtime.create_and_start(request.clone()).await.unwrap();
    assert!(!second.adopted);
    assert_ne!(second.pid, first.pid);
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_leaves_nothing() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let before = node.ctr(&["snapshots", "ls"]);
    let (request, _output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    let started = runtime.create_and_start(request.clone()).await.unwrap();
    assert!(!node.cgroups().is_empty() && !node.mounts().is_empty());
    // Removal kills the running process.
    runtime.remove(&request.id).await.unwrap();
    runtime.remove(&request.id).await.unwrap();
    runtime.release_lease(&request.pod).await.unwrap();
    runtime.release_lease(&request.pod).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", started.pid)).exists());
    assert!(runtime.list().await.unwrap().is_empty());
    assert!(runtime.leased_pods().await.unwrap().is_empty());
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
    assert_eq!(node.mounts(), Vec::<std::path::PathBuf>::new());
    assert_eq!(node.ctr(&["snapshots", "ls"]), before);
    assert_eq!(node.ctr(&["containers", "ls", "-q"]), "");
    assert_eq!(node.ctr(&["sandboxes", "ls"]).matches(request.id.as_str()).count(), 0);
    // The pod's shim ends with its last container. The spare shims remain until the shutdown.
    until("only spare shims are left", || async {
        let (shims, idle) = runtime.shims();
        shims.len() == idle && node.shims() == shims.into_iter().collect()
    })
    .await;
    runtime.shutdown().await;
    until("no shim is left", || async { node.shims().is_empty() }).await;
    let left: Vec<_> = std::fs::read_dir(node.roots.shims_dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_before_the_exit() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let mut events = runtime.events();
    let (mut request, _output) = node.request(&image, "pod-a", "app", "x=a; while :; do x=$x$x; done");
    request.spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 16 << 20, "swap": 16 << 20});
    runtime.create_and_start(request.clone()).await.unwrap();
    let mut seen = Vec::new();
    let wait = async {
        loop {
            match events.recv().await.unwrap() {
                RuntimeEvent::Oom { id } if id == request.id => seen.push("oom"),
                RuntimeEvent::Exit { id, exec_id: None, code, .. } if id == request.id => return code,
                _ => {}
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, wait).await.unwrap(), 137);
    assert!(seen.contains(&"oom"));
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_cannot_run_are_told_apart() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    for (args, failure) in [
        (&["no-such-command"][..], StartFailure::CommandNotFound),
        (&["/no/such/file"], StartFailure::CommandNotFound),
        (&["/etc/passwd"], StartFailure::NotExecutable),
        (&["/etc"], StartFailure::NotExecutable),
    ] {
        let (request, _output) = node.request_args(&image, "pod-a", "app", args);
        let error = runtime.create_and_start(request.clone()).await.unwrap_err();
        assert_eq!((error.stage, &error.failure), (Stage::Create, &failure), "{args:?}: {}", error.message());
        // The record stays, so the failed attempt can be shown. It is removed like any other.
        runtime.record_exit(&request.id, &exit(berth_runtime::START_ERROR_EXIT_CODE)).await.unwrap();
        assert_eq!(runtime.list().await.unwrap().len(), 1);
        runtime.remove(&request.id).await.unwrap();
    }
    assert!(runtime.list().await.unwrap().is_empty());
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_takes_fails_in_time_and_can_be_retried() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let (mut request, _output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    // The shim refuses a request with one output path set and the other empty.
    let stdio = request.stdio.clone();
    request.stdio.stderr = std::path::PathBuf::new();
    let error = tokio::time::timeout(Duration::from_secs(20), runtime.create_and_start(request.clone()))
        .await
        .expect("refused at once")
        .unwrap_err();
    assert_eq!(error.stage, Stage::Create);
    request.stdio = stdio;
    runtime.create_and_start(request).await.unwrap();
    runtime.shutdown().await;
}
