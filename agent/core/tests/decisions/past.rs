//! A pod of whose life the API server alone remembers anything.

use crate::case::*;
use berth_core::{
    ids::*,
    model::*,
    plan::*,
    status::{
        ApiStatus, ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, TerminalPhase,
        Terminated, Truth,
    },
    time::{Boottime, Wall},
};
use std::time::Duration;

const SECOND: i64 = 1_000_000_000;

/// The API server's copy of a report.
fn api(status: &PodStatus) -> ApiStatus {
    let second = |at: Wall| Wall(at.seconds() * SECOND);
    ApiStatus {
        phase: Some(status.phase),
        reason: status.reason.clone(),
        message: status.message.clone(),
        start_time: status.start_time.map(second),
        pod_ips: status.pod_ips.clone(),
        conditions: status
            .conditions
            .iter()
            .map(|c| (c.kind.name().to_owned(), (c.status, Some(second(c.since)))))
            .collect(),
        containers: status.init_containers.iter().chain(&status.containers).cloned().collect(),
    }
}

fn shown<'s>(status: &'s PodStatus, name: &str) -> &'s ContainerStatus {
    let mut all = status.init_containers.iter().chain(&status.containers);
    all.find(|c| c.name.as_str() == name).expect("as the case has it")
}

fn probed(name: &str) -> Container {
    Container { readiness: Some(probe()), ..container(name) }
}

/// Takes the memory away, but for the API server's.
fn forget(case: &mut Case) -> PodStatus {
    let status = case.settle().status;
    case.memory = Memory::from_api_status(&case.desired.pod, &api(&status), case.now);
    status
}

/// Reboots the machine, which takes `down`. Containerd's records stay where `records` says so.
fn reboot(case: &mut Case, down: u64, records: bool) -> PodStatus {
    let status = case.settle().status;
    case.pass(down);
    case.now.boottime = Boottime(Duration::from_secs(20));
    case.seen.sandbox = None;
    case.seen.volumes_mounted = false;
    if !records {
        case.seen.containers.clear();
    }
    for c in case.seen.containers.values_mut() {
        if c.state.exit().is_none() {
            c.state = RunState::NotStarted;
        }
        c.task = false;
    }
    case.memory = Memory::from_api_status(&case.desired.pod, &api(&status), case.now);
    status
}

/// A pod with a finished init container and a container that has restarted once.
fn restarted() -> Case {
    let mut case = Case::up(pod(vec![container("i")], vec![container("a")]));
    case.exit("i", 0, false);
    case.settle();
    case.exit("a", 3, false);
    case.settle();
    case.pass(60);
    case.settle();
    case.pass(60);
    case
}

#[test]
fn after_a_reboot_counts_times_and_the_last_end_go_on() {
    for records in [true, false] {
        let mut case = restarted();
        let before = reboot(&mut case, 300, records);
        assert_eq!(shown(&before, "a").restart_count, 1);
        case.held = vec!["EnsureImage"];
        let status = case.settle().status;
        assert_eq!(status.phase, Phase::Running, "never Pending again");
        assert_eq!(status.start_time.map(Wall::seconds), before.start_time.map(Wall::seconds));
        let initialized = status.condition(ConditionType::Initialized).expect("as the case has it");
        let since = before.condition(ConditionType::Initialized).expect("as the case has it").since;
        assert_eq!((initialized.status, initialized.since.seconds()), (Truth::True, since.seconds()));
        let waits = shown(&status, "a");
        let end = match &waits.state {
            ContainerState::Terminated(end) => Some(end),
            _ => waits.last_state.as_ref(),
        };
        let reason = if records { "Unknown" } else { "ContainerStatusUnknown" };
        assert_eq!(end.map(|end| end.reason.as_str()), Some(reason), "{waits:?}");
        let held = ["i", "a"].map(|name| Action::EnsureImage(ContainerName::new(name).expect("a name")));
        case.held.clear();
        for action in held {
            if case.memory.in_flight.contains(&action) {
                case.finish(action, Ok(()));
            }
        }
        case.settle();
        // A new sandbox runs its init containers anew.
        case.exit("i", 0, false);
        case.settle();
        case.pass(60);
        let status = case.settle().status;
        assert_eq!(
            (shown(&status, "a").restart_count, shown(&status, "i").restart_count),
            (2, 1),
            "{records}"
        );
        assert!(status.is_ready() && case.running("a") != shown(&before, "a").id);
        assert_eq!(shown(&status, "a").last_state.as_ref().map(|end| end.reason.as_str()), Some(reason));
    }
}

#[test]
fn a_run_that_was_ready_stays_so_and_no_other_is_taken_for_ready() {
    for ready in [true, false] {
        let mut case = Case::up(pod(vec![], vec![probed("a")]));
        case.probe("a", ProbeKind::Readiness, ready);
        case.pass(60);
        let before = forget(&mut case);
        let status = case.settle().status;
        assert_eq!(status.is_ready(), ready);
        // A probe may have said yes since, so a container that was not ready is unknown until the next verdict.
        let wanted = if ready { Truth::True } else { Truth::Unknown };
        assert_eq!(shown(&status, "a").ready, wanted);
        assert_eq!(case.begun("Start", "a"), [0]);
        // The API server has not heard of this run yet.
        let old = api(&before);
        case.exit("a", 1, false);
        case.settle();
        case.pass(60);
        case.settle();
        case.memory = Memory::from_api_status(&case.desired.pod, &old, case.now);
        let status = case.settle().status;
        assert_eq!((shown(&status, "a").ready, shown(&status, "a").restart_count), (Truth::Unknown, 1));
    }
}

#[test]
fn a_startup_probe_that_has_not_succeeded_goes_on() {
    let mut case = Case::up(pod(vec![], vec![Container { startup: Some(probe()), ..probed("a") }]));
    forget(&mut case);
    let p = case.settle();
    assert_eq!(shown(&p.status, "a").started, Some(false));
    assert_eq!(p.probes.iter().map(|p| p.kind).collect::<Vec<_>>(), [ProbeKind::Startup]);
}

#[test]
fn an_init_container_that_finished_in_this_sandbox_does_not_run_again_without_its_record() {
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    case.settle();
    case.exit("i", 0, false);
    case.held = vec!["EnsureImage"];
    case.settle();
    forget(&mut case);
    case.seen.containers.clear();
    case.held.clear();
    case.settle();
    assert_eq!((case.begun("Start", "i").len(), case.begun("Start", "a").len()), (1, 1));
    // The same with an id that another agent made.
    let mut case = Case::new(pod(vec![container("i")], vec![container("a")]));
    let mut status = Case::up(pod(vec![container("i")], vec![container("a")])).settle().status;
    let foreign = ContainerId::new("f".repeat(64)).expect("an id");
    status.init_containers[0].id = Some(foreign.clone());
    status.init_containers[0].state =
        ContainerState::Terminated(Exit { code: 0, ..Exit::unknown(Wall(0)) }.terminated(&foreign));
    case.memory = Memory::from_api_status(&case.desired.pod, &api(&status), case.now);
    case.settle();
    assert_eq!((case.begun("Start", "i").len(), case.begun("Start", "a").len()), (1, 0));
}

#[test]
fn the_active_deadline_counts_from_the_start_that_the_api_server_has() {
    // The seconds of the deadline and of the reboot, and when the pod fails after it.
    for (limit, down, fails) in [(500, 100, 340), (500, 3600, 0), (90_000, 50_000, 39_940)] {
        let mut case =
            Case::up(Pod { active_deadline_seconds: Some(limit), ..pod(vec![], vec![container("a")]) });
        case.pass(60);
        reboot(&mut case, down, true);
        let failed = |case: &mut Case| case.settle().memory.failed.is_some();
        if fails > 0 {
            case.pass(fails - 1);
            assert!(!failed(&mut case), "{limit} {down}");
            case.pass(1);
        }
        assert!(failed(&mut case), "{limit} {down}");
    }
}

#[test]
fn a_pod_that_has_ended_shows_what_the_api_server_has_and_runs_no_more() {
    for code in [0, 1] {
        let mut case = Case::up(Pod {
            restart_policy: RestartPolicy::Never,
            ..pod(vec![], vec![container("a"), container("b")])
        });
        case.exit("a", code, false);
        case.settle();
        case.exit("b", 0, false);
        let before = case.settle().status;
        assert!(before.phase.is_terminal());
        reboot(&mut case, 60, false);
        case.desired.terminal = api(&before).terminal();
        let status = case.settle().status;
        assert_eq!((status.phase, &status.containers), (before.phase, &before.containers));
        assert_eq!(status.pod_ips, before.pod_ips, "a finished pod keeps its addresses");
        assert_eq!(case.begun("Start", "a").len() + case.begun("Start", "b").len(), 2);
    }
    // Another writer ended a pod of which nothing is left.
    let mut case = Case::up(pod(vec![], vec![container("a")]));
    reboot(&mut case, 60, false);
    let evicted = TerminalPhase { phase: Phase::Failed, reason: Some("Evicted".into()), message: None };
    case.desired.terminal = Some(evicted);
    let status = case.settle().status;
    let ContainerState::Terminated(Terminated { exit_code, reason, .. }) = &shown(&status, "a").state else {
        panic!("{status:?}")
    };
    assert_eq!((status.phase, *exit_code, reason.as_str()), (Phase::Failed, 137, "ContainerStatusUnknown"));
    assert_eq!(case.begun("Start", "a"), [0]);
}

#[test]
fn what_is_remembered_is_not_replaced_by_an_older_status() {
    let mut case = Case::up(pod(vec![], vec![probed("a")]));
    case.probe("a", ProbeKind::Readiness, true);
    let old = api(&case.settle().status);
    case.pass(60);
    case.exit("a", 1, false);
    case.settle();
    case.pass(60);
    case.settle();
    case.probe("a", ProbeKind::Readiness, true);
    let before = case.settle().status;
    case.memory.add_api_status(&case.desired.pod, &old, case.now);
    let after = case.settle().status;
    assert!(after.is_ready());
    assert_eq!((&after.containers, after.phase), (&before.containers, before.phase));
    // A pod on which no node has reported has no past.
    let new = ApiStatus { phase: Some(Phase::Pending), ..ApiStatus::default() };
    assert_eq!(Memory::from_api_status(&case.desired.pod, &new, case.now), Memory::default());
}
