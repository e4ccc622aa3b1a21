//! Starts and restarts of containers.

use crate::case::*;
use berth_core::{
    model::*,
    plan::*,
    refs::{Ref, RefUse},
    status::{ConditionType, ContainerState, Phase, Truth},
    value::Why,
};
use std::{sync::Arc, time::Duration};

#[test]
fn a_restarting_sidecar_takes_no_care_from_the_main_ones() {
    let slow = Container { startup: Some(probe()), ..sidecar("s") };
    let main = Container { liveness: Some(probe()), ..container("a") };
    let mut case = Case::up(pod(vec![slow], vec![main, container("b")]));
    case.probe("s", ProbeKind::Startup, true);
    case.settle();
    assert!(case.running("b").is_some());
    case.exit("s", 1, false);
    let status = case.settle().status;
    assert_eq!(status.condition(ConditionType::Initialized).expect("as the case has it").status, Truth::True);
    assert!(case.running("s").is_some(), "its startup probe has not succeeded yet");
    // A main container that ends is restarted, and one whose liveness probe fails is stopped.
    case.exit("b", 1, false);
    case.settle();
    assert_eq!(case.begun("Start", "b"), [0, 0]);
    case.probe("a", ProbeKind::Liveness, false);
    case.settle();
    assert_eq!(case.begun("Signal", "a"), [0]);
    case.pass(30);
    case.settle();
    assert_eq!(case.begun("Kill", "a"), [30]);
}

#[test]
fn a_container_that_cannot_be_started_holds_up_nobody() {
    let hooked = Container { post_start: Some(Hook::Sleep(1)), ..container("a") };
    let mut case = Case::new(pod(vec![], vec![hooked, container("b")]));
    case.held = vec!["EnsureImage"];
    case.settle();
    assert!(case.begun("EnsureImage", "b").is_empty(), "its turn comes after the hook");
    let a = case.in_flight("EnsureImage").expect("as the case has it");
    case.held.clear();
    case.finish(a, Err(Failure::new("ErrImageNeverPull", "not there")));
    case.settle();
    assert!(case.running("b").is_some());
    assert_eq!(case.messages("ErrImageNeverPull"), ["not there"]);
    assert_eq!(case.messages("Failed"), ["Error: ErrImageNeverPull"]);
}

#[test]
fn after_probe_kills_the_back_off_begins_one_restart_later() {
    let main = Container { liveness: Some(probe()), ..container("a") };
    let mut case = Case::up(pod(vec![], vec![main]));
    for _ in 0..40 {
        if case.running("a").is_some() {
            case.probe("a", ProbeKind::Liveness, false);
            case.settle();
            case.pass(1);
            case.exit("a", 137, false);
        }
        case.settle();
        case.pass(1);
        case.settle();
    }
    let starts = case.begun("Start", "a");
    let gaps: Vec<u64> = starts.iter().zip(starts.iter().skip(1)).map(|(a, b)| b - a).collect();
    assert!(gaps[0] <= 2 && gaps[1] <= 2, "two at once: {gaps:?}");
    assert!((10..=13).contains(&gaps[2]), "and then 10 s: {gaps:?}");
}

#[test]
fn another_image_ends_a_run_and_begins_the_next() {
    let change = |case: &mut Case, name: &str, change: &dyn Fn(&mut Container)| {
        let mut pod = Pod::clone(&case.desired.pod);
        let mut all = pod.init_containers.iter_mut().chain(&mut pod.containers);
        change(all.find(|c| c.name.as_str() == name).expect("as the case has it"));
        case.desired.pod = Arc::new(pod);
    };
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never] {
        let mains = vec![container("a"), container("b")];
        let mut case = Case::up(Pod { restart_policy: policy, ..pod(vec![sidecar("s")], mains) });
        // A change of any other field takes effect with the next run.
        change(&mut case, "a", &|c| {
            c.env.push(EnvVar { name: "A".into(), value: EnvValue::Text("b".into()) })
        });
        case.settle();
        assert!(case.begun("Signal", "a").is_empty());
        for name in ["a", "s"] {
            change(&mut case, name, &|c| c.image = "img:2".into());
            case.settle();
            assert_eq!(case.begun("Signal", name), [0], "{policy:?}");
            case.settle();
            case.exit(name, 0, false);
            let status = case.settle().status;
            assert_eq!((status.phase, case.begun("Start", name)), (Phase::Running, vec![0, 0]), "{policy:?}");
        }
        assert_eq!(
            case.messages("Killing"),
            ["Container a definition changed, will be restarted", "Init container s definition changed"]
        );
        assert_eq!(case.begun("Start", "b"), [0], "the others run on");
        case.settle();
        assert_eq!(case.begun("Signal", "a"), [0], "once");
    }

    // A changed image ends the back-off of the old one.
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    for _ in 0..2 {
        case.exit("a", 1, false);
        case.settle();
    }
    assert_eq!(case.waits("a").as_deref(), Some("CrashLoopBackOff"));
    change(&mut case, "a", &|c| c.image = "img:2".into());
    case.settle();
    assert_eq!(case.begun("Start", "a"), [0, 0, 0]);

    // An image that is not remembered is not compared.
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    case.memory = Memory::default();
    change(&mut case, "a", &|c| c.image = "img:2".into());
    case.settle();
    assert!(case.begun("Signal", "a").is_empty());
}

/// An unknown object, as a pod of the cases names it.
fn unknown(kind: ObjectKind, name: &str, used_for: RefUse) -> (Ref, Why) {
    let namespace = "default".parse().expect("as the case has it");
    (Ref { kind, namespace, name: name.into(), used_for }, Why::NotAsked)
}

#[test]
fn volumes_wait_for_an_unknown_object_and_nothing_else_does() {
    let token = RefUse::Token { audience: None, ttl: 3607, path: "token".into() };
    for object in [(ObjectKind::Secret, "s", RefUse::Volume), (ObjectKind::ServiceAccount, "s", token)] {
        volumes_wait_for(object);
    }
}

fn volumes_wait_for((kind, name, used_for): (ObjectKind, &str, RefUse)) {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.desired.unknown = [unknown(kind, name, used_for)].into();
    let status = case.settle().status;
    assert_eq!(case.waits("a").as_deref(), Some("PodInitializing"));
    assert_eq!(status.waiting_for, Some(format!("volumes: {kind} \"s\" is not read yet")));
    assert!(case.seen.sandbox.is_some() && !case.seen.volumes_mounted);
    assert_eq!(case.begun("EnsureImage", "i"), [0]);
    for _ in 0..100 {
        case.pass(10);
        case.settle();
    }
    assert!(case.begun("Start", "i").is_empty());
    assert_eq!((case.messages("FailedMount").len(), case.messages("Failed").len()), (0, 0));
    case.desired.unknown.clear();
    case.settle();
    assert!(case.seen.volumes_mounted);
    assert_eq!(case.begun("Start", "i"), [1000]);
}

#[test]
fn a_container_that_crashes_under_a_restarted_agent_is_started_while_the_objects_of_volumes_are_unknown() {
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.settle();
    assert!(case.running("a").is_some());
    // A restarted agent knows of the directory alone.
    case.seen.volumes_mounted = false;
    case.desired.unknown = [unknown(ObjectKind::ConfigMap, "cm", RefUse::Volume)].into();
    case.exit("a", 1, false);
    case.settle();
    assert_eq!(case.begun("Start", "a").len(), 2);
    assert!(!case.seen.volumes_mounted, "they are mounted again once the object is known");
    // Without a container of this sandbox nothing says that they were ever mounted.
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.seen.volumes_present = true;
    case.desired.unknown = [unknown(ObjectKind::ConfigMap, "cm", RefUse::Volume)].into();
    case.settle();
    assert!(case.begun("Start", "a").is_empty());
}

#[test]
fn a_refused_object_fails_what_needs_it_and_says_so() {
    let refused = |kind, name: &str, used_for| {
        let (r, _) = unknown(kind, name, used_for);
        (r, Why::Refused("no relationship found".into()))
    };
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    // An object that may come is waited for first.
    let (asked, secret) = (unknown(ObjectKind::ConfigMap, "m", RefUse::Volume), (ObjectKind::Secret, "s"));
    case.desired.unknown = [asked, refused(secret.0, secret.1, RefUse::Volume)].into();
    case.held = vec!["MountVolumes"];
    case.settle();
    assert!(case.in_flight("MountVolumes").is_none());
    case.desired.unknown = [refused(secret.0, secret.1, RefUse::Volume)].into();
    case.settle();
    let mount = case.in_flight("MountVolumes").expect("the mount tells the refusal");
    let message =
        "MountVolume.SetUp failed for volume \"s\" : secret \"s\" is refused: no relationship found";
    case.finish(mount, Err(Failure::new("FailedMount", message)));
    let status = case.settle().status;
    assert_eq!(case.messages("FailedMount"), [message]);
    assert_eq!(case.waits("a").as_deref(), Some("ContainerCreating"), "as the kubelet shows it");
    assert_eq!(status.waiting_for, Some(format!("FailedMount: {message}")));

    let from =
        EnvFrom { prefix: String::new(), source: EnvFromSource::ConfigMap("cm".into()), optional: true };
    let mut case = Case::new(pod(vec![], vec![Container { env_from: vec![from], ..container("a") }]));
    case.desired.unknown = [refused(ObjectKind::ConfigMap, "cm", RefUse::Env)].into();
    case.held = vec!["Start"];
    case.settle();
    let start = case.in_flight("Start").expect("the start tells the refusal");
    let message = "configmap \"cm\" is refused: no relationship found";
    case.finish(start, Err(Failure::new("CreateContainerConfigError", message)));
    case.seen.stale = false;
    case.settle();
    assert_eq!(case.waits("a").as_deref(), Some("CreateContainerConfigError"));
    assert_eq!(case.messages("Failed"), [format!("Error: {message}")]);
    // The right is given: nothing waits for the back-off.
    case.held.clear();
    case.desired.unknown.clear();
    case.learn(Fact::InputsChanged);
    case.settle();
    assert!(case.running("a").is_some());
}

#[test]
fn a_container_waits_for_an_unknown_object_of_its_environment_also_where_it_is_optional() {
    for optional in [false, true] {
        let from = EnvFrom { prefix: String::new(), source: EnvFromSource::ConfigMap("cm".into()), optional };
        let hooked = Container { post_start: Some(Hook::Sleep(1)), env_from: vec![from], ..container("a") };
        let mut case = Case::new(pod(vec![], vec![hooked, container("b")]));
        // A Secret of that name is another object.
        case.desired.unknown = [unknown(ObjectKind::Secret, "cm", RefUse::Env)].into();
        case.held = vec!["MakeSandbox"];
        case.settle();
        case.desired.unknown = [unknown(ObjectKind::ConfigMap, "cm", RefUse::Env)].into();
        let sandbox = case.in_flight("MakeSandbox").expect("as the case has it");
        case.act(&sandbox);
        case.finish(sandbox, Ok(()));
        let status = case.settle().status;
        assert!(case.seen.volumes_mounted && case.running("b").is_some(), "only the container waits");
        assert_eq!(case.waits("a").as_deref(), Some("ContainerCreating"));
        assert_eq!(status.waiting_for.as_deref(), Some("container a: configmap \"cm\" is not read yet"));
        case.pass(600);
        case.settle();
        assert!(case.begun("Start", "a").is_empty() && case.messages("Failed").is_empty());
        case.desired.unknown.clear();
        case.settle();
        assert_eq!(case.begun("Start", "a"), [600]);
        // The run goes on while the object is unknown again, and the next one waits.
        case.desired.unknown = [unknown(ObjectKind::ConfigMap, "cm", RefUse::Env)].into();
        case.settle();
        assert!(case.running("a").is_some());
        case.exit("a", 0, false);
        case.settle();
        case.pass(600);
        case.settle();
        assert_eq!(case.begun("Start", "a"), [600]);
        case.desired.unknown.clear();
        case.settle();
        assert_eq!(case.begun("Start", "a"), [600, 1200]);
    }
}

#[test]
fn an_init_container_of_which_a_process_was_killed_for_memory_has_failed() {
    let two = || pod(vec![container("i")], vec![container("a")]);
    let mut case = Case::up(two());
    case.exit("i", 0, true);
    case.settle();
    assert_eq!((case.begun("Start", "i").len(), case.begun("Start", "a").len()), (2, 0));
    case.exit("i", 0, false);
    case.settle();
    assert_eq!(case.begun("Start", "a").len(), 1);

    let mut case = Case::up(Pod { restart_policy: RestartPolicy::Never, ..two() });
    case.exit("i", 0, true);
    assert_eq!(case.settle().status.phase, Phase::Failed);
}

#[test]
fn an_end_that_nobody_saw_is_one_record_however_often_it_is_tried() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    let id = case.running("a").expect("as the case has it");
    case.seen.containers.get_mut(&id).expect("as the case has it").state = RunState::NotStarted;
    case.held = vec!["RecordExit"];
    let mut tries = Vec::new();
    for _ in 0..600 {
        case.settle();
        if let Some(action) = case.in_flight("RecordExit") {
            tries.push(case.seconds());
            case.learn(Fact::Finished(action, Err(Failure::new("FailedSync", "disk full"))));
        }
        case.pass(1);
    }
    assert_eq!(case.memory.retries.len(), 1, "{:?}", case.memory.retries);
    assert!(tries.len() > 5 && tries.len() < 25, "ever later: {tries:?}");
}

#[test]
fn a_missing_image_has_the_kubelets_events() {
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    let waiting = |case: &mut Case| match case.state("a") {
        ContainerState::Waiting { reason, message } => (reason, message.unwrap_or_default()),
        other => panic!("it waits: {other:?}"),
    };
    let back_off = "Back-off pulling image \"img:1\": ErrImagePull: no registry";
    for delay in [10, 20, 40, 80, 160, 300, 300] {
        case.settle();
        let image = case.in_flight("EnsureImage").expect("as the case has it");
        case.finish(image, Err(Failure::new("ErrImagePull", "no registry")));
        case.settle();
        assert_eq!(waiting(&mut case), ("ErrImagePull".to_owned(), "no registry".to_owned()));
        case.pass(2);
        case.settle();
        assert_eq!(waiting(&mut case), ("ImagePullBackOff".to_owned(), back_off.to_owned()));
        case.pass(delay - 3);
        case.settle();
        assert!(case.in_flight("EnsureImage").is_none(), "not before {delay} s");
        case.pass(1);
    }
    case.settle();
    assert_eq!(waiting(&mut case).0, "ImagePullBackOff", "also while the pull is tried again");
    assert_eq!(case.messages("BackOff"), ["Back-off pulling image \"img:1\""; 7]);
    let each =
        ["Failed to pull image \"img:1\": no registry", "Error: ErrImagePull", "Error: ImagePullBackOff"];
    assert_eq!(case.messages("Failed"), each.repeat(7));
}

#[test]
fn a_pulled_image_is_told_once_and_a_present_one_with_each_start() {
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    case.settle();
    let image = case.in_flight("EnsureImage").expect("as the case has it");
    let name = image.container().expect("as the action has it").clone();
    case.learn(Fact::Pulling(name.clone()));
    let (took, waited) = (Duration::from_millis(1234), Duration::from_millis(62_000));
    case.learn(Fact::Pulled { container: name, took, waited, size: 77 });
    case.finish(image, Ok(()));
    case.held.clear();
    case.settle();
    assert_eq!(case.messages("Pulling"), ["Pulling image \"img:1\""]);
    let pulled =
        "Successfully pulled image \"img:1\" in 1.234s (1m2s including waiting). Image size: 77 bytes.";
    assert_eq!(case.messages("Pulled"), [pulled], "the start tells no other");
    case.exit("a", 1, false);
    case.settle();
    let present = "Container image \"img:1\" already present on machine and can be accessed by the pod";
    assert_eq!(case.messages("Pulled"), [pulled, present]);
}

#[test]
fn nothing_of_an_unsupported_pod_starts_and_it_stays_pending() {
    let unsupported = Pod {
        unsupported: Some("spec.hostUsers: is not supported yet".into()),
        ..pod(vec![container("i")], vec![container("a")])
    };
    let mut case = Case::new(unsupported);
    for _ in 0..100 {
        let status = case.settle().status;
        assert_eq!(status.phase, Phase::Pending);
        let why = "a node that supports the pod: spec.hostUsers: is not supported yet";
        assert_eq!(status.waiting_for.as_deref(), Some(why));
        case.pass(10);
    }
    assert!(case.seen.sandbox.is_none() && case.begun("EnsureImage", "a").is_empty());
    // The pod's end needs nothing of the kind.
    case.desired.end = Some(30);
    case.settle();
    assert!(case.memory.removed);
}

#[test]
fn a_pull_waits_a_while_for_an_unknown_secret_and_then_goes_on_without() {
    let with_secret = || Pod { image_pull_secrets: vec!["s".into()], ..pod(vec![], vec![container("a")]) };
    let mut case = Case::new(with_secret());
    case.desired.unknown = [unknown(ObjectKind::Secret, "s", RefUse::Pull)].into();
    for _ in 0..10 {
        let plan = case.settle();
        assert!(case.begun("EnsureImage", "a").is_empty(), "at {} s", case.seconds());
        assert!(case.seen.volumes_mounted && case.seen.sandbox.is_some(), "nothing else waits");
        assert!(plan.wake_at.is_some());
        case.pass(1);
    }
    case.settle();
    assert_eq!(case.begun("EnsureImage", "a"), [10]);
    assert!(case.running("a").is_some());

    let mut known = Case::new(with_secret());
    known.settle();
    assert_eq!(known.begun("EnsureImage", "a"), [0]);
    let mut refused = Case::new(with_secret());
    let (secret, _) = unknown(ObjectKind::Secret, "s", RefUse::Pull);
    refused.desired.unknown = [(secret, Why::Refused("no relationship found".into()))].into();
    refused.settle();
    assert_eq!(refused.begun("EnsureImage", "a"), [0], "who refuses it does not answer otherwise soon");
}
