//! Memory from a pod's status in the API: the pod's past where nothing else remembers it, after a reboot or where the
//! stored memory was lost.
//!
//! What the memory holds already stays: it is newer than any status that was made of it. A status of an earlier life of
//! the pod can only add: counts rise, the start moves back, and a readiness is taken for the same run alone.

use super::{
    HookState, Memory, PastRun, Readiness, Run, memory::ContainerMemory, remember::boottime_of,
    status::unknown_end,
};
use crate::{
    ids::{Attempt, ContainerId, SandboxAttempt},
    model::{Container, Pod},
    status::{ApiStatus, ConditionType, ContainerState, ContainerStatus, Terminated, Truth},
    time::Now,
};
use std::time::Duration;

/// The sandbox attempts of which a container id may be made. The API server does not know the attempt.
const SANDBOX_ATTEMPTS: u32 = 64;

impl Memory {
    /// The memory of a pod of which only the API server remembers anything. Empty where no node has reported on the pod.
    pub fn from_api_status(pod: &Pod, api: &ApiStatus, now: Now) -> Memory {
        let mut memory = Memory::default();
        memory.add_api_status(pod, api, now);
        memory
    }

    /// Adds what a memory without the pod's past lacks: counts, times, the phase, ends of earlier runs.
    pub fn add_api_status(&mut self, pod: &Pod, api: &ApiStatus, now: Now) {
        let Some(start_time) = api.start_time else { return };
        let age = Duration::from_nanos(u64::try_from(now.wall.0.saturating_sub(start_time.0)).unwrap_or(0));
        let start = boottime_of(start_time, now);
        self.start_time = Some(start_time);
        self.start_boottime = Some(start);
        // The part before this boot.
        self.active_before = age.saturating_sub(now.boottime.since(start));
        if self.phase.is_none_or(|phase| !phase.is_terminal()) {
            self.phase = self.phase.max(api.phase);
        }
        if self.ips.is_empty() {
            self.ips.clone_from(&api.pod_ips);
        }
        for kind in ConditionType::ALL {
            let Some((status, Some(since))) = api.conditions.get(kind.name()).copied() else { continue };
            let known = self.conditions.entry(kind).or_insert((status, since));
            if known.0 == status {
                known.1 = known.1.min(since);
            }
        }
        for shown in &api.containers {
            if let Some(spec) = pod.container(&shown.name) {
                self.add_container(pod, spec, shown, now);
            }
        }
    }

    fn add_container(&mut self, pod: &Pod, spec: &Container, shown: &ContainerStatus, now: Now) {
        let attempt = Attempt(shown.restart_count);
        let sandbox = shown.id.as_ref().and_then(|id| sandbox_of(pod, spec, attempt, id));
        if let Some(SandboxAttempt(used)) = sandbox {
            // The next sandbox has a number of its own, also where all records of this one are lost.
            let next = SandboxAttempt(used.saturating_add(1));
            self.sandbox_attempt = self.sandbox_attempt.max(Some(next));
        }
        let memory = self.containers.entry(spec.name.clone()).or_default();
        memory.restarts = memory.restarts.max(shown.restart_count);
        memory.past.get_or_insert_with(|| past(shown));
        if let ContainerState::Terminated(end) = &shown.state {
            memory.last.get_or_insert_with(|| shown.clone());
            if !spec.sidecar && pod.init_containers.iter().any(|c| c.name == spec.name) && succeeded(end) {
                memory.finished_in = memory.finished_in.max(sandbox);
            }
        }
        let Some(id) = &shown.id else { return };
        add_run(memory, spec, id, shown, now);
    }
}

/// Adds the run that the status shows, or its readiness where the run is known without one.
fn add_run(
    memory: &mut ContainerMemory,
    spec: &Container,
    id: &ContainerId,
    shown: &ContainerStatus,
    now: Now,
) {
    // A probe may have said yes since the status was made: a container that is not shown as ready counts as unknown until
    // its next verdict, and an unknown readiness is never published.
    let readiness = if shown.ready == Truth::True { Readiness::Yes } else { Readiness::Unknown };
    match &mut memory.run {
        Some(run) if &run.id == id && run.readiness == Readiness::Unknown => run.readiness = readiness,
        Some(_) => {}
        None => {
            let started = match &shown.state {
                ContainerState::Running { started_at } => Some(*started_at),
                ContainerState::Terminated(end) => end.started_at,
                ContainerState::Waiting { .. } => shown.last_state.as_ref().and_then(|end| end.started_at),
            };
            memory.attempt = memory.attempt.max(Some(Attempt(shown.restart_count)));
            memory.run = Some(Run {
                // A run with an id was started, also where its start is not told.
                started_at: Some(started.map_or(now.boottime, |at| boottime_of(at, now))),
                post_start: HookState::Done,
                startup_done: spec.startup.is_none() || shown.started == Some(true),
                readiness,
                ..Run::adopted(id.clone())
            });
        }
    }
}

/// The run of the status, for the time after its record is lost. A run that the status shows as running counts as killed
/// then (`convertToAPIContainerStatuses`, `pkg/kubelet/kubelet_pods.go`).
fn past(shown: &ContainerStatus) -> PastRun {
    const LOST: &str =
        "The container could not be located when the pod was deleted.  The container used to be Running";
    let end = match &shown.state {
        ContainerState::Terminated(end) => Some(end.clone()),
        ContainerState::Running { .. } => Some(unknown_end(LOST, shown.id.clone())),
        ContainerState::Waiting { .. } => None,
    };
    PastRun { id: shown.id.clone(), end, before: shown.last_state.clone() }
}

fn succeeded(end: &Terminated) -> bool {
    end.exit_code == 0 && end.reason != "OOMKilled"
}

/// The sandbox attempt of which the id is made; `None` for an id of another agent.
fn sandbox_of(pod: &Pod, spec: &Container, attempt: Attempt, id: &ContainerId) -> Option<SandboxAttempt> {
    let mut attempts = (0..SANDBOX_ATTEMPTS).map(SandboxAttempt);
    attempts.find(|sandbox| &ContainerId::derive(&pod.uid, *sandbox, &spec.name, attempt) == id)
}
