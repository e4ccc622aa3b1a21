//! Processes run in a running container through containerd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod support;

use berth_core::{error::Chain, ids::ContainerId};
use berth_runtime::{ExecRequest, Kind, Runtime};
use serde_json::json;
use std::time::Duration;
use support::{Node, PATIENCE, process, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn request(id: &ContainerId, exec_id: &str, script: &str) -> ExecRequest {
    ExecRequest {
        id: id.clone(),
        exec_id: exec_id.into(),
        process: process(&["sh", "-c", script]),
        stdio: None,
        stdin: false,
        terminal: false,
    }
}

async fn no_exec_left(node: &Node) {
    until("the FIFOs are removed", || async {
        std::fs::read_dir(node.roots.runtime_state.join("exec")).unwrap().next().is_none()
    })
    .await;
}

async fn running(node: &Node) -> (Runtime, ContainerId, support::Output) {
    let (runtime, image) = node.ready().await;
    let (start, output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    runtime.create_and_start(start.clone()).await.unwrap();
    (runtime, start.id, output)
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_code_are_whole_every_time() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    for round in 0..15 {
        let script = format!("echo out {round}; echo err {round} >&2; exit {round}");
        let done =
            runtime.exec_output(request(&id, &format!("e{round}"), &script), 1024, PATIENCE).await.unwrap();
        assert_eq!(done.code, Some(round));
        assert_eq!(String::from_utf8_lossy(&done.stdout), format!("out {round}\n"));
        assert_eq!(String::from_utf8_lossy(&done.stderr), format!("err {round}\n"));
    }
    no_exec_left(&node).await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_or_too_long_is_cut_off() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let flood = "head -c 1000000 /dev/zero; echo end >&2";
    let done = runtime.exec_output(request(&id, "flood", flood), 100, PATIENCE).await.unwrap();
    assert_eq!((done.code, done.stdout.len(), done.stderr.as_slice()), (Some(0), 100, &b"end\n"[..]));

    let slow = runtime
        .exec_output(request(&id, "slow", "echo here; exec sleep 1000"), 100, Duration::from_millis(700))
        .await
        .unwrap();
    assert_eq!((slow.code, slow.stdout.as_slice()), (None, &b"here\n"[..]));
    until("the slow process is gone", || async { runtime.pids(&id).await.unwrap().len() == 1 }).await;

    no_exec_left(&node).await;

    // A background child keeps the output open; the answer must not wait for the child. (The shim waits 10 s
    // before it gives the exec up, which this test does not await.)
    let left = runtime.exec_output(request(&id, "left", "sleep 1000 & echo done"), 100, PATIENCE);
    let left = tokio::time::timeout(Duration::from_secs(15), left).await.unwrap().unwrap();
    assert_eq!((left.code, left.stdout.as_slice()), (Some(0), &b"done\n"[..]));
    runtime.shutdown().await;
}

/// The first process of an exec leads a session, so the adapter finds children whose parent has ended.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_the_whole_tree_ends() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let tree =
        "sleep 1000 & (sleep 1000 & sleep 1000 & setsid sleep 1000 & wait) & (sleep 1000 &) ; echo up; wait";
    let late =
        runtime.exec_output(request(&id, "tree", tree), 100, Duration::from_millis(1500)).await.unwrap();
    assert_eq!((late.code, late.stdout.as_slice()), (None, &b"up\n"[..]));
    until("nothing but the container is left", || async { runtime.pids(&id).await.unwrap().len() == 1 })
        .await;

    let handle = runtime.exec(request(&id, "dropped", tree)).await.unwrap();
    until("the tree stands", || async { runtime.pids(&id).await.unwrap().len() >= 7 }).await;
    drop(handle);
    until("nothing but the container is left", || async { runtime.pids(&id).await.unwrap().len() == 1 })
        .await;
    no_exec_left(&node).await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_reaches_the_process_and_ends() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let mut handle =
        runtime.exec(ExecRequest { stdin: true, ..request(&id, "cat", "cat; echo over") }).await.unwrap();
    handle.stdin.as_mut().unwrap().write_all(b"through\n").await.unwrap();
    handle.close_stdin().await.unwrap();
    let mut text = String::new();
    handle.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through\nover\n");
    assert_eq!(handle.wait().await.unwrap(), 0);
    drop(handle);
    no_exec_left(&node).await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let mut tty = ExecRequest { terminal: true, stdin: true, ..request(&id, "tty", "read x; stty size") };
    tty.process["terminal"] = json!(true);
    let mut handle = runtime.exec(tty).await.unwrap();
    handle.resize(97, 31).await.unwrap();
    handle.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    let mut text = String::new();
    let mut stdout = handle.stdout.take().unwrap();
    tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.contains("31 97"), "{text:?}");
    assert_eq!(handle.wait().await.unwrap(), 0);
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_handle_ends_its_process_and_no_other() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let handle = runtime.exec(request(&id, "same", "exec sleep 1000")).await.unwrap();
    assert_eq!(runtime.pids(&id).await.unwrap().len(), 2);
    assert!(handle.pid > 1 && handle.start_time > 0);
    // A second exec with the same id is refused and leaves the first running.
    let second = runtime.exec(request(&id, "same", "true")).await.unwrap_err();
    assert!(matches!(second.kind(), Kind::AlreadyExists | Kind::Local), "{}", Chain(&second));
    assert!(handle.stdio.stdout.exists());
    assert_eq!(runtime.pids(&id).await.unwrap().len(), 2);
    drop(handle);
    until("the process is gone", || async { runtime.pids(&id).await.unwrap().len() == 1 }).await;
    no_exec_left(&node).await;
    let error = runtime.exec(request(&id, "../x", "true")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Local);
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_run_fails_and_leaves_nothing() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let mut missing = request(&id, "missing", "");
    missing.process = process(&["/no/such"]);
    let error = runtime.exec(missing.clone()).await.unwrap_err();
    assert!(Chain(&error).to_string().contains("no such file or directory"), "{}", Chain(&error));
    no_exec_left(&node).await;
    // The id can be used again once the failed exec is cleaned up.
    missing.process = process(&["true"]);
    until("the id is free", || async { runtime.exec_output(missing.clone(), 10, PATIENCE).await.is_ok() })
        .await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_agent_left_ends_with_its_children() {
    let node = Node::start().await;
    let (runtime, id, _output) = running(&node).await;
    let mut handles = Vec::new();
    for exec_id in ["s-1", "s-2", "other"] {
        let handle = runtime.exec(request(&id, exec_id, "sleep 2000 & exec sleep 1000")).await.unwrap();
        // Nobody ends it, as nobody does where the agent was killed.
        handles.push(std::mem::ManuallyDrop::new(handle));
    }
    until("all run", || async { runtime.pids(&id).await.unwrap().len() == 7 }).await;
    let left = |exec_id: &str| (id.short().to_owned(), exec_id.to_owned());
    let all = [left("s-1"), left("s-2"), left("gone"), ("0123456789ab".to_owned(), "other".to_owned())];
    assert_eq!(runtime.end_left_execs(&all).await.unwrap(), 2);
    until("they are gone", || async { runtime.pids(&id).await.unwrap().len() == 3 }).await;
    assert_eq!(runtime.end_left_execs(&all).await.unwrap(), 0);
    drop(handles.pop().map(std::mem::ManuallyDrop::into_inner));
    until("the last is gone", || async { runtime.pids(&id).await.unwrap().len() == 1 }).await;
    runtime.shutdown().await;
}
