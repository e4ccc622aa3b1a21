//! What keeps a pod from being Ready, in one sentence.

use crate::{
    ids::ContainerName,
    plan::planner::{ContainerRole, Planner},
    refs::Ref,
    status::{ContainerState, ContainerStatus, Phase, Terminated, Truth},
    time::Boottime,
    value::Why,
};

/// One sentence on what keeps the pod from being Ready, and the time of the next try.
pub(super) fn waiting_for(
    d: &Planner<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    ephemeral: &[ContainerStatus],
) -> Option<(String, Option<Boottime>)> {
    if matches!(phase, Phase::Succeeded | Phase::Failed) {
        return None;
    }
    if d.memory.ending.is_some() {
        let left: Vec<&str> = init
            .iter()
            .chain(mains)
            .chain(ephemeral)
            .filter(|c| matches!(c.state, ContainerState::Running { .. }))
            .map(|c| c.name.as_str())
            .collect();
        let what = if left.is_empty() {
            "being cleared away".to_owned()
        } else {
            format!("ending: {} still running", left.join(", "))
        };
        return Some((what, None));
    }
    if let Some(why) = &d.pod.unsupported {
        return Some((format!("a node that supports the pod: {why}"), None));
    }
    if !d.seen.runtime_answers {
        return Some(("containerd does not answer; shown is what was last known".to_owned(), None));
    }
    let now = d.now.boottime;
    if let Some((action, retry)) = d.memory.retries.iter().max_by_key(|(_, r)| r.not_before) {
        let whose = action.container().map(|c| format!("container {c}: ")).unwrap_or_default();
        let what = format!("{whose}{}: {}", retry.failure.reason, retry.failure.message);
        return Some((what, Some(retry.not_before)));
    }
    let ready = || d.ready_sandbox().is_some_and(|sandbox| d.volumes_ready(sandbox));
    if let Some(object) = d.unknown_of_volumes().filter(|_| !d.seen.volumes_mounted && !ready()) {
        return Some((format!("volumes: {}", unknown(object)), None));
    }
    for (spec, c) in d.pod.all_containers().filter_map(|s| Some((s, find(init, mains, &s.name)?))) {
        let name = &spec.name;
        let what = match &c.state {
            ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff" => {
                let code = c.last_state.as_ref().map_or(0, |t| t.exit_code);
                let why = match &c.last_state {
                    Some(Terminated { reason, message: Some(message), .. }) if reason == "StartError" => {
                        format!("{reason}: {message}")
                    }
                    _ => format!("exited with code {code}"),
                };
                let wait = d.newest(name).and_then(|(id, _)| d.back_off(name, id));
                let next = wait.map_or(now, |(at, _)| at);
                return Some((format!("container {name}: {why}"), Some(next)));
            }
            ContainerState::Waiting { .. } if d.unknown_of_env(spec).is_some() => {
                let object = d.unknown_of_env(spec).map(unknown).unwrap_or_default();
                format!("container {name}: {object}")
            }
            ContainerState::Running { .. } if d.role(name) == ContainerRole::Init => {
                format!("init container {name} to finish")
            }
            ContainerState::Running { .. } if c.started != Some(true) => {
                format!("container {name}: startup probe or postStart hook{}", because(d, name))
            }
            ContainerState::Running { .. } if c.ready != Truth::True => {
                format!("container {name}: readiness probe{}", because(d, name))
            }
            ContainerState::Waiting { reason, .. } if reason != "PodInitializing" => {
                format!("container {name} to start")
            }
            _ => continue,
        };
        return Some((what, None));
    }
    if mains.iter().all(|c| c.ready == Truth::True) && !d.pod.readiness_gates.is_empty() {
        return Some((format!("readiness gates {}", d.pod.readiness_gates.join(", ")), None));
    }
    Some(("containers to start".to_owned(), None))
}

/// An object that is waited for, and why it is unknown.
fn unknown((object, why): (&Ref, &Why)) -> String {
    format!("{} {:?} is {why}", object.kind, object.name)
}

/// The message of the last failing startup or readiness probe, as a suffix.
fn because(d: &Planner<'_>, name: &ContainerName) -> String {
    d.run(name).and_then(|r| r.unready_because.as_ref()).map(|m| format!(": {m}")).unwrap_or_default()
}

fn find<'c>(
    init: &'c [ContainerStatus],
    mains: &'c [ContainerStatus],
    name: &ContainerName,
) -> Option<&'c ContainerStatus> {
    init.iter().chain(mains).find(|c| &c.name == name)
}
