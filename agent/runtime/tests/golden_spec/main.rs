//! Compares the spec builder with recordings of the real kubelet and containerd's CRI plugin (`tests/golden`,
//! remade by `tests/peers`). Each shape of `tests/shapes` is built from its manifest, the recorded image and
//! the recorded facts of the node. The spec must be the recorded one, except for the reviewed list
//! `tests/golden/differences.json`; an entry that no shape needs fails the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test: what is missing fails it")]

mod compare;
mod recording;

use berth_core::{
    ids::{Attempt, ContainerId, NodeName, SandboxAttempt},
    model::{Container, Pod, QosClass, VolumeSource},
    time::Wall,
};
use berth_runtime::spec::{self, ContainerInput, ContainerSpecError, ImageConfig, MountSpec, SpecError};
use berth_source::manifest::{self, ManifestContext, Mode};
use compare::{canonical, compare, reconcile};
use recording::{Difference, Golden, Node, Recorded, RecordedMount, Recording, json, read, tests_dir};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Name of the recording node; static pods carry it in their names.
const NODE: &str = "berth-peer";
const LEAST_SHAPES: usize = 60;
/// On cgroup v2 only shapes are recorded whose resources, mounts or privileges differ there.
const LEAST_SHAPES_V2: usize = 30;

/// Host name that the kubelet assigns to the pod.
fn hostname(pod: &Pod) -> String {
    if pod.namespaces.host_network {
        return NODE.to_owned();
    }
    let mut name = pod.dns.hostname.clone().unwrap_or_else(|| pod.key.name.to_string());
    // A DNS label has at most 63 characters.
    name.truncate(63);
    name.truncate(name.trim_end_matches(['-', '.']).len());
    match &pod.dns.subdomain {
        Some(sub) if pod.dns.hostname_as_fqdn => {
            format!("{name}.{sub}.{}.svc.cluster.local", pod.key.namespace)
        }
        _ => name,
    }
}

/// Mounts of the container: its volumes from the recorded sources, then the mounts that kubelet and runtime
/// add.
fn mounts(
    pod: &Pod,
    container: &Container,
    image: &ImageConfig,
    recorded: &[RecordedMount],
) -> Vec<MountSpec> {
    assert!(recorded.len() >= container.mounts.len(), "a volume is missing in the recording");
    let mut mounts: Vec<MountSpec> = Vec::new();
    for (mount, seen) in container.mounts.iter().zip(recorded) {
        assert_eq!(mount.mount_path, seen.container_path);
        let volume = pod.volumes.iter().find(|v| v.name == mount.volume).unwrap();
        let read_only = matches!(
            volume.source,
            VolumeSource::ConfigMap(_)
                | VolumeSource::Secret(_)
                | VolumeSource::DownwardApi { .. }
                | VolumeSource::Projected { .. }
        );
        // Without an API client the kubelet does not ask whether the runtime supports recursive read-only
        // mounts.
        let made = MountSpec::volume(mount, seen.host_path.clone(), read_only, false);
        assert_eq!(made.read_only, seen.readonly, "{}", mount.mount_path);
        mounts.push(made);
    }
    for seen in recorded.iter().skip(container.mounts.len()) {
        mounts.push(MountSpec::pod(seen.host_path.clone(), &seen.container_path));
    }
    let shm = if pod.namespaces.host_ipc { "/dev/shm" } else { "/SANDBOX/shm" };
    for (source, destination) in [
        ("/SANDBOX/hostname", "/etc/hostname"),
        ("/SANDBOX/hosts", "/etc/hosts"),
        ("/SANDBOX/resolv.conf", "/etc/resolv.conf"),
        (shm, "/dev/shm"),
    ] {
        mounts.push(MountSpec::sandbox(source.into(), destination));
    }
    let volumes = spec::image_volumes(image, &mounts);
    mounts.extend(volumes.iter().map(|v| MountSpec::image_volume("/VOLUME".into(), v)));
    mounts
}

fn cgroups_path(pod: &Pod) -> String {
    let class = match pod.qos() {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "/burstable",
        QosClass::BestEffort => "/besteffort",
    };
    format!("/KUBEPODS{class}/pod$UID/$ID")
}

fn seccomp_profile() -> String {
    // Contents of the profile that the recorder writes to the kubelet's seccomp directory.
    r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#
        .to_owned()
}

fn build(node: &Node, pod: &Pod, container: &Container, recorded: &Recorded) -> Result<Value, SpecError> {
    let image = node.image(&recorded.image);
    let id = ContainerId::derive(&pod.uid, SandboxAttempt(0), &container.name, Attempt(0));
    let profile = seccomp_profile();
    let built = spec::build_container(&ContainerInput {
        pod,
        container,
        id: &id,
        image: &image,
        users: node.users(),
        env: recorded.env.as_deref().unwrap_or_default(),
        command: recorded.command.as_deref().unwrap_or_default(),
        args: recorded.args.as_deref().unwrap_or_default(),
        mounts: &mounts(pod, container, &image, &recorded.mounts),
        devices: &[],
        sandbox_dir: Path::new("/NS"),
        cgroups_path: &cgroups_path(pod),
        hostname: &hostname(pod),
        target: None,
        seccomp_file: Some(&profile),
        host: &node.facts,
    });
    match built {
        Ok(spec) => Ok(serde_json::to_value(&spec).unwrap()),
        Err(ContainerSpecError::Spec(error)) => Err(error),
        Err(ContainerSpecError::User(error)) => panic!("{}: {error}", container.name),
    }
}

/// Reason and message of the kubelet's status for a container that was never created.
fn state_without(status: &Value, container: &Container) -> (String, String) {
    let all = ["initContainerStatuses", "containerStatuses"];
    let mut all = all.iter().filter_map(|list| status[list].as_array()).flatten();
    let Some(found) = all.find(|c| c["name"] == container.name.as_str()) else {
        panic!("container {} has no spec and no status", container.name)
    };
    let state = &found["state"];
    let state = if state["waiting"].is_null() { &state["terminated"] } else { &state["waiting"] };
    let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

/// Checks a container without a spec: Berth must refuse what the kubelet refused.
fn check_refused(node: &Node, pod: &Pod, container: &Container, reason: &str, message: &str) {
    let of_images = ["ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"];
    let of_others = ["PodInitializing", "ContainerCreating", "ContainerStatusUnknown"];
    if of_images.contains(&reason) || of_others.contains(&reason) {
        return;
    }
    let image = node.image(&container.image);
    let user = spec::resolve_user(pod, container, &image.user, node.users());
    match reason {
        // Sub-paths and variables are resolved by `berth-volumes`, outside this test.
        "CreateContainerConfigError" if message.contains("subPath") || message.contains("missing value") => {}
        "CreateContainerConfigError" => assert!(user.is_err(), "{}: {user:?}", pod.key),
        "CreateContainerError" => {
            let recorded = Recorded {
                image: container.image.clone(),
                command: Some(container.command.clone()),
                args: Some(container.args.clone()),
                env: None,
                mounts: Vec::new(),
                spec: Value::Null,
            };
            let built = build(node, pod, container, &recorded);
            assert!(matches!(built, Err(SpecError::NoCommand)), "{}: {built:?}", pod.key);
        }
        other => panic!("{}: nobody says how {other} comes about", pod.key),
    }
}

fn parse(path: &Path, text: &str) -> Result<Pod, String> {
    let context = ManifestContext {
        node: NodeName::new(NODE).unwrap(),
        mode: Mode::StaticPods,
        now: Wall(0),
        services: None,
    };
    let parsed = manifest::parse_file(path, text.as_bytes(), &context).map_err(|e| e.to_string())?;
    let [entry] = parsed.pods.as_slice() else { return Err(format!("{}: not one pod", path.display())) };
    match parsed.warnings.as_slice() {
        [] => Ok(entry.pod.clone()),
        warnings => Err(format!("{warnings:?}")),
    }
}

fn shapes() -> BTreeMap<String, (PathBuf, String)> {
    std::fs::read_dir(tests_dir().join("shapes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let text = read(&path);
            (path.file_stem().unwrap().to_string_lossy().into_owned(), (path, text))
        })
        .collect()
}

#[test]
fn specs_equal_the_recordings_of_the_cri_plugin() {
    let node = Node::load(&Golden::v1());
    assert!(!node.facts.unified_cgroups, "recorded on cgroup v1");
    compare_all(&Golden::v1(), &node);
}

#[test]
fn specs_equal_the_recordings_of_the_cri_plugin_on_cgroup_v2() {
    let node = Node::load(&Golden::v2());
    assert!(node.facts.unified_cgroups, "recorded on cgroup v2");
    compare_all(&Golden::v2(), &node);
}

fn compare_all(golden: &Golden, node: &Node) {
    let reviewed: Vec<Difference> = json(&golden.base.join("differences.json"));
    let mut used: BTreeSet<&'static str> = BTreeSet::new();
    let (mut recorded_shapes, mut specs, mut wrong) = (0, 0, Vec::new());

    for (name, (path, text)) in shapes() {
        let spec_file = golden.of_shape("spec", &name);
        if text.lines().any(|l| l.starts_with("# kubelet: skip ")) {
            assert!(!spec_file.exists(), "{name}: is skipped and yet recorded");
            continue;
        }
        if !golden.has_spec(&name) {
            continue;
        }
        let pod = match parse(&path, &text) {
            Ok(pod) => pod,
            Err(e) => {
                wrong.push(format!("{name}/manifest: {e}"));
                continue;
            }
        };
        let recording: Recording = json(&spec_file);
        let status: Value = json(&golden.of_shape("status", &name));
        recorded_shapes += 1;
        match (&recording.sysctls, spec::sandbox_sysctls(&pod)) {
            (Some(theirs), Ok(ours)) => assert_eq!(*theirs, ours, "{name}"),
            (Some(_), Err(e)) => panic!("{name}: {e}"),
            (None, Ok(_)) => assert_ne!(status["reason"], "SysctlForbidden", "{name}"),
            (None, Err(_)) => assert_eq!(status["reason"], "SysctlForbidden", "{name}"),
        }
        if recording.sysctls.is_none() && recording.containers.is_empty() {
            // No sandbox was created: the pod was refused at admission or waited for a volume.
            continue;
        }
        for container in pod.all_containers() {
            let Some(recorded) = recording.containers.get(container.name.as_str()) else {
                let (reason, message) = state_without(&status, container);
                check_refused(node, &pod, container, &reason, &message);
                continue;
            };
            let mut ours = match build(node, &pod, container, recorded) {
                Ok(spec) => spec,
                Err(e) => {
                    wrong.push(format!("{name}/{}: {e}", container.name));
                    continue;
                }
            };
            let mut theirs = recorded.spec.clone();
            used.extend(reconcile(&pod, &mut ours, &mut theirs));
            let mut places = Vec::new();
            compare("", &canonical(ours), &canonical(theirs), &mut places);
            wrong.extend(places.into_iter().map(|p| format!("{name}/{}{p}", container.name)));
            specs += 1;
        }
    }
    // Whether a listed difference is needed is checked on the recordings of all shapes only.
    let whole = golden.overlay.is_none();
    for difference in &reviewed {
        for line in &difference.lines {
            let before = wrong.len();
            wrong.retain(|w| !w.starts_with(line.as_str()));
            assert!(!whole || before != wrong.len(), "{}: nothing begins with {line:?}", difference.name);
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    let least = if whole { LEAST_SHAPES } else { LEAST_SHAPES_V2 };
    assert!(recorded_shapes >= least, "only {recorded_shapes} shapes are recorded");
    assert!(specs >= least, "only {specs} specs for {recorded_shapes} shapes");

    let general = reviewed.iter().filter(|d| d.lines.is_empty());
    let listed: BTreeSet<&str> = general.map(|d| d.name.as_str()).collect();
    assert!(used.is_subset(&listed), "differences that are not listed: {used:?}");
    assert!(!whole || listed == used, "differences that are listed (left) and that are there (right)");
    assert!(reviewed.iter().all(|d| d.reason.len() > 20), "every difference has its reason");
}

#[test]
fn every_recording_has_its_shape() {
    let shapes = shapes();
    for kind in ["spec", "status", "events", "output", "v2/spec", "v2/status", "v2/events", "v2/output"] {
        for entry in std::fs::read_dir(tests_dir().join("golden").join(kind)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(shapes.contains_key(&name), "{}: no shape of that name", path.display());
        }
    }
}

/// All documents that differ from this one in one value.
fn changes(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                changes(inner).into_iter().map(|changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    Value::Object(map)
                })
            })
            .collect(),
        Value::Array(list) => {
            let mut all: Vec<Value> = (0..list.len())
                .map(|i| {
                    let mut list = list.clone();
                    list.remove(i);
                    Value::Array(list)
                })
                .collect();
            for (i, inner) in list.iter().enumerate() {
                all.extend(changes(inner).into_iter().map(|changed| {
                    let mut list = list.clone();
                    list[i] = changed;
                    Value::Array(list)
                }));
            }
            all
        }
        Value::String(text) => vec![Value::String(format!("{text}x")), Value::Null],
        Value::Number(n) => vec![Value::from(n.as_f64().unwrap() + 1.0), Value::Null],
        Value::Bool(b) => vec![Value::Bool(!b)],
        Value::Null => Vec::new(),
    }
}

#[test]
fn the_comparison_sees_every_change_of_a_spec() {
    let file = tests_dir().join("golden/spec/user-supplemental.json");
    let recording: Recording = json(&file);
    let spec = canonical(recording.containers["app"].spec.clone());
    let changed = changes(&spec);
    assert!(changed.len() > 300, "only {} changes", changed.len());
    for other in changed {
        let mut places = Vec::new();
        compare("", &spec, &canonical(other), &mut places);
        assert!(!places.is_empty());
    }
}
