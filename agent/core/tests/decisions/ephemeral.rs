//! Ephemeral containers: started whatever the others wait for, once, and counted by nothing.

use crate::case::*;
use berth_core::{
    ids::*,
    model::*,
    plan::*,
    status::{ContainerState, Phase, Truth},
};
use std::sync::Arc;

/// The pod of the case, with an ephemeral container of this name added to it.
fn debug(case: &mut Case, name: &str) {
    let pod = Arc::make_mut(&mut case.desired.pod);
    pod.ephemeral_containers.push(container(name));
    case.learn(Fact::InputsChanged);
    case.settle();
}

#[test]
fn one_starts_while_init_containers_run_and_the_pods_phase_and_readiness_do_not_count_it() {
    let mut case = Case::up(pod(vec![container("i")], vec![container("a")]));
    debug(&mut case, "e");
    assert!(case.running("e").is_some() && case.running("a").is_none());
    case.exit("i", 0, false);
    let status = case.settle().status;
    assert_eq!((status.phase, status.is_ready()), (Phase::Running, true));
    let [shown] = status.ephemeral_containers.as_slice() else { panic!("one") };
    // The kubelet never shows it as ready nor as started.
    assert_eq!((shown.ready, shown.started), (Truth::False, None));
    assert!(status.containers.iter().all(|c| c.name.as_str() == "a"));
    case.exit("e", 1, false);
    let status = case.settle().status;
    assert_eq!((status.phase, status.is_ready()), (Phase::Running, true));
    case.exit("a", 0, false);
    case.settle();
    assert_eq!(case.begun("Start", "a").len(), 2);
}

#[test]
fn one_runs_once_whatever_its_end_and_whatever_is_lost() {
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    debug(&mut case, "e");
    case.exit("e", 1, false);
    case.pass(600);
    case.settle();
    assert!(matches!(case.state("e"), ContainerState::Terminated(t) if t.exit_code == 1));
    // Its record goes, then the sandbox with all that runs in it.
    case.seen.containers.retain(|_, c| c.container.as_str() != "e");
    case.settle();
    assert!(matches!(case.state("e"), ContainerState::Terminated(t) if t.exit_code == 1));
    debug(&mut case, "f");
    case.seen.sandbox = None;
    case.settle();
    for name in ["a", "f"] {
        case.exit(name, 137, false);
    }
    case.settle();
    assert_eq!(case.begun("Start", "a").len(), 2, "the pod goes on in a new sandbox");
    for name in ["e", "f"] {
        assert_eq!(case.begun("Start", name).len(), 1, "{name}");
        assert!(matches!(case.state(name), ContainerState::Terminated(_)), "{name}");
    }
    // Only the memory knows that it ran.
    case.seen.containers.retain(|_, c| c.container.as_str() != "f");
    case.memory.containers.get_mut(&ContainerName::new("f").unwrap()).unwrap().last = None;
    case.settle();
    assert_eq!(case.begun("Start", "f").len(), 1);
    let ContainerState::Terminated(end) = case.state("f") else { panic!("{:?}", case.state("f")) };
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "ContainerStatusUnknown"));
}

#[test]
fn a_failed_start_is_tried_again_and_keeps_nobody_from_running() {
    let mut case = Case::new(pod(vec![], vec![container("a")]));
    case.held = vec!["EnsureImage"];
    Arc::make_mut(&mut case.desired.pod).ephemeral_containers.push(container("e"));
    case.settle();
    let image = |name: &str| Action::EnsureImage(ContainerName::new(name).unwrap());
    case.finish(image("e"), Err(Failure::new("ErrImagePull", "no route")));
    case.finish(image("a"), Ok(()));
    let status = case.settle().status;
    assert_eq!((status.phase, status.is_ready()), (Phase::Running, true));
    assert_eq!(case.waits("e").as_deref(), Some("ErrImagePull"));
    case.pass(3);
    case.settle();
    assert_eq!(case.waits("e").as_deref(), Some("ImagePullBackOff"));
    case.pass(10);
    case.settle();
    case.finish(image("e"), Ok(()));
    case.settle();
    assert!(case.running("e").is_some());
}

#[test]
fn one_ends_with_the_pod_and_delays_no_sidecar() {
    let mut case = Case::up(pod(vec![sidecar("s")], vec![container("a")]));
    debug(&mut case, "e");
    case.desired.end = Some(30);
    case.settle();
    for name in ["a", "e"] {
        assert_eq!(case.begun("Signal", name).len(), 1, "{name}");
    }
    assert_eq!(case.messages("Killing").len(), 3);
    assert_eq!(case.begun("Signal", "s").len(), 0, "the sidecar waits for the main container");
    case.exit("a", 0, false);
    case.settle();
    assert_eq!(case.begun("Signal", "s").len(), 1);
    for name in ["e", "s"] {
        case.exit(name, 143, false);
    }
    let plan = case.settle();
    assert!(plan.finished);
    assert!(matches!(case.state("e"), ContainerState::Terminated(t) if t.exit_code == 143));
    assert_eq!(plan.status.phase, Phase::Succeeded);
}

#[test]
fn a_pod_that_ends_by_itself_takes_it_along() {
    let never = Pod { restart_policy: RestartPolicy::Never, ..pod(vec![], vec![container("a")]) };
    let mut case = Case::up(never);
    debug(&mut case, "e");
    case.exit("a", 0, false);
    let status = case.settle().status;
    assert_eq!((status.phase, case.begun("Signal", "e").len()), (Phase::Running, 1));
    case.exit("e", 137, false);
    assert_eq!(case.settle().status.phase, Phase::Succeeded);
}
