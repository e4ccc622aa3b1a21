//! Each pod has one shim, spare shims stand ready, and no death of an agent leaves a shim behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod support;

use berth_runtime::Runtime;
use std::collections::BTreeSet;
use support::{Node, until};

/// Waits until the pool is full and returns all shims of the node.
async fn settled(node: &Node, runtime: &Runtime, used: usize) -> BTreeSet<u32> {
    until("the pool is full", || async {
        let (shims, idle) = runtime.shims();
        idle == node.pool && shims.len() == used + idle && node.shims() == shims.into_iter().collect()
    })
    .await;
    node.shims()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containers_of_a_pod_share_one_shim() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    settled(&node, &runtime, 0).await;
    let (a, _o1) = node.request(&image, "pod-a", "one", "exec sleep 1000");
    let (b, _o2) = node.request(&image, "pod-a", "two", "exec sleep 1000");
    let (c, _o3) = node.request(&image, "pod-b", "one", "exec sleep 1000");
    let (ra, rb, rc) = tokio::join!(
        runtime.create_and_start(a.clone()),
        runtime.create_and_start(b.clone()),
        runtime.create_and_start(c.clone())
    );
    ra.unwrap();
    rb.unwrap();
    rc.unwrap();
    settled(&node, &runtime, 2).await;
    let (late, _o4) = node.request(&image, "pod-a", "late", "exec sleep 1000");
    runtime.create_and_start(late.clone()).await.unwrap();
    settled(&node, &runtime, 2).await;

    // A container created before the dead one is deleted joins the pod's shim. After the deletion of the last
    // container, the next one gets a new shim.
    runtime.remove(&c.id).await.unwrap();
    settled(&node, &runtime, 1).await;
    let (again, _o5) = node.request(&image, "pod-b", "one", "exec sleep 1000");
    runtime.create_and_start(again.clone()).await.unwrap();
    settled(&node, &runtime, 2).await;
    for id in [a.id, b.id, late.id, again.id] {
        runtime.remove(&id).await.unwrap();
    }
    settled(&node, &runtime, 0).await;
    runtime.shutdown().await;
    until("no shim is left", || async { node.shims().is_empty() }).await;
}

/// containerd ends a shim after a failed create if the shim has no task, and with it the other creates under
/// way in that shim.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_start_takes_no_neighbour_with_it() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    for round in 0..8 {
        let pod = format!("pod-{round}");
        let mut requests = Vec::new();
        for (name, args) in [
            ("low", &["sleep", "9"][..]),
            ("empty", &[""]),
            ("dir", &["/tmp"]),
            ("file", &["/etc/passwd"]),
            ("ok", &["sleep", "1000"]),
            ("ok2", &["sleep", "1000"]),
        ] {
            let (mut request, output) = node.request_args(&image, &pod, name, args);
            if name == "low" {
                request.spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 512 << 10});
            }
            requests.push((request, output));
        }
        let starts = requests.iter().map(|(request, _)| {
            let (runtime, request) = (runtime.clone(), request.clone());
            tokio::spawn(async move { runtime.create_and_start(request).await })
        });
        for (start, (request, _)) in starts.collect::<Vec<_>>().into_iter().zip(&requests) {
            let name = request.container.as_str();
            match start.await.unwrap() {
                Ok(_) => assert!(name.starts_with("ok"), "round {round}: {name} runs"),
                Err(e) => {
                    assert!(!name.starts_with("ok"), "round {round}: {name}: {}", e.message());
                    assert!(!e.is_unknown(), "round {round}: {name}: {}", e.message());
                }
            }
        }
        for (request, _) in &requests {
            runtime.remove(&request.id).await.unwrap();
        }
    }
    settled(&node, &runtime, 0).await;
    runtime.shutdown().await;
}

#[test]
fn a_killed_agent_leaks_no_shim_and_its_successor_uses_them() {
    let build = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let tests = build();
    let node = tests.block_on(Node::start());
    // The first agent has a tokio runtime of its own, which is dropped without a shutdown, like a killed
    // process.
    let first = build();
    let (image, request, _output, before) = first.block_on(async {
        let (runtime, image) = node.ready().await;
        let (request, output) = node.request(&image, "pod-a", "one", "exec sleep 1000");
        runtime.create_and_start(request.clone()).await.unwrap();
        let before = settled(&node, &runtime, 1).await;
        std::mem::forget(runtime);
        (image, request, output, before)
    });
    first.shutdown_background();
    assert_eq!(node.shims(), before);
    tests.block_on(async {
        let runtime = node.connect().await;
        assert_eq!(settled(&node, &runtime, 1).await, before, "spare ones go back into the pool");
        let (second, _o) = node.request(&image, "pod-a", "two", "exec sleep 1000");
        runtime.create_and_start(second.clone()).await.unwrap();
        assert_eq!(settled(&node, &runtime, 1).await, before, "the pod still has its shim");
        runtime.remove(&request.id).await.unwrap();
        runtime.remove(&second.id).await.unwrap();
        settled(&node, &runtime, 0).await;
        runtime.shutdown().await;
        until("no shim is left", || async { node.shims().is_empty() }).await;
        let left: Vec<_> = std::fs::read_dir(node.roots.shims_dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shrunken_pool_ends_what_it_no_longer_wants() {
    let mut node = Node::start().await;
    let runtime = node.connect().await;
    settled(&node, &runtime, 0).await;
    // Dropping the adapter skips its shutdown: its tasks stop and its shims stay. It must be gone before the
    // next adapter looks at the shims, because a live one would refill its pool.
    drop(runtime);
    node.pool = 1;
    let second = node.connect().await;
    until("one of the two is ended", || async { node.shims().len() == 1 && second.shims().1 == 1 }).await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pool_containerd_groups_the_pods_shim() {
    let node = Node::with(0, false).await;
    let (runtime, image) = node.ready().await;
    assert!(node.shims().is_empty());
    let (a, _o1) = node.request(&image, "pod-a", "one", "exec sleep 1000");
    let (b, _o2) = node.request(&image, "pod-a", "two", "exec sleep 1000");
    runtime.create_and_start(a.clone()).await.unwrap();
    runtime.create_and_start(b.clone()).await.unwrap();
    assert_eq!(node.shims().len(), 1);
    runtime.remove(&a.id).await.unwrap();
    assert_eq!(node.shims().len(), 1);
    runtime.remove(&b.id).await.unwrap();
    until("the shim ended", || async { node.shims().is_empty() }).await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_cri_plugin_no_sandbox_record_is_made_and_nothing_is_claimed() {
    let mut node = Node::with(2, true).await;
    let (runtime, image) = node.ready().await;
    assert!(runtime.cri_plugin_on().await.unwrap());
    let (request, _output) = node.request(&image, "pod-a", "one", "exec sleep 1000");
    let started = runtime.create_and_start(request.clone()).await.unwrap();
    assert_eq!(node.ctr(&["sandboxes", "ls"]).lines().count(), 1);
    assert_eq!(runtime.shims(), (vec![], 0));
    let before = runtime.list().await.unwrap();
    node.kill_containerd();
    node.start_containerd().await;
    let mut after = Vec::new();
    until("containerd answers", || async { runtime.list().await.is_ok() }).await;
    after.extend(runtime.list().await.unwrap());
    assert_eq!(after.len(), before.len());
    assert_eq!((&after[0].id, after[0].state), (&before[0].id, before[0].state));
    assert!(berth_sys::process::alive(started.pid, started.start_time).unwrap());
    runtime.remove(&request.id).await.unwrap();
    runtime.shutdown().await;
}
