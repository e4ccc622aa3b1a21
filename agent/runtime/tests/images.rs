//! Images: import, names and unpacking; and labels of an image are stored nowhere.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use berth_harness::oci;
use serde_json::json;
use std::{collections::HashMap, path::PathBuf};
use support::{BUSYBOX, Node};
use tokio::sync::oneshot;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_all_its_names() {
    let node = Node::start().await;
    let (runtime, image) = node.ready().await;
    assert_eq!(image.name, BUSYBOX);
    assert_eq!(image.config.cmd, ["sh"]);
    assert!(image.image_id.starts_with("sha256:"), "no repository has a digest for it: {}", image.image_id);
    for name in ["busybox:latest", "docker.io/busybox", BUSYBOX] {
        let found = runtime.resolve_image(name).await.unwrap().unwrap();
        assert_eq!(
            (found.target_digest.as_str(), found.chain_id.as_str()),
            (image.target_digest.as_str(), image.chain_id.as_str())
        );
    }
    assert!(runtime.resolve_image("busybox:other").await.unwrap().is_none());
    assert!(
        runtime.resolve_image("").await.is_ok_and(|i| i.is_none())
            || runtime.resolve_image("").await.is_err()
    );

    // An image with a name by digest is listed under that name.
    let canonical = format!("docker.io/library/busybox@{}", image.target_digest);
    node.ctr(&["images", "tag", BUSYBOX, &canonical]);
    let by_digest =
        runtime.resolve_image(&format!("busybox@{}", image.target_digest)).await.unwrap().unwrap();
    assert_eq!(by_digest.image_id, canonical);
    assert_eq!(runtime.resolve_image("busybox").await.unwrap().unwrap().image_id, canonical);
    runtime.shutdown().await;
}

/// Starts garbage collections of containerd one after another, by a lease of another namespace; returns how many there were.
async fn collect_until(socket: PathBuf, end: oneshot::Receiver<()>) -> u32 {
    use containerd_client::{Client, services::v1, with_namespace};
    use tonic::Request;
    let client = Client::from_path(socket).await.unwrap();
    let mut collections = 0;
    while end.is_empty() {
        let make = v1::CreateRequest { id: "collect".into(), labels: HashMap::new() };
        client.leases().create(with_namespace!(make, "elsewhere")).await.unwrap();
        let release = v1::DeleteRequest { id: "collect".into(), sync: true };
        client.leases().delete(with_namespace!(release, "elsewhere")).await.unwrap();
        collections += 1;
    }
    collections
}

/// Each collection of containerd 2.4 closes the streams that have no lease, in a namespace that has no record yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_import_of_a_namespace_outlives_garbage_collections() {
    let mut node = Node::with(0, true).await;
    let (end, ends) = oneshot::channel();
    let collections = tokio::spawn(collect_until(node.roots.containerd_socket.clone(), ends));
    for n in 0..20 {
        node.roots.containerd_namespace = format!("first-{n}");
        let (runtime, _image) = node.ready().await;
        assert_eq!(node.ctr(&["leases", "ls", "-q"]), "", "the import leaves no lease");
        runtime.shutdown().await;
    }
    end.send(()).unwrap();
    assert!(collections.await.unwrap() > 20, "containerd collected meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn importing_twice_is_harmless_and_several_come_at_once() {
    let node = Node::start().await;
    let (runtime, first) = node.ready().await;
    let again = node.busybox(&runtime).await;
    assert_eq!(first.target_digest, again.target_digest);
    let base = oci::Image::busybox(BUSYBOX).unwrap();
    let archive = node.dir.path().join("two.tar");
    let one = base.variant("example.com/one:1", json!({"Entrypoint": ["/bin/true"], "User": "65534"}));
    let two = base.variant("example.com/two:2", json!({"WorkingDir": "/tmp", "StopSignal": "SIGINT"}));
    oci::write_archive(&archive, &[one, two]).unwrap();
    let mut names = runtime.import(&archive).await.unwrap();
    names.sort();
    assert_eq!(names, ["example.com/one:1", "example.com/two:2"]);
    let one = runtime.resolve_image("example.com/one:1").await.unwrap().unwrap();
    assert_eq!((one.config.entrypoint, one.config.user.as_str()), (vec!["/bin/true".to_owned()], "65534"));
    let two = runtime.resolve_image("example.com/two:2").await.unwrap().unwrap();
    assert_eq!(
        (two.config.working_dir.as_str(), two.config.stop_signal.as_deref()),
        ("/tmp", Some("SIGINT"))
    );
    assert_eq!(two.chain_id, first.chain_id);

    let mut all = runtime.images().await.unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, [BUSYBOX, "example.com/one:1", "example.com/two:2"]);
    assert!(all.iter().all(|i| i.size.is_some_and(|s| s > 1 << 20) && i.created_at.is_some()), "{all:?}");
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_archive_is_refused() {
    let node = Node::start().await;
    let runtime = node.connect().await;
    let path = node.dir.path().join("x.tar");
    assert!(runtime.import(&path).await.is_err());
    for bytes in [&b""[..], b"nonsense", &[0; 4096]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(runtime.import(&path).await.is_err(), "{bytes:?}");
    }
    std::fs::write(&path, oci::tar(&[oci::Entry::file("index.json", 0o644, "{")]).unwrap()).unwrap();
    assert!(runtime.import(&path).await.is_err());
    assert!(runtime.images().await.unwrap().is_empty());
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_unpacked_is_unpacked_at_the_start() {
    let node = Node::start().await;
    let runtime = node.connect().await;
    let archive = node.dir.path().join("busybox.tar");
    let mut image = oci::Image::busybox(BUSYBOX).unwrap();
    image.layers.push(vec![oci::Entry::file("second", 0o644, "from above")]);
    oci::write_archive(&archive, &[image]).unwrap();
    node.ctr(&["images", "import", "--no-unpack", archive.to_str().unwrap()]);
    assert_eq!(node.ctr(&["snapshots", "ls"]).lines().count(), 1, "only the heading");
    let image = runtime.resolve_image("busybox").await.unwrap().unwrap();
    let (request, output) = node.request(&image, "pod-a", "app", "cat /second");
    runtime.create_and_start(request).await.unwrap();
    output.has("from above").await;
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_of_an_image_reaches_a_container() {
    let node = Node::start().await;
    let runtime = node.connect().await;
    let archive = node.dir.path().join("labelled.tar");
    let labels = json!({
        "containerd.io/restart.loguri": "binary:///bin/false",
        "containerd.io/restart.status": "running",
        "io.cri-containerd.kind": "sandbox",
        "plain": "label",
    });
    let image = oci::Image::busybox(BUSYBOX).unwrap().variant("example.com/l:1", json!({"Labels": labels}));
    oci::write_archive(&archive, &[image]).unwrap();
    runtime.import(&archive).await.unwrap();
    let image = runtime.resolve_image("example.com/l:1").await.unwrap().unwrap();
    let (request, _output) = node.request(&image, "pod-a", "app", "exec sleep 1000");
    runtime.create_and_start(request.clone()).await.unwrap();
    let info: serde_json::Value =
        serde_json::from_str(&node.ctr(&["containers", "info", request.id.as_str()])).unwrap();
    let mut keys: Vec<&str> = info["Labels"].as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "berth.dev/attempt",
            "berth.dev/pod-uid",
            "io.kubernetes.container.name",
            "io.kubernetes.pod.name",
            "io.kubernetes.pod.namespace",
            "io.kubernetes.pod.uid"
        ]
    );
    let snapshot = node.ctr(&["snapshots", "info", request.id.as_str()]);
    assert!(!snapshot.contains("plain") && !snapshot.contains("restart"), "{snapshot}");
    runtime.shutdown().await;
}
