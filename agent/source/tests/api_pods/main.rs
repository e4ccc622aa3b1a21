//! The pods of `tests/shapes` as a real API server returns them, against the same pods as the manifest directory reads
//! them. `recorded.jsonl` has a line for each shape that the API server accepts.
//!
//! To record again: `cargo xtask cluster --dir DIR`, then `BERTH_CLUSTER=DIR BERTH_KUBECTL=PATH cargo test -p
//! berth-source --test api_pods record -- --ignored`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_core::{
    model::{Container, Origin, Pod, Resources, VolumeSource},
    quantity::Quantity,
};
use berth_source::{
    cluster::{ApiPod, pod},
    manifest::{ManifestContext, Mode, parse_file},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Shapes with a field that the API server refuses of this client: it computes the field itself.
const REFUSED: [&str; 2] = ["resources-overhead", "tolerations"];

fn shapes() -> BTreeMap<String, PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/shapes");
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect()
}

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api_pods/recorded.jsonl")
}

fn of_manifest(path: &Path) -> Pod {
    let ctx = ManifestContext {
        node: "n".parse().unwrap(),
        mode: Mode::Manifests,
        now: berth_core::time::Wall(0),
        services: None,
    };
    let mut parsed = parse_file(path, &fs::read(path).unwrap(), &ctx).unwrap();
    parsed.pods.remove(0).pod
}

fn of_api(object: &Value) -> Pod {
    let (_, read, _) = pod(&serde_json::to_vec(object).unwrap(), &"n".parse().unwrap()).unwrap();
    let ApiPod::Pod(desired) = read else { panic!("a mirror pod") };
    Pod::clone(&desired.pod)
}

/// The pod with each amount in thousandths: the API server writes `100000` as `100k`, which is the same amount.
fn in_thousandths(mut pod: Pod) -> Pod {
    let same = |q: &mut Quantity| *q = format!("{}m", q.millis()).parse().unwrap();
    let all = |r: &mut Resources| r.requests.values_mut().chain(r.limits.values_mut()).for_each(same);
    pod.init_containers.iter_mut().chain(&mut pod.containers).for_each(|c| all(&mut c.resources));
    pod.resources.iter_mut().for_each(all);
    for volume in &mut pod.volumes {
        if let VolumeSource::EmptyDir { size_limit: Some(limit), .. } = &mut volume.source {
            same(limit);
        }
    }
    pod
}

/// The pod without what the API server alone adds: the token volume of its ServiceAccount.
fn without_token(mut pod: Pod) -> Pod {
    let added = |name: &str| name.starts_with("kube-api-access-");
    let strip = |c: &mut Container| c.mounts.retain(|m| !added(m.volume.as_str()));
    pod.volumes.retain(|v| !added(v.name.as_str()));
    pod.init_containers.iter_mut().chain(&mut pod.containers).for_each(strip);
    pod
}

#[test]
fn every_pod_of_the_api_server_equals_that_of_its_manifest() {
    let shapes = shapes();
    let mut seen = Vec::new();
    for line in fs::read_to_string(recording()).unwrap().lines() {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let name = recorded["shape"].as_str().unwrap();
        let (manifest, api) = (of_manifest(&shapes[name]), of_api(&recorded["pod"]));
        assert_eq!(api.unsupported, None, "{name}");
        assert_eq!(api.uid.as_str(), recorded["pod"]["metadata"]["uid"].as_str().unwrap(), "{name}");
        assert!(api.created.0 > 0 && api.origin == Origin::Cluster, "{name}");
        assert!(api.volumes.len() > manifest.volumes.len() || without_token(api.clone()) == api, "{name}");
        assert_eq!(api.generation, recorded["pod"]["metadata"]["generation"].as_i64(), "{name}");
        let (uid, created, generation) = (api.uid.clone(), api.created, api.generation);
        let expected = Pod { uid, created, generation, origin: Origin::Cluster, ..manifest };
        assert_eq!(in_thousandths(without_token(api)), in_thousandths(expected), "{name}");
        seen.push(name.to_owned());
    }
    let expected: Vec<String> = shapes.into_keys().filter(|s| !REFUSED.contains(&s.as_str())).collect();
    assert_eq!(seen, expected, "each shape is recorded; record again after adding one");
}

#[test]
#[ignore = "needs a cluster"]
fn record() {
    let cluster =
        PathBuf::from(std::env::var("BERTH_CLUSTER").expect("BERTH_CLUSTER names a cluster's directory"));
    let kubectl = std::env::var("BERTH_KUBECTL").expect("BERTH_KUBECTL names kubectl");
    let mut lines = String::new();
    for (name, path) in shapes() {
        let mut command = Command::new(&kubectl);
        command.arg("--kubeconfig").arg(cluster.join("admin.kubeconfig"));
        let answer =
            command.args(["create", "--dry-run=server", "-o", "json", "-f"]).arg(&path).output().unwrap();
        if REFUSED.contains(&name.as_str()) {
            assert!(!answer.status.success(), "{name} is accepted");
            continue;
        }
        assert!(answer.status.success(), "{name}: {}", String::from_utf8_lossy(&answer.stderr));
        // A manifest with several objects is answered by as many, one after the other.
        let objects = serde_json::Deserializer::from_slice(&answer.stdout).into_iter::<Value>();
        let mut pod = objects.map(Result::unwrap).find(|object| object["kind"] == "Pod").unwrap();
        for (part, field) in [("metadata", "managedFields"), ("spec", "tolerations")] {
            pod[part].as_object_mut().unwrap().remove(field);
        }
        pod.as_object_mut().unwrap().remove("status");
        lines.push_str(&format!("{}\n", json!({ "shape": name, "pod": pod })));
    }
    fs::write(recording(), lines).unwrap();
}
