//! Plans of a new agent with the memory of an agent that was killed between storing the memory and acting.

#[expect(unreachable_pub, dead_code, reason = "shared by the parts of another test")]
mod world;

use berth_core::{
    ids::{Attempt, ContainerId, SandboxAttempt},
    plan::*,
    time::{Boottime, Now, Wall},
};
use std::{collections::BTreeMap, time::Duration};

fn now(seconds: u64) -> Now {
    Now { boottime: Boottime(Duration::from_secs(seconds)), wall: Wall(seconds as i64 * 1_000_000_000) }
}

/// A world in which the pod's first container runs and everything else is ready.
fn running(desired: &Desired) -> (Observed, ContainerId) {
    let spec = &desired.pod.containers[0];
    let id = ContainerId::derive(&desired.pod.uid, SandboxAttempt(0), &spec.name, Attempt(0));
    let container = ObservedContainer {
        container: spec.name.clone(),
        attempt: Attempt(0),
        sandbox_attempt: SandboxAttempt(0),
        image_id: String::new(),
        user: None,
        resources: None,
        state: RunState::Running { started_at: now(90).wall },
        task: true,
    };
    let seen = Observed {
        runtime_answers: true,
        sandbox: Some(ObservedSandbox {
            sandbox_attempt: SandboxAttempt(0),
            state: SandboxState::Ready,
            ips: Vec::new(),
        }),
        volumes_mounted: true,
        volumes_present: true,
        containers: BTreeMap::from([(id.clone(), container)]),
        stale: false,
    };
    (seen, id)
}

/// The memory after the agent's death: only the serialized part is left.
fn reborn(memory: &Memory) -> Memory {
    let text = serde_json::to_string(memory).expect("memory has a text form");
    serde_json::from_str(&text).expect("and can be read back")
}

#[test]
fn a_stop_signal_that_was_not_sent_is_sent_by_the_next_agent() {
    let mut desired = world::specs()[0].clone();
    let (seen, id) = running(&desired);
    desired.end = Some(30);
    let first = plan(&desired, &seen, &Memory::default(), now(100));
    let signal = Action::Signal { container: desired.pod.containers[0].name.clone(), id };
    assert!(first.actions.contains(&signal), "{:?}", first.actions);

    let second = plan(&desired, &seen, &reborn(&first.memory), now(101));
    assert!(second.actions.contains(&signal), "killed before it was sent: {:?}", second.actions);

    let mut sent = second.memory.clone();
    learn(&desired.pod, &mut sent, Fact::Finished(signal.clone(), Ok(())), now(101));
    let third = plan(&desired, &seen, &reborn(&sent), now(102));
    assert!(!third.actions.contains(&signal), "sent once is enough: {:?}", third.actions);
    assert_eq!(third.wake_at, Some(now(130).boottime), "SIGKILL waits for the end of the grace");
}

#[test]
fn the_task_of_a_finished_init_container_stays_until_the_next_one_runs_on_the_pods_shim() {
    let desired = world::specs()
        .into_iter()
        .find(|d| d.pod.init_containers.first().is_some_and(|c| !c.sidecar))
        .expect("a pod with an init container");
    let (mut seen, main) = running(&desired);
    let mut next = seen.containers.remove(&main).expect("the main container");
    let init = &desired.pod.init_containers[0];
    let id = ContainerId::derive(&desired.pod.uid, SandboxAttempt(0), &init.name, Attempt(0));
    let exit = Exit { code: 0, ..Exit::unknown(now(95).wall) };
    let finished =
        ObservedContainer { container: init.name.clone(), state: RunState::Recorded(exit), ..next.clone() };
    seen.containers.insert(id.clone(), finished);
    let reaps = |p: &Plan| p.actions.iter().any(|a| matches!(a, Action::Reap { id: i, .. } if i == &id));

    let first = plan(&desired, &seen, &Memory::default(), now(100));
    assert!(!reaps(&first), "the shim would end before the next container is on it: {:?}", first.actions);
    next.state = RunState::Running { started_at: now(101).wall };
    seen.containers.insert(main, next);
    let second = plan(&desired, &seen, &first.memory, now(102));
    assert!(reaps(&second), "{:?}", second.actions);
}

#[test]
fn a_shutdown_ends_a_pod_within_the_shorter_grace_and_keeps_it_on_record() {
    let desired = world::specs()[0].clone();
    let (mut seen, id) = running(&desired);
    let main = desired.pod.containers[0].name.clone();
    let mut memory = plan(&desired, &seen, &Memory::default(), now(100)).memory;
    memory.shutdown = Some(Ending { since: now(200).boottime, grace: 1 });
    let first = plan(&desired, &seen, &memory, now(200));
    let signal = Action::Signal { container: main.clone(), id: id.clone() };
    assert!(first.actions.contains(&signal), "{:?}", first.actions);
    // The least time between a signal and SIGKILL is two seconds.
    assert_eq!(
        first.wake_at,
        Some(now(202).boottime),
        "the pod's own grace is {}",
        desired.pod.grace_seconds
    );

    let killed = plan(&desired, &seen, &reborn(&first.memory), now(202));
    assert!(
        killed.actions.contains(&Action::Kill { container: main, id: id.clone() }),
        "{:?}",
        killed.actions
    );
    let exit = Exit { code: 137, ..Exit::unknown(now(202).wall) };
    seen.containers.get_mut(&id).expect("it is there").state = RunState::Recorded(exit);
    let ended = plan(&desired, &seen, &reborn(&killed.memory), now(203));
    assert_eq!(ended.status.phase, berth_core::status::Phase::Failed);
    assert_eq!(ended.status.reason.as_deref(), Some("Terminated"));
    let started =
        |a: &Action| matches!(a, Action::Start { .. } | Action::MakeSandbox(_) | Action::Remove { .. });
    assert!(!ended.actions.iter().any(started), "{:?}", ended.actions);
    assert!(!ended.gone && !ended.finished);
}

#[test]
fn the_object_of_an_ended_pod_may_go_before_the_records_of_its_containers() {
    let desired = Desired { end: Some(0), ..world::specs()[0].clone() };
    let (mut seen, id) = running(&desired);
    let memory = plan(&desired, &seen, &Memory::default(), now(100)).memory;
    let record = seen.containers.get_mut(&id).expect("it is there");
    (record.state, record.task) = (RunState::Recorded(Exit::unknown(now(101).wall)), true);
    seen.volumes_present = false;
    let attached = plan(&desired, &seen, &reborn(&memory), now(102));
    assert!(attached.gone && !attached.reclaimed, "its network is still there");

    seen.sandbox = None;
    let reclaimed = plan(&desired, &seen, &reborn(&attached.memory), now(103));
    assert!(reclaimed.reclaimed && !reclaimed.finished, "its container's record is still there");
    let reaps = |a: &Action| matches!(a, Action::Reap { id: of, .. } if of == &id);
    assert!(reclaimed.actions.iter().any(reaps), "{:?}", reclaimed.actions);
    assert_eq!(reclaimed.status.phase, berth_core::status::Phase::Failed);

    seen.runtime_answers = false;
    assert!(!plan(&desired, &seen, &reborn(&reclaimed.memory), now(104)).reclaimed, "nothing was observed");
}
