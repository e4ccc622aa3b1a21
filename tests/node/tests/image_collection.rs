//! Image collection of a real agent, with containerd's store on a small file system of its own, so that the high mark is
//! really reached; and `berth image prune` and `verify`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, ensure};
use berth_harness::{
    image,
    machine::{Machine, Scope},
    node::{Node, TestNode},
    oci::{Entry, Image},
    registry::{Encoding, Registry},
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{fs, path::PathBuf};

const MIB: usize = 1 << 20;

/// Runs a test on a node whose images are on a tmpfs of 64 MiB. Unused images are removed from 60 percent on, down to 50.
fn on_a_small_disk(test: impl FnOnce(&mut TestNode) -> anyhow::Result<()>) {
    let before = Machine::now(&Scope::of_node(Vec::new())).unwrap();
    let mut node = TestNode::prepare(Build::Plain).unwrap();
    let scope = Scope::of_node(node.marks());
    let run = |node: &mut TestNode| {
        node.containerd.stop()?;
        let root = store(node);
        fs::remove_dir_all(&root).context("remove containerd's store")?;
        fs::create_dir_all(&root)?;
        berth_sys::mount::tmpfs(&root, Some(64 << 20), 0o711)?;
        node.containerd.start()?;
        image::import_test(&node.containerd, &node.dir)?;
        let args = [
            "--image-gc-high-threshold=60",
            "--image-gc-low-threshold=50",
            "--minimum-image-ttl-duration=0s",
        ];
        node.agent_args.extend(args.map(str::to_owned));
        node.start_agent()?;
        wait::ok("containerd answers", PATIENCE, || {
            let out = node.berth(&["images"])?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            Ok(())
        })?;
        test(node)
    };
    if let Err(error) = run(&mut node) {
        panic!("{error:?}");
    }
    node.end().unwrap();
    before.assert_as_before(&scope).unwrap();
}

fn store(node: &Node) -> PathBuf {
    node.dir.join("containerd/root")
}

/// Busybox with one more layer of so many bytes, and no others like it. Uncompressed and unpacked it takes twice the bytes.
fn noise(seed: u64, bytes: usize) -> anyhow::Result<Image> {
    let mut image = Image::busybox("x")?;
    image.layers.push(vec![Entry::noise("noise", seed, bytes)]);
    Ok(image)
}

fn sleeper(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n\
         \x20 - name: main\n    image: {image}\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, 'exec sleep infinity']\n"
    )
}

fn images(node: &Node) -> anyhow::Result<String> {
    node.containerd.ctr(&["images", "ls", "-q"])
}

fn pull(node: &Node, image: &str) -> anyhow::Result<()> {
    let out = node.berth(&["image", "pull", image])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

fn status(node: &Node) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&node.berth(&["status"])?.stdout).into_owned())
}

#[test]
fn the_longest_unused_image_goes_and_the_used_one_stays() {
    let registry = Registry::start().unwrap();
    for (n, name) in ["a", "b", "c"].iter().enumerate() {
        registry.push(name, "1", &noise(n as u64 + 1, 12 * MIB).unwrap(), Encoding::Tar).unwrap();
    }
    on_a_small_disk(|node| {
        let [a, b, c] = ["a", "b", "c"].map(|name| registry.image(name, "1"));
        pull(node, &a)?;
        ensure!(images(node)?.contains(&a), "a quarter of the disk is no reason to remove it");
        pull(node, &b)?;
        wait::ok("the first image is removed", PATIENCE, || {
            ensure!(!images(node)?.contains(&a), "it is there");
            Ok(())
        })?;
        ensure!(images(node)?.contains(&b), "one was enough: {}", images(node)?);
        // One that a pod uses stays, and one that is unused goes although it is newer.
        node.apply("b.yaml", &sleeper("b", &b))?;
        let before = node.ready("default/b")?.processes();
        pull(node, &c)?;
        wait::ok("the unused image is removed", PATIENCE, || {
            ensure!(!images(node)?.contains(&c), "it is there");
            Ok(())
        })?;
        ensure!(images(node)?.contains(&b), "it is in use");
        ensure!(node.ready("default/b")?.processes() == before, "the pod was not touched");
        let log = fs::read_to_string(node.agent_log())?;
        ensure!(log.contains("image removed"), "the log says it");
        Ok(())
    });
}

#[test]
fn dead_containers_layers_go_before_images_and_their_records_stay() {
    let registry = Registry::start().unwrap();
    registry.push("a", "1", &noise(1, 4 * MIB).unwrap(), Encoding::Tar).unwrap();
    registry.push("b", "1", &noise(2, 2 * MIB).unwrap(), Encoding::Tar).unwrap();
    on_a_small_disk(|node| {
        let [a, b] = ["a", "b"].map(|name| registry.image(name, "1"));
        pull(node, &a)?;
        let script = "echo written; dd if=/dev/zero of=/big bs=1M count=26; exit 3";
        node.apply("w.yaml", &support::shell("w", "restartPolicy: Never\n", script))?;
        let failed = |p: &berth_harness::socket::Pod| p.status()["phase"] == "Failed";
        let ended = node.pod("has failed", "default/w", PATIENCE, failed)?;
        pull(node, &b)?;
        let key =
            ended.container("main")["containerID"].as_str().unwrap_or_default().replace("containerd://", "");
        wait::ok("the dead container's layer is removed", PATIENCE, || {
            ensure!(!node.containerd.ctr(&["snapshots", "ls"])?.contains(&key), "it is there");
            Ok(())
        })?;
        let all = images(node)?;
        ensure!(all.contains(&a) && all.contains(&b), "the layer was enough: {all}");
        let after = node.pod("has failed", "default/w", PATIENCE, failed)?;
        ensure!(after.container("main")["state"] == ended.container("main")["state"], "{:?}", after.status());
        let out = node.berth(&["logs", "w"])?;
        ensure!(String::from_utf8_lossy(&out.stdout).contains("written"), "{out:?}");
        // A restarted agent knows it as ended, too.
        node.kill_agent()?;
        node.start_agent()?;
        let after = node.pod("has failed", "default/w", PATIENCE, failed)?;
        ensure!(after.container("main")["state"]["terminated"]["exitCode"] == 3, "{:?}", after.status());
        Ok(())
    });
}

#[test]
fn where_nothing_can_be_freed_the_status_says_what_holds_the_bytes() {
    let registry = Registry::start().unwrap();
    registry.push("a", "1", &noise(1, 4 * MIB).unwrap(), Encoding::Tar).unwrap();
    registry.push("b", "1", &noise(2, MIB).unwrap(), Encoding::Tar).unwrap();
    on_a_small_disk(|node| {
        let [a, b] = ["a", "b"].map(|name| registry.image(name, "1"));
        pull(node, &a)?;
        node.containerd.ctr(&["images", "label", &a, "io.cri-containerd.pinned=pinned"])?;
        fs::write(store(node).join("other"), vec![1; 36 * MIB])?;
        pull(node, &b)?;
        wait::ok("the status names the problem", PATIENCE, || {
            let status = status(node)?;
            let wanted = ["Images", "pinned", "the rest is other data"];
            ensure!(wanted.iter().all(|w| status.contains(w)), "{status}");
            Ok(())
        })?;
        let all = images(node)?;
        ensure!(all.contains(&a) && !all.contains(&b), "the pinned one stays, the other one goes: {all}");
        let log = fs::read_to_string(node.agent_log())?;
        ensure!(
            log.contains("Insufficient free disk space on the node's image filesystem"),
            "upstream's words"
        );
        Ok(())
    });
}

#[test]
fn prune_removes_what_no_pod_uses_and_verify_finds_damage() {
    let registry = Registry::start().unwrap();
    registry.push("a", "1", &noise(1, 3 * MIB).unwrap(), Encoding::Tar).unwrap();
    registry.push("b", "1", &noise(2, 3 * MIB).unwrap(), Encoding::Tar).unwrap();
    on_a_small_disk(|node| {
        let [a, b] = ["a", "b"].map(|name| registry.image(name, "1"));
        node.apply("a.yaml", &sleeper("a", &a))?;
        node.ready("default/a")?;
        pull(node, &b)?;
        let out = node.berth(&["image", "verify"])?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(out.status.success() && said.matches(": ok, ").count() >= 3, "{said} {out:?}");
        // A byte of a layer is turned.
        let digest = layer(node, &b)?;
        let blob = store(node).join("io.containerd.content.v1.content/blobs/sha256").join(&digest);
        let mut bytes = fs::read(&blob)?;
        bytes[100_000] ^= 1;
        fs::write(&blob, bytes)?;
        let out = node.berth(&["image", "verify", &b])?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(out.status.code() == Some(1), "{out:?}");
        ensure!(
            said.contains("layer 1") && said.contains(&digest) && said.contains("has the digest"),
            "{said}"
        );
        fs::remove_file(&blob)?;
        let out = node.berth(&["image", "verify", &b])?;
        ensure!(out.status.code() == Some(1), "{out:?}");
        ensure!(node.berth(&["image", "verify", &a])?.status.success(), "the other one is sound");
        ensure!(node.berth(&["image", "verify", "absent:1"])?.status.code() == Some(4), "not found");
        let out = node.berth(&["image", "prune"])?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(out.status.success() && said.contains(&b) && said.contains(" MiB freed"), "{said} {out:?}");
        let all = images(node)?;
        ensure!(all.contains(&a) && !all.contains(&b), "{all}");
        ensure!(said.contains("1 in use"), "{said}");
        Ok(())
    });
}

/// The digest of the last layer, without its algorithm.
fn layer(node: &Node, image: &str) -> anyhow::Result<String> {
    let out = node.berth(&["image", "inspect", image, "-o", "json"])?;
    let page: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let layers = page["layers"].as_array().context("it has layers")?;
    let last = layers.last().and_then(|l| l[0].as_str()).context("a layer has a digest")?;
    Ok(last.trim_start_matches("sha256:").to_owned())
}
