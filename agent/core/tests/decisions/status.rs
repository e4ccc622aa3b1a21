//! What the status shows.

use crate::case::*;
use berth_core::{
    ids::*,
    model::*,
    plan::*,
    status::{ConditionType, ContainerState, Phase, TerminalPhase, Truth},
};

#[test]
fn a_pod_that_has_ended_stays_so_past_its_deadline_and_without_its_records() {
    for (code, phase) in [(0, Phase::Succeeded), (1, Phase::Failed)] {
        let mut case = Case::up(Pod {
            restart_policy: RestartPolicy::Never,
            active_deadline_seconds: Some(8),
            ..pod(vec![], vec![container("a")])
        });
        case.exit("a", code, false);
        assert_eq!(case.settle().status.phase, phase);
        case.pass(60);
        let status = case.settle().status;
        assert_eq!((status.phase, status.reason), (phase, None));
        assert!(case.messages("DeadlineExceeded").is_empty());
        // The records of the ended pod are removed from outside.
        case.seen.containers.clear();
        assert_eq!(case.settle().status.phase, phase);
        assert_eq!(case.begun("Start", "a").len(), 1, "and nothing of it runs again");
    }
}

#[test]
fn nothing_of_an_ended_pod_waits() {
    let on_failure =
        Pod { restart_policy: RestartPolicy::OnFailure, ..pod(vec![sidecar("s")], vec![container("a")]) };
    let mut case = Case::up(on_failure);
    for _ in 0..2 {
        case.exit("s", 3, false);
        case.settle();
    }
    assert_eq!(case.waits("s").as_deref(), Some("CrashLoopBackOff"));
    case.exit("a", 0, false);
    assert_eq!(case.settle().status.phase, Phase::Succeeded);
    assert!(
        matches!(case.state("s"), ContainerState::Terminated(t) if t.exit_code == 3),
        "{:?}",
        case.state("s")
    );

    // A container whose image was never present.
    let mut case = Case::new(Pod {
        active_deadline_seconds: Some(5),
        ..pod(vec![], vec![container("a"), container("b")])
    });
    case.held = vec!["EnsureImage"];
    case.settle();
    let [a, b] = ["a", "b"].map(|n| Action::EnsureImage(ContainerName::new(n).expect("as the case has it")));
    case.finish(a, Ok(()));
    case.finish(b, Err(Failure::new("ErrImageNeverPull", "not there")));
    case.settle();
    case.pass(6);
    case.settle();
    case.exit("a", 137, false);
    assert_eq!(case.settle().status.phase, Phase::Failed);
    let ContainerState::Terminated(t) = case.state("b") else { panic!("{:?}", case.state("b")) };
    assert_eq!((t.exit_code, t.reason.as_str()), (137, "ContainerStatusUnknown"));
}

#[test]
fn what_failed_in_an_earlier_sandbox_is_not_shown_of_this_one() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    case.exit("a", 1, false);
    case.held = vec!["Start"];
    case.settle();
    let start = case.in_flight("Start").expect("as the case has it");
    case.finish(start, Err(Failure::new("CreateContainerConfigError", "no such ConfigMap")));
    assert_eq!(case.messages("Failed"), ["Error: no such ConfigMap"]);
    case.held.clear();
    // The next observation shows that nothing was created.
    case.seen.stale = false;
    case.settle();
    assert_eq!(case.waits("a").as_deref(), Some("CreateContainerConfigError"));
    case.seen.sandbox.as_mut().expect("as the case has it").state = SandboxState::Broken;
    case.settle();
    assert!(case.memory.retries.keys().all(|a| a.kind() != "Start"), "{:?}", case.memory.retries);
    assert_ne!(case.waits("a").as_deref(), Some("CreateContainerConfigError"));
}

#[test]
fn a_pod_with_init_containers_is_initializing_until_they_run() {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    case.settle();
    for name in ["i", "a"] {
        assert_eq!(case.waits(name).as_deref(), Some("PodInitializing"));
    }
}

#[test]
fn while_volumes_are_not_mounted_no_container_may_start() {
    let mut case = Case::new(pod(vec![], vec![container("zero"), container("one")]));
    case.held = vec!["MountVolumes"];
    let p = case.settle();
    let condition = |p: &Plan, kind| p.status.condition(kind).expect("as the case has it").clone();
    assert_eq!(condition(&p, ConditionType::PodReadyToStartContainers).status, Truth::False);
    let message = condition(&p, ConditionType::Ready).message;
    assert_eq!(message.as_deref(), Some("containers with unready status: [zero one]"), "in the spec's order");
    // The sandbox and the images are there already; the kubelet would not have looked for them yet.
    assert!(case.seen.sandbox.as_ref().is_some_and(|s| !s.ips.is_empty()) && p.status.pod_ips.is_empty());
    assert!(case.begun("EnsureImage", "one").len() == 1 && case.messages("Pulled").is_empty());
    case.held.clear();
    case.act(&Action::MountVolumes);
    case.finish(Action::MountVolumes, Ok(()));
    let p = case.settle();
    assert_eq!(condition(&p, ConditionType::PodReadyToStartContainers).status, Truth::True);
    assert_eq!(p.status.pod_ips.len(), 1);
    let pulled = "Container image \"img:1\" already present on machine and can be accessed by the pod";
    assert_eq!(case.messages("Pulled"), [pulled; 2]);
}

#[test]
fn what_follows_an_init_container_begins_once_its_end_is_published() {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.held = vec!["RecordExit"];
    case.settle();
    case.exit("i", 0, false);
    let at = case.now.wall;
    for run in case.seen.containers.values_mut() {
        if let RunState::Ended(exit) = &mut run.state {
            exit.started_at = Some(at);
        }
    }
    case.settle();
    assert!(matches!(case.state("i"), ContainerState::Running { .. }), "{:?}", case.state("i"));
    assert!(case.begun("Start", "a").is_empty());
    let record = case.in_flight("RecordExit").expect("as the case has it");
    case.act(&record);
    case.finish(record, Ok(()));
    case.settle();
    assert!(matches!(case.state("i"), ContainerState::Terminated(_)), "{:?}", case.state("i"));
    assert_eq!(case.begun("Start", "a"), [0]);
}

#[test]
fn a_pod_is_ready_once_its_readiness_gates_hold() {
    let gates = ["a.b/c", "d", "Initialized", "ContainersReady"].map(str::to_owned).to_vec();
    let mut case = Case::up(Pod { readiness_gates: gates, ..pod(vec![], vec![container("a")]) });
    let none = |gate| format!("corresponding condition of pod readiness gate {gate:?} does not exist.");
    let no =
        |gate, status| format!("the status of pod readiness gate {gate:?} is not \"True\", but {status}");
    // The last one does not exist yet when the node computes Ready, and the one before holds.
    for (shown, missing) in [
        (vec![], vec![none("a.b/c"), none("d"), none("ContainersReady")]),
        (
            vec![("a.b/c", Truth::False), ("d", Truth::Unknown), ("ContainersReady", Truth::True)],
            vec![no("a.b/c", "False"), no("d", "Unknown"), none("ContainersReady")],
        ),
        (vec![("a.b/c", Truth::True), ("d", Truth::True)], vec![none("ContainersReady")]),
    ] {
        case.desired.gates = shown.iter().map(|(gate, status)| ((*gate).to_owned(), *status)).collect();
        let status = case.settle().status;
        let ready = status.condition(ConditionType::Ready).expect("as the case has it");
        assert_eq!((ready.status, ready.reason.as_deref()), (Truth::False, Some("ReadinessGatesNotReady")));
        assert_eq!(ready.message.as_deref(), Some(missing.join(", ").as_str()));
        let containers = status.condition(ConditionType::ContainersReady).expect("as the case has it");
        assert_eq!((containers.status, &containers.message), (Truth::True, &None));
    }
    std::sync::Arc::make_mut(&mut case.desired.pod).readiness_gates.pop();
    assert!(case.settle().status.is_ready());
    case.desired.gates.insert("d".to_owned(), Truth::False);
    assert!(!case.settle().status.is_ready(), "and not ready again without one");
}

#[test]
fn the_status_tells_the_generation_of_the_spec_that_it_rests_on() {
    let mut case = Case::up(Pod { generation: Some(2), ..pod(vec![], vec![container("a")]) });
    assert_eq!(case.settle().status.observed_generation, Some(2));
    std::sync::Arc::make_mut(&mut case.desired.pod).generation = Some(3);
    assert_eq!(case.settle().status.observed_generation, Some(3));
}

#[test]
fn the_end_that_another_writer_gave_a_pod_keeps_its_reason() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    let evicted = TerminalPhase {
        phase: Phase::Failed,
        reason: Some("TaintManagerEviction".into()),
        message: Some("m".into()),
    };
    case.desired.terminal = Some(evicted.clone());
    case.settle();
    case.exit("a", 0, false);
    let status = case.settle().status;
    assert_eq!(
        (status.phase, &status.reason, &status.message),
        (Phase::Failed, &evicted.reason, &evicted.message)
    );
    assert!(case.seen.sandbox.is_none());
    case.pass(600);
    case.settle();
    assert_eq!(case.begun("Start", "a"), [0], "nothing of it runs again");
}
