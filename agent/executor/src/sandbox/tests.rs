//! Sandboxes with real namespaces, cgroups and pause processes; and mutated sandbox records.

use crate::testing::{ALL_OF_THE_HOST, Node, OWN_IPC};
use berth_core::{
    ids::SandboxAttempt,
    model::PodNamespaces,
    plan::{Action, SandboxState},
    time::Wall,
};
use berth_harness::{
    mutate::{self, Reached, json::Corpus},
    rng::Rng,
};
use berth_pods::Executor as _;
use berth_sys::process;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

#[tokio::test]
async fn pause_dies_and_is_restarted_also_where_nothing_is_pinned() {
    for namespaces in [ALL_OF_THE_HOST, OWN_IPC] {
        let mut node = Node::new(namespaces);
        assert_eq!(node.state(), None);
        let made = node.make(3).await;
        assert_eq!(
            (made.state, made.sandbox_attempt, made.ips.len()),
            (SandboxState::Ready, SandboxAttempt(3), 1)
        );
        assert_eq!(node.state(), Some(SandboxState::Ready));
        let first = node.pause();
        node.kill_pause();
        node.hears_that_pause_died().await;
        assert_eq!(node.state(), Some(SandboxState::NoPause));
        let again = node.act(Action::EnsurePause(SandboxAttempt(3))).await.unwrap().unwrap();
        assert_eq!((again.state, again.ips), (SandboxState::Ready, made.ips));
        let second = node.pause();
        assert_ne!(first, second);
        // A late report of the first pause's death starts no third pause.
        let still = node.act(Action::EnsurePause(SandboxAttempt(3))).await.unwrap().unwrap();
        assert_eq!((still.state, node.pause()), (SandboxState::Ready, second));
        // The second pause is watched like the first.
        node.kill_pause();
        node.hears_that_pause_died().await;
        node.take_down(3).await;
    }
}

#[tokio::test]
async fn a_pin_that_is_gone_breaks_the_sandbox() {
    let node = Node::new(OWN_IPC);
    node.make(0).await;
    let pin = node.executor.config.roots.sandbox_dir(&node.pod.uid).join("ipc");
    assert!(berth_sys::mount::unmount(&pin).unwrap());
    assert_eq!(node.state(), Some(SandboxState::Broken), "pause alone does not hold a name for it");
    node.take_down(0).await;
}

#[tokio::test]
async fn the_end_of_a_shared_pid_namespace_is_the_sandboxs_end() {
    let mut node = Node::new(PodNamespaces { share_pid: true, ..OWN_IPC });
    node.make(0).await;
    assert_eq!(node.state(), Some(SandboxState::Ready));
    node.kill_pause();
    node.hears_that_pause_died().await;
    let seen = node.act(Action::EnsurePause(SandboxAttempt(0))).await.unwrap().unwrap();
    assert_eq!(seen.state, SandboxState::Broken);
    assert_eq!(node.state(), Some(SandboxState::Broken), "also for the next agent");
    node.take_down(0).await;
    let made = node.make(1).await;
    assert_eq!(made.state, SandboxState::Ready);
    node.take_down(1).await;
}

#[tokio::test]
async fn a_torn_or_missing_sandbox_record_is_rebuilt_from_the_node() {
    let node = Node::new(OWN_IPC);
    let made = node.make(2).await;
    let pause = node.pause();
    let path = node.executor.record_path(&node.pod.uid);
    let whole = std::fs::read(&path).unwrap();
    for torn in [Some(&whole[..whole.len() / 2]), Some(b"".as_slice()), None] {
        match torn {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        // No container runs in the sandbox, so the sandbox is torn down.
        assert_eq!(node.state(), Some(SandboxState::Broken));
        assert_eq!(
            path.with_extension("bad").exists(),
            torn.is_some() || path.with_extension("bad").exists()
        );
        // Containers run in the sandbox, and a torn file does not affect them.
        let seen = node.state_of_living(2).unwrap();
        assert_eq!(seen, made);
        assert_eq!(
            serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(),
            serde_json::from_slice::<Value>(&whole).unwrap()
        );
        assert_eq!(node.pause(), pause);
    }
    assert!(path.with_extension("bad").exists());
    node.take_down(2).await;
    assert!(!path.with_extension("bad").exists());
}

#[tokio::test]
async fn a_pause_that_nobody_wrote_down_is_ended_by_the_next_and_by_the_taking_down() {
    let node = Node::new(OWN_IPC);
    node.make(0).await;
    let mut pauses = vec![node.pause()];
    for _ in 0..3 {
        node.executor.start_pause(&node.pod).await.unwrap();
        pauses.push(node.pause());
    }
    pauses.dedup();
    assert_eq!(pauses.len(), 4, "each try has its own, and one lives at a time");
    node.take_down(0).await;
    node.executor.cleanup_pod(&node.pod.uid).await.unwrap();
    assert!(node.executor.cgroups.pods().unwrap().is_empty());
}

#[tokio::test]
async fn a_making_that_failed_is_seen_as_broken_and_cleaned_away() {
    // The pod has its own network, and no CNI configuration exists to attach it.
    let node = Node::new(PodNamespaces::default());
    for _ in 0..2 {
        let failure = node.act(Action::MakeSandbox(SandboxAttempt(0))).await.unwrap_err();
        assert_eq!(failure.reason, "FailedCreatePodSandBox", "{failure}");
        assert_eq!(node.state(), Some(SandboxState::Broken));
    }
    // Cleanup knows no sandbox attempt.
    node.executor.cleanup_pod(&node.pod.uid).await.unwrap();
    assert_eq!((node.state(), node.executor.sandboxes().len()), (None, 0));
    assert!(node.executor.cgroups.pods().unwrap().is_empty());
}

#[tokio::test]
async fn mutated_records_are_set_aside_or_borne() {
    let node = Node::new(OWN_IPC);
    let boot = node.executor.config.boot.as_str();
    let me = std::process::id();
    let start_time = process::start_time(me).unwrap().unwrap();
    let record = |sandbox_attempt: u32, boot: &str, complete: bool, pause: Value, pins: Value| {
        let ips = json!(["10.0.0.1", "fd00::1"]);
        json!({"incarnation": sandbox_attempt, "boot": boot, "complete": complete, "ips": ips, "pause": pause, "pins": pins})
    };
    let corpus = Corpus::new(
        vec![
            record(0, boot, true, json!([me, start_time]), json!([])),
            record(1, boot, true, json!([me, 1]), json!(["net", "ipc", "uts"])),
            record(2, boot, false, Value::Null, json!(["net", "uts", "pid"])),
            record(u32::MAX, "another", true, json!([u32::MAX, u64::MAX]), json!(["ipc"])),
        ],
        &["net", "ipc", "uts", "pid", boot],
    );
    let path = node.executor.record_path(&node.pod.uid);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let read = AtomicU64::new(0);
    let attempt = |text: &mutate::Bytes| {
        std::fs::write(&path, &text.0).unwrap();
        let seen = node.executor.see_sandbox(&node.pod.uid, None).unwrap();
        let aside = path.with_extension("bad");
        assert_eq!(seen.is_some(), path.exists());
        assert_eq!(seen.is_none(), aside.exists());
        if aside.exists() {
            std::fs::remove_file(aside).unwrap();
        }
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&text.0).is_ok();
        let reached = match (&seen, is_json) {
            (Some(_), _) => Reached::Taken,
            (None, true) => Reached::Checks,
            (None, false) => Reached::Syntax,
        };
        read.fetch_add(u64::from(seen.is_some()), Ordering::Relaxed);
        // Whatever the record shows, the plan accepts.
        let seen = berth_core::plan::Observed { runtime_answers: true, sandbox: seen, ..Default::default() };
        let desired = berth_core::plan::Desired::new(Arc::clone(&node.pod), None);
        let now = berth_core::time::Now { boottime: berth_sys::clock::boottime(), wall: Wall(0) };
        berth_core::plan::plan(&desired, &seen, &berth_core::plan::Memory::default(), now);
        reached
    };
    let make = |rng: &mut Rng| match rng.below(4) {
        0 => corpus.text(rng),
        _ => corpus.text_changed_once(rng),
    };
    mutate::run("sandbox records", make, attempt);
    let (read, count) = (read.into_inner(), mutate::count());
    assert!(read * 10 >= count && read < count, "read: {read} of {count}");
}
