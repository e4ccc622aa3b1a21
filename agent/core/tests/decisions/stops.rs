//! Stops of containers: order, grace, signals and their events.

use crate::case::*;
use berth_core::{ids::*, model::*, plan::*, status::Truth};

#[test]
fn sidecars_have_their_signal_at_the_end_of_the_main_ones_or_of_the_grace() {
    let three = || pod(vec![sidecar("s"), sidecar("t")], vec![container("a")]);
    let mut case = Case::up(three());
    case.desired.end = Some(5);
    case.settle();
    for _ in 0..7 {
        case.pass(1);
        case.settle();
    }
    assert_eq!((case.begun("Signal", "a"), case.begun("Kill", "a")), (vec![0], vec![5]));
    for name in ["s", "t"] {
        assert_eq!((case.begun("Signal", name), case.begun("Kill", name)), (vec![5], vec![7]), "{name}");
    }

    let mut case = Case::up(three());
    case.desired.end = Some(5);
    case.settle();
    case.pass(1);
    case.exit("a", 0, false);
    case.settle();
    assert_eq!((case.begun("Signal", "s"), case.begun("Signal", "t")), (vec![], vec![1]));
}

#[test]
fn a_grace_of_nothing_is_a_second_for_the_hook() {
    let hooked = Container { pre_stop: Some(Hook::Sleep(9)), ..container("a") };
    let mut case = Case::up(pod(vec![], vec![hooked]));
    case.held = vec!["PreStop"];
    case.desired.end = Some(0);
    case.settle();
    assert_eq!((case.begun("PreStop", "a"), case.begun("Signal", "a")), (vec![0], vec![]));
    case.pass(1);
    case.settle();
    assert_eq!(case.begun("Signal", "a"), [1]);
}

#[test]
fn a_stray_that_does_not_die_is_killed_again_at_a_pace() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    let stray = ObservedContainer {
        container: ContainerName::new("other").expect("as the case has it"),
        attempt: Attempt(0),
        sandbox_attempt: SandboxAttempt(0),
        image_id: String::new(),
        user: None,
        resources: None,
        state: RunState::Running { started_at: case.now.wall },
        task: true,
    };
    let id = ContainerId::derive(&case.desired.pod.uid, SandboxAttempt(0), &stray.container, Attempt(0));
    case.seen.containers.insert(id, stray);
    case.desired.end = Some(30);
    assert!(case.settle().wake_at.is_some());
    for _ in 0..25 {
        case.pass(1);
        case.settle();
    }
    assert_eq!(case.begun("Kill", "other"), [0, 10, 20]);
    assert_eq!(case.messages("FailedKillPod").len(), 2, "{:?}", case.messages("FailedKillPod"));
}

#[test]
fn a_container_that_survives_its_kill_is_told_of_each_time() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    case.desired.end = Some(3);
    case.settle();
    let mut told = Vec::new();
    for _ in 0..24 {
        told.push(case.messages("FailedKillPod").len());
        case.pass(1);
        case.settle();
    }
    assert_eq!(case.begun("Kill", "a"), [3, 13, 23]);
    assert_eq!((told[12], told[13], told[23]), (0, 1, 2), "{told:?}");
    let messages = case.messages("FailedKillPod");
    assert!(
        messages.iter().all(|m| m.contains("container a has not ended 10 s after SIGKILL")),
        "{messages:?}"
    );
    case.exit("a", 137, false);
    case.settle();
    assert_eq!(case.messages("FailedKillPod").len(), 2);
}

#[test]
fn a_failed_hook_has_an_event_and_kills() {
    let hooked = Container { post_start: Some(Hook::Sleep(1)), ..container("a") };
    let mut case = Case::new(pod(vec![], vec![hooked]));
    case.held = vec!["PostStart"];
    case.settle();
    let hook = case.in_flight("PostStart").expect("as the case has it");
    case.finish(hook, Err(Failure::new("FailedPostStartHook", "exit code 1")));
    case.settle();
    assert_eq!(case.messages("Killing"), ["FailedPostStartHook"]);
    assert_eq!(case.begun("Signal", "a"), [0]);
}

#[test]
fn probe_kills_have_events_in_the_kubelets_words() {
    use RestartPolicy::{Always, Never, OnFailure};
    let alive = |c: Container| Container { liveness: Some(probe()), ..c };
    for (policy, sidecars, mains, who, said) in [
        (Always, vec![], vec!["a"], "a", "Container a failed liveness probe, will be restarted"),
        (OnFailure, vec![], vec!["a"], "a", "Container a failed liveness probe, will be restarted"),
        (Never, vec![], vec!["a"], "a", "Stopping container a"),
        (Never, vec![], vec!["a", "b"], "a", "Container a failed liveness probe"),
        (Never, vec!["s"], vec!["a"], "s", "Init container s failed liveness probe"),
    ] {
        let init = sidecars.into_iter().map(|n| alive(sidecar(n))).collect();
        let mains = mains.into_iter().map(|n| alive(container(n))).collect();
        let mut case = Case::up(Pod { restart_policy: policy, ..pod(init, mains) });
        case.probe(who, ProbeKind::Liveness, false);
        let status = case.settle().status;
        let mut shown = status.init_containers.iter().chain(&status.containers);
        let of = shown.find(|c| c.name.as_str() == who).expect("as the case has it");
        assert_eq!(of.ready, Truth::True, "ready until it is dead");
        assert_eq!(case.messages("Killing"), [said]);
    }
}

#[test]
fn a_shorter_grace_period_counts_from_its_own_moment_and_none_prolongs() {
    // The grace periods of the pod's end with the second of each, and the second of SIGKILL.
    for (ends, killed) in [
        (vec![(0, 30)], 30),
        (vec![(0, 30), (10, 5)], 15),
        (vec![(0, 30), (28, 5)], 30),
        (vec![(0, 30), (10, 60)], 30),
        (vec![(0, 30), (10, 8), (12, 1)], 13),
    ] {
        let mut case = Case::up(pod(vec![], vec![container("a")]));
        for second in 0..40 {
            if let Some((_, grace)) = ends.iter().find(|(at, _)| *at == second) {
                case.desired.end = Some(*grace);
            }
            case.settle();
            case.pass(1);
        }
        assert_eq!(case.begun("Kill", "a").first(), Some(&killed), "{ends:?}");
    }
}

#[test]
fn a_pod_that_is_deleted_before_it_runs_has_failed_once_nothing_of_it_is_left() {
    use berth_core::status::{ContainerState, Phase};
    let of = |init: Vec<Container>, origin: Origin, held: &'static str| {
        let mut case = Case::new(Pod { origin, ..pod(init, vec![container("a")]) });
        case.held = vec![held];
        case.settle();
        case
    };
    let static_pod = || Origin::StaticFile("/static/p.yaml".into());
    let lost = |state: ContainerState| match state {
        ContainerState::Terminated(t) => Some((t.exit_code, t.reason, t.id, t.started_at, t.finished_at)),
        _ => None,
    };
    let unknown = Some((137, "ContainerStatusUnknown".to_owned(), None, None, None));
    // The init containers with what their state shows at the end, the origin, the phase, and the same of the main one.
    for (init, origin, phase, main) in [
        (vec![], Origin::Cluster, Phase::Failed, unknown.clone()),
        (vec![], static_pod(), Phase::Pending, None),
        // The pod was not initialized: the main container waited for others.
        (vec![("i", unknown.clone()), ("j", None)], Origin::Cluster, Phase::Failed, None),
    ] {
        let specs = init.iter().map(|(name, _)| container(name)).collect();
        let mut case = of(specs, origin, "EnsureImage");
        let ips = case.settle().status.pod_ips;
        assert!(!ips.is_empty());
        case.held.push("UnmountVolumes");
        case.desired.end = Some(30);
        let status = case.settle().status;
        assert_eq!((status.phase, &status.pod_ips), (Phase::Pending, &ips), "its volumes are still there");
        case.held = vec!["EnsureImage", "RemovePod"];
        let unmount = case.in_flight("UnmountVolumes").expect("as the case has it");
        case.act(&unmount);
        case.finish(unmount, Ok(()));
        let p = case.settle();
        assert_eq!((p.status.phase, p.finished), (phase, false));
        assert!(phase == Phase::Pending || p.status.pod_ips == ips, "the addresses stay");
        assert_eq!(lost(case.state("a")), main);
        for (name, shown) in init {
            assert_eq!(lost(case.state(name)), shown, "{name}");
        }
    }

    // One whose main containers never ran, though its init container did.
    let mut case = of(vec![container("i")], Origin::Cluster, "PostStart");
    case.exit("i", 0, false);
    case.held = vec!["EnsureImage"];
    case.memory.containers.clear();
    case.desired.end = Some(30);
    case.settle();
    assert_eq!(lost(case.state("a")), unknown);
    assert!(matches!(case.state("i"), ContainerState::Terminated(t) if t.exit_code == 0));
}
