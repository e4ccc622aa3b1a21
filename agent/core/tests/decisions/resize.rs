//! In-place resize: what is set on what runs, which containers restart, and what the status tells of it.

use crate::case::*;
use berth_core::{
    model::*,
    plan::*,
    resize::{CpuMemory, PendingReason, PendingResize},
    status::{Condition, ConditionType, ContainerState, Phase},
};
use std::sync::Arc;

fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Resources {
    let list = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.parse().expect("a quantity"))).collect()
    };
    Resources { requests: list(requests), limits: list(limits) }
}

fn sized(name: &str, cpu: &str) -> Container {
    Container { resources: resources(&[("cpu", cpu)], &[("memory", "64Mi")]), ..container(name) }
}

/// The pod of the case in its next generation, with another CPU request of this container.
fn resize(case: &mut Case, name: &str, cpu: &str) {
    let pod = Arc::make_mut(&mut case.desired.pod);
    pod.generation = Some(pod.generation.unwrap_or(1) + 1);
    let mut all = pod.init_containers.iter_mut().chain(&mut pod.containers);
    let found = all.find(|c| c.name.as_str() == name).expect("as the case has it");
    found.resources.requests.insert("cpu".to_owned(), cpu.parse().expect("a quantity"));
    case.learn(Fact::InputsChanged);
}

fn condition(plan: &Plan, kind: ConditionType) -> Option<Condition> {
    plan.status.condition(kind).cloned()
}

/// The updates of the resize in flight.
fn in_flight(case: &Case) -> Option<Vec<(String, i64, i64)>> {
    let Some(Action::ResizePod(resize)) = case.in_flight("ResizePod") else { return None };
    let of = |u: &berth_core::resize::ContainerUpdate| {
        (u.container.to_string(), u.now.cpu_request, u.wanted.cpu_request)
    };
    Some(resize.0.updates.iter().map(of).collect())
}

#[test]
fn a_resize_is_set_on_the_runs_that_have_other_resources_and_its_end_is_told() {
    let mut case = Case::up(pod(vec![], vec![sized("a", "100m"), sized("b", "100m")]));
    let before = case.running("a");
    case.held = vec!["ResizePod"];
    resize(&mut case, "a", "200m");
    let plan = case.settle();
    assert_eq!(in_flight(&case), Some(vec![("a".to_owned(), 100, 200)]));
    let told = condition(&plan, ConditionType::PodResizeInProgress).expect("in progress");
    assert_eq!((told.reason, told.message, told.generation), (None, None, Some(2)));
    let shown =
        |plan: &Plan| plan.status.containers[0].resources.as_ref().map(|r| CpuMemory::of(r).cpu_request);
    assert_eq!(shown(&plan), Some(100), "the status shows what is set");
    case.held.clear();
    let action = case.in_flight("ResizePod").expect("it is in flight");
    case.act(&action);
    case.finish(action, Ok(()));
    let plan = case.settle();
    assert_eq!((condition(&plan, ConditionType::PodResizeInProgress), shown(&plan)), (None, None));
    assert_eq!(case.running("a"), before);
    let text = r#"Pod resize completed: {"containers":[{"name":"a","resources":{"limits":{"memory":"64Mi"},"requests":{"cpu":"200m"}}},{"name":"b","resources":{"limits":{"memory":"64Mi"},"requests":{"cpu":"100m"}}}],"generation":2}"#;
    assert_eq!(case.messages("ResizeCompleted"), [text]);
    // Neither a new decision nor the loss of the memory begins another.
    case.memory = Memory::default();
    let plan = case.settle();
    assert_eq!(
        (case.in_flight("ResizePod"), condition(&plan, ConditionType::PodResizeInProgress)),
        (None, None)
    );
    assert_eq!(case.messages("ResizeCompleted").len(), 1);
}

#[test]
fn a_failed_resize_says_why_and_is_tried_again() {
    let mut case = Case::up(pod(vec![], vec![sized("a", "100m")]));
    case.held = vec!["ResizePod"];
    resize(&mut case, "a", "200m");
    case.settle();
    for _ in 0..2 {
        let action = case.in_flight("ResizePod").expect("it is in flight");
        case.finish(action, Err(Failure::new("Error", "no <room>")));
        let told = condition(&case.settle(), ConditionType::PodResizeInProgress).expect("in progress");
        assert_eq!((told.reason.as_deref(), told.message.as_deref()), (Some("Error"), Some("no <room>")));
        assert!(case.in_flight("ResizePod").is_none());
        case.pass(10);
        case.settle();
    }
    let events = case.messages("ResizeError");
    assert_eq!(events.len(), 1, "the same failure is told once");
    assert!(events[0].ends_with(r#""generation":2,"error":"no \u003croom\u003e"}"#), "{events:?}");
    case.held.clear();
    let action = case.in_flight("ResizePod").expect("it is in flight");
    case.act(&action);
    case.finish(action, Ok(()));
    let plan = case.settle();
    assert_eq!(condition(&plan, ConditionType::PodResizeInProgress), None);
    assert_eq!(plan.status.waiting_for, None);
}

#[test]
fn a_policy_restarts_the_container_after_the_pods_cgroup_was_resized() {
    let restarts = ResizePolicy { cpu_restarts: true, memory_restarts: false };
    let mut case = Case::up(pod(
        vec![],
        vec![Container { resize_policy: restarts, ..sized("a", "100m") }, sized("b", "1")],
    ));
    let others = case.running("b");
    resize(&mut case, "a", "200m");
    let plan = case.settle();
    assert_eq!(case.messages("Killing"), ["Container a resize requires restart"]);
    assert!(case.in_flight("ResizePod").is_none() && case.begun("Signal", "a").len() == 1);
    assert!(condition(&plan, ConditionType::PodResizeInProgress).is_some());
    case.held = vec!["ResizePod"];
    case.exit("a", 137, false);
    case.settle();
    assert_eq!(in_flight(&case), Some(Vec::new()), "no run is left to be resized");
    assert_eq!(case.begun("Start", "a").len(), 1, "the start waits for the pod's cgroup");
    case.held.clear();
    let action = case.in_flight("ResizePod").expect("it is in flight");
    case.finish(action, Ok(()));
    let plan = case.settle();
    assert_eq!((case.begun("Start", "a").len(), case.running("b")), (2, others));
    let set = case.seen.containers.values().filter(|c| matches!(c.state, RunState::Running { .. }));
    let set: Vec<i64> = set.filter_map(|c| Some(c.resources.as_ref()?.cpu_request_millis())).collect();
    assert!(set.contains(&200) && set.contains(&1000), "{set:?}");
    assert_eq!(condition(&plan, ConditionType::PodResizeInProgress), None);
    assert_eq!(case.messages("ResizeCompleted").len(), 1);
    // Memory has no such policy here.
    let pod = Arc::make_mut(&mut case.desired.pod);
    pod.containers[0].resources.limits.insert("memory".to_owned(), "128Mi".parse().expect("a quantity"));
    case.settle();
    assert_eq!((case.messages("Killing").len(), case.begun("Start", "a").len()), (1, 2));
}

#[test]
fn init_containers_that_run_once_and_ended_pods_are_not_resized() {
    let mut case = Case::up(pod(vec![sized("i", "100m")], vec![sized("a", "100m")]));
    case.held = vec!["ResizePod"];
    resize(&mut case, "i", "200m");
    case.settle();
    assert_eq!(in_flight(&case), Some(Vec::new()), "only the pod's cgroup");
    let mut case = Case::up(Pod {
        restart_policy: RestartPolicy::Never,
        ..pod(vec![Container { sidecar: true, ..sized("s", "100m") }], vec![sized("a", "100m")])
    });
    resize(&mut case, "s", "200m");
    case.settle();
    assert_eq!(case.messages("ResizeCompleted").len(), 1, "a sidecar is");
    case.exit("a", 0, false);
    case.settle();
    resize(&mut case, "s", "300m");
    case.exit("s", 0, false);
    let plan = case.settle();
    assert_eq!(plan.status.phase, Phase::Succeeded);
    assert!(matches!(case.state("a"), ContainerState::Terminated(_)));
    assert_eq!(condition(&plan, ConditionType::PodResizeInProgress), None);
}

#[test]
fn a_pending_resize_has_the_time_of_its_reason_and_the_generation_that_wants_it() {
    let mut case = Case::up(pod(vec![], vec![sized("a", "100m")]));
    let pending = |case: &mut Case, message: &str, generation| {
        let resize = PendingResize {
            reason: PendingReason::Deferred,
            message: message.to_owned(),
            generation: Some(generation),
        };
        Arc::make_mut(&mut case.desired.pod).pending_resize = Some(resize);
        condition(&case.settle(), ConditionType::PodResizePending).expect("pending")
    };
    let first = pending(&mut case, "used: 1", 2);
    case.pass(60);
    let second = pending(&mut case, "used: 2", 3);
    assert_eq!((second.since, second.reason.as_deref()), (first.since, Some("Deferred")));
    assert_eq!((second.message.as_deref(), second.generation), (Some("used: 2"), Some(3)));
    Arc::make_mut(&mut case.desired.pod).pending_resize = None;
    assert_eq!(condition(&case.settle(), ConditionType::PodResizePending), None);
}
