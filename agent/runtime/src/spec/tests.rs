//! Cases that the recordings do not contain: refusals, cgroup v2, hugepages, and no panic on any input.

use super::{testing::pod, *};
use berth_core::{
    ids::{Attempt, SandboxAttempt},
    model::{CAPABILITIES, MountPropagation, RecursiveReadOnly, VolumeMount},
    resources::ContainerResources,
};
use oci_spec::runtime::Capability;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A complete input; each test changes one part.
struct Case {
    pod: Pod,
    image: ImageConfig,
    command: Vec<String>,
    env: Vec<(String, String)>,
    mounts: Vec<MountSpec>,
    host: HostFacts,
    seccomp_file: Option<String>,
    oom: i32,
}

impl Case {
    fn new() -> Case {
        Case {
            pod: pod(),
            image: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
            command: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            host: HostFacts { capabilities: vec!["CAP_CHOWN".to_owned()], ..HostFacts::default() },
            seccomp_file: None,
            oom: 0,
        }
    }

    fn build(&self) -> Result<Value, SpecError> {
        let container = &self.pod.containers[0];
        let id = ContainerId::derive(&self.pod.uid, SandboxAttempt(0), &container.name, Attempt(0));
        let user = ResolvedUser { uid: 0, gid: 0, additional_gids: vec![0] };
        let joined = NamespacePaths {
            net: Some("/ns/net".into()),
            ipc: Some("/ns/ipc".into()),
            uts: Some("/ns/uts".into()),
            pid: PidNamespace::Own,
        };
        let spec = build(&SpecInput {
            pod: &self.pod,
            container,
            id: &id,
            image: &self.image,
            user: &user,
            env: &self.env,
            command: &self.command,
            args: &[],
            mounts: &self.mounts,
            devices: &[],
            namespaces: &joined,
            cgroups_path: "/kubepods/podu1/c",
            resources: &ContainerResources::of(&self.pod, container, self.host.cgroup_facts()),
            oom_score_adj: self.oom,
            hostname: "p",
            seccomp_file: self.seccomp_file.as_deref(),
            host: &self.host,
            shim_group: "u1",
        })?;
        Ok(serde_json::to_value(&spec).unwrap())
    }
}

fn refused(change: impl FnOnce(&mut Case)) -> SpecError {
    let mut case = Case::new();
    change(&mut case);
    case.build().unwrap_err()
}

fn built(change: impl FnOnce(&mut Case)) -> Value {
    let mut case = Case::new();
    change(&mut case);
    case.build().unwrap()
}

fn of_container(change: impl FnOnce(&mut Container)) -> impl FnOnce(&mut Case) {
    |case| change(&mut case.pod.containers[0])
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|n| n[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_cannot_be_done_faithfully_is_refused() {
    assert!(matches!(refused(|c| c.image.cmd.clear()), SpecError::NoCommand));
    for directory in ["/proc/self/fd/7", "/proc/1/fd", "/proc//self/./fd/8/x", "/a/../proc/self/fd"] {
        let error = refused(of_container(|c| c.working_dir = Some(directory.to_owned())));
        assert!(matches!(error, SpecError::DescriptorDirectory(_)), "{directory}");
    }
    let image = refused(|c| c.image.working_dir = "/proc/self/fd/8".to_owned());
    assert!(matches!(image, SpecError::DescriptorDirectory(_)));
    let nul = refused(|c| c.env.push(("A".to_owned(), "b\0c".to_owned())));
    assert!(matches!(nul, SpecError::NulByte { what: "environment" }));
    let nul = refused(|c| c.command = vec!["a\0".to_owned()]);
    assert!(matches!(nul, SpecError::NulByte { what: "command" }));
    let capability = refused(of_container(|c| c.security.capabilities_add = vec!["FLY".to_owned()]));
    assert!(matches!(capability, SpecError::UnknownCapability(name) if name == "CAP_FLY"));
    let profile = AppArmor::RuntimeDefault;
    let app_armor = refused(of_container(|c| c.security.app_armor = Some(profile)));
    assert!(matches!(app_armor, SpecError::NotYet(_)));
}

#[test]
fn a_seccomp_profile_that_cannot_be_had_fails_closed() {
    let localhost = |c: &mut Container| c.security.seccomp = Some(Seccomp::Localhost("p.json".to_owned()));
    assert!(matches!(refused(of_container(localhost)), SpecError::SeccompMissing(_)));
    for text in ["", "{}", "[]", "{\"defaultAction\":\"SCMP_ACT_SOMETHING\"}"] {
        let error = refused(|c| {
            localhost(&mut c.pod.containers[0]);
            c.seccomp_file = Some(text.to_owned());
        });
        assert!(matches!(error, SpecError::SeccompInvalid { .. }), "{text}");
    }
}

#[test]
fn mounts_are_checked() {
    let at = |destination: &str, source: &str| MountSpec::pod(source.into(), destination);
    let error = refused(|c| c.mounts = vec![at("relative", "/a")]);
    assert!(matches!(error, SpecError::RelativePath { what: "mountPath", .. }));
    let error = refused(|c| c.mounts = vec![at("/a", "relative")]);
    assert!(matches!(error, SpecError::RelativePath { .. }));
    let both = MountSpec { propagation: MountPropagation::Bidirectional, ..at("/a", "/a") };
    let error = refused(|c| c.mounts = vec![both]);
    assert!(matches!(error, SpecError::BidirectionalNeedsPrivileged(_)));
    let recursive = MountSpec { recursive_read_only: true, ..at("/a", "/a") };
    let error = refused(|c| c.mounts = vec![recursive]);
    assert!(matches!(error, SpecError::RecursiveReadOnly(_)));
}

#[test]
fn recursive_read_only_follows_the_runtime_where_it_may() {
    let mount = |wanted| VolumeMount {
        volume: berth_core::ids::VolumeName::new("v").unwrap(),
        mount_path: "/v".to_owned(),
        read_only: true,
        recursive_read_only: wanted,
        sub_path: None,
        propagation: MountPropagation::None,
    };
    let options = |wanted, can| {
        let made = MountSpec::volume(&mount(wanted), "/src".into(), false, can);
        let spec = built(|c| c.mounts = vec![made]);
        let last = spec["mounts"].as_array().unwrap().last().unwrap().clone();
        last["options"][2].as_str().unwrap().to_owned()
    };
    assert_eq!(options(RecursiveReadOnly::Disabled, true), "ro");
    assert_eq!(options(RecursiveReadOnly::IfPossible, true), "rro");
    assert_eq!(options(RecursiveReadOnly::IfPossible, false), "ro");
    assert_eq!(options(RecursiveReadOnly::Enabled, true), "rro");
}

#[test]
fn a_container_gets_the_limit_of_open_files_that_the_agent_had_before_it_raised_its_own() {
    let limits = |open_files| {
        let spec = built(|c| c.host = HostFacts { open_files, ..HostFacts::default() });
        spec["process"]["rlimits"].clone()
    };
    assert_eq!(limits(None), serde_json::Value::Null);
    let given = serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 524_288}]);
    assert_eq!(limits(Some((1024, 524_288))), given);
}

#[test]
fn the_unified_hierarchy_gets_a_cgroup_namespace_unless_privileged() {
    let facts = HostFacts {
        unified_cgroups: true,
        cgroup_mount_options: vec!["nsdelegate".to_owned()],
        hugepage_sizes: vec!["2MB".to_owned()],
        ..HostFacts::default()
    };
    let plain = built(|c| c.host = facts.clone());
    assert!(names(&plain["linux"]["namespaces"], "type").contains(&"cgroup".to_owned()));
    assert_eq!(plain["linux"]["resources"]["unified"]["memory.oom.group"], "1");
    assert_eq!(plain["linux"]["resources"]["hugepageLimits"][0]["pageSize"], "2MB");
    assert!(!plain["mounts"].to_string().contains("nsdelegate"));
    let privileged = built(|c| {
        c.host = facts;
        c.pod.containers[0].security.privileged = true;
    });
    assert!(!names(&privileged["linux"]["namespaces"], "type").contains(&"cgroup".to_owned()));
    assert!(privileged["mounts"].to_string().contains("nsdelegate"));
}

#[test]
fn host_facts_show_where_they_should() {
    let facts = HostFacts {
        thermal_throttle: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()],
        oom_score_floor: Some(-100),
        ..HostFacts::default()
    };
    let spec = built(|c| {
        c.host = facts;
        c.oom = -997;
    });
    assert!(spec["linux"]["maskedPaths"].to_string().contains("cpu0/thermal_throttle"));
    assert_eq!(spec["process"]["oomScoreAdj"], -100);
    let free = built(|c| c.oom = -997);
    assert_eq!(free["process"]["oomScoreAdj"], -997);
}

#[test]
fn images_take_variables_away_and_pods_win() {
    let spec = built(|c| {
        c.image.env = vec!["A=image".to_owned(), "HOSTNAME=image".to_owned(), "PATH".to_owned()];
        c.env = vec![("A".to_owned(), "pod".to_owned()), ("HOSTNAME".to_owned(), "pod".to_owned())];
    });
    // A name without a value removes an earlier entry; of two entries, runc uses the last.
    assert_eq!(spec["process"]["env"], serde_json::json!(["HOSTNAME=pod", "A=image", "A=pod"]));
}

/// As in containerd's CRI plugin (`volumeMounts`, `WithMounts`): a bind at each VOLUME without a mount of the
/// pod, writable even with a read-only root.
#[test]
fn volumes_of_an_image_are_mounted_where_the_pod_has_none() {
    let mut case = Case::new();
    case.image.volumes = ["/var/lib/data", "relative", "/mounted/", "/twice", "/twice/.", "/", "/../up"]
        .map(str::to_owned)
        .into();
    case.pod.containers[0].security.read_only_root = true;
    case.mounts = vec![MountSpec::pod("/src".into(), "/mounted")];
    let volumes = image_volumes(&case.image, &case.mounts);
    assert_eq!(
        volumes.iter().map(String::as_str).collect::<Vec<_>>(),
        ["/relative", "/twice", "/up", "/var/lib/data"]
    );
    case.mounts.extend(volumes.iter().map(|v| MountSpec::image_volume(format!("/own{v}").into(), v)));
    let spec = case.build().unwrap();
    let at = |path: &str| {
        let mounts = spec["mounts"].as_array().unwrap();
        mounts.iter().filter(|m| m["destination"] == path).cloned().collect::<Vec<_>>()
    };
    let data = json!({"destination": "/var/lib/data", "type": "bind", "source": "/own/var/lib/data",
        "options": ["rbind", "rprivate", "rw"]});
    assert_eq!(at("/var/lib/data"), [data]);
    assert_eq!(at("/mounted").len(), 1);
}

#[test]
fn an_image_volume_cannot_leave_the_root() {
    let spec = built(|c| c.mounts = vec![MountSpec::image_volume("/src".into(), "../../etc")]);
    let mounts = spec["mounts"].as_array().unwrap();
    assert_eq!(mounts.last().unwrap()["destination"], "/etc");
}

#[test]
fn nothing_of_labels_and_annotations_reaches_the_spec() {
    let mut case = Case::new();
    case.pod.labels.insert("a".to_owned(), "secret-label".to_owned());
    case.pod.annotations.insert("io.containerd.runc.v2.group".to_owned(), "secret-annotation".to_owned());
    let text = case.build().unwrap().to_string();
    assert!(!text.contains("secret"), "{text}");
    assert!(text.contains(r#""io.containerd.runc.v2.group":"u1""#));
}

/// The capability names of Linux, so that a privileged container gets all of them.
#[test]
fn all_41_capabilities_of_the_kernel_are_known() {
    let all: Vec<String> = CAPABILITIES.iter().map(|c| format!("CAP_{c}")).collect();
    assert_eq!(all.len(), 41);
    let sets = process::capabilities(&all).unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 41);
    assert!(sets.bounding().as_ref().unwrap().contains(&Capability::CheckpointRestore));
}

proptest! {
    #[test]
    fn no_text_panics(
        directory in ".{0,24}",
        destination in ".{0,24}",
        source in ".{0,24}",
        variable in ".{0,12}",
        capability in ".{0,12}",
        profile in ".{0,40}",
    ) {
        let mut case = Case::new();
        case.image.env = vec![variable.clone()];
        case.image.volumes = vec![destination.clone()];
        case.mounts = vec![
            MountSpec::pod(source.clone().into(), &destination),
            MountSpec::image_volume("/v".into(), &destination),
        ];
        case.seccomp_file = Some(profile);
        let c = &mut case.pod.containers[0];
        c.working_dir = Some(directory);
        c.security.capabilities_add = vec![capability];
        c.security.seccomp = Some(Seccomp::Localhost("p".to_owned()));
        // The builder may return an error, but must not panic.
        drop(case.build());
        case.pod.containers[0].security.seccomp = None;
        case.pod.containers[0].security.capabilities_add.clear();
        drop(case.build());
    }
}
