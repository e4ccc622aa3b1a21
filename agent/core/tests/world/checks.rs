//! Invariants that every history has to keep.

use super::World;
use berth_core::{
    ids::{ContainerId, ContainerName, SandboxAttempt},
    model::RestartPolicy,
    plan::*,
    resize::Allocation,
    status::{ConditionType, ContainerState, Phase, PodStatus, Truth},
};

impl World<'_> {
    /// Checks the invariants of one plan.
    pub(super) fn check_plan(&self, p: &Plan) -> Result<(), String> {
        for probe in &p.probes {
            if !p
                .status
                .containers
                .iter()
                .chain(&p.status.init_containers)
                .any(|c| c.id.as_ref() == Some(&probe.id))
            {
                return Err(format!("probe of a run that is not shown: {probe:?}"));
            }
        }
        // Readiness goes from true to false only for a reason.
        let before = self.shown_ready();
        for c in p.status.containers.iter().filter(|c| c.ready == Truth::False) {
            let Some(id) = &c.id else { continue };
            let reason = self.unready.contains(id)
                || self.condemned.contains(id)
                || self.all_condemned
                || !matches!(
                    self.agent.seen.containers.get(id).map(|c| &c.state),
                    Some(RunState::Running { .. })
                )
                || p.memory.failed.is_some()
                || p.memory
                    .containers
                    .values()
                    .any(|m| m.run.as_ref().is_some_and(|r| &r.id == id && r.stop.is_some()));
            if before.get(id) == Some(&Truth::True) && !reason {
                return Err(format!("readiness of {} turned false without a reason", id.short()));
            }
            if self.was_ready.contains(id) && !reason {
                return Err(format!("readiness of {} is false though its probe said yes", id.short()));
            }
        }
        if matches!(p.status.phase, Phase::Succeeded | Phase::Failed)
            && self.agent.seen.containers.values().any(|c| matches!(c.state, RunState::Running { .. }))
        {
            return Err(format!("phase {:?} while a container runs", p.status.phase));
        }
        if p.finished && !p.status.phase.is_terminal() {
            return Err(format!("nothing is left of the pod, and its phase is {:?}", p.status.phase));
        }
        if !self.agent.seen.runtime_answers && !p.actions.is_empty() {
            return Err(format!("containerd does not answer, asked for {:?}", p.actions));
        }
        Ok(())
    }

    /// Checks that no published fact is taken back.
    pub(super) fn check_forwards(&self, p: &Plan) -> Result<(), String> {
        let now = &p.status;
        let initialized =
            |s: &PodStatus| s.condition(ConditionType::Initialized).is_some_and(|c| c.status == Truth::True);
        let all = |s: &PodStatus| s.all_containers().cloned().collect::<Vec<_>>();
        let ephemeral = |name: &ContainerName| self.is_ephemeral(name);
        if now.phase.is_terminal()
            && initialized(now)
            && let Some(c) = all(now)
                .iter()
                .find(|c| !ephemeral(&c.name) && !matches!(c.state, ContainerState::Terminated(_)))
        {
            return Err(format!("{} is {:?} in a pod that has ended", c.name, c.state));
        }
        let Some(before) = &self.last_status else { return Ok(()) };
        if now.phase < before.phase || (before.phase.is_terminal() && now.phase != before.phase) {
            return Err(format!("phase went from {:?} to {:?}", before.phase, now.phase));
        }
        if initialized(before) && !initialized(now) {
            return Err("Initialized went back to False".to_owned());
        }
        for (was, is) in all(before).iter().zip(all(now)) {
            if is.restart_count < was.restart_count {
                return Err(format!("restartCount of {} fell: {was:?}, then {is:?}", is.name));
            }
            // The exception: a run that began before and was not observed until now.
            let same_run = is.restart_count == was.restart_count;
            let over = before.terminating || before.phase.is_terminal();
            let kept = same_run && (over || ephemeral(&is.name));
            if kept
                && let ContainerState::Terminated(t) = &was.state
                && !matches!(&is.state, ContainerState::Terminated(u) if u.id == t.id && u.exit_code == t.exit_code)
            {
                return Err(format!("the end of {} is taken back: {was:?}, then {is:?}", is.name));
            }
        }
        Ok(())
    }

    /// Checks that a live container is stopped only for a reason that the history gave.
    pub(super) fn check_stop(&self, a: &Action, id: &ContainerId) -> Result<(), String> {
        let m = &self.agent.memory;
        let reason = self.all_condemned
            || self.condemned.contains(id)
            || m.failed.is_some()
            || self.pod_is_over()
            || self.stray(id)
            || m.containers.values().any(|c| {
                c.run.as_ref().is_some_and(|r| {
                    &r.id == id && r.stop.as_ref().is_some_and(|s| s.cause == StopCause::PodEnds)
                })
            }) && self.pod_was_over();
        if reason { Ok(()) } else { Err(format!("{a:?} without a reason")) }
    }

    fn is_ephemeral(&self, name: &ContainerName) -> bool {
        self.desired.pod.ephemeral_containers.iter().any(|c| &c.name == name)
    }

    fn pod_was_over(&self) -> bool {
        self.desired.pod.restart_policy != RestartPolicy::Always
    }

    /// Whether the run's sandbox is gone or broken.
    fn stray(&self, id: &ContainerId) -> bool {
        let sandbox_attempt = self.truth.containers.get(id).map(|c| c.sandbox_attempt);
        self.truth
            .sandbox
            .as_ref()
            .is_none_or(|s| Some(s.sandbox_attempt) != sandbox_attempt || s.state == SandboxState::Broken)
    }

    /// Whether the main containers of the pod have all ended for good, so that only sidecars are left.
    fn pod_is_over(&self) -> bool {
        self.desired.pod.restart_policy != RestartPolicy::Always
            && self.desired.pod.containers.iter().all(|c| {
                !self
                    .truth
                    .containers
                    .values()
                    .any(|s| s.container == c.name && matches!(s.state, RunState::Running { .. }))
            })
    }

    pub(super) fn check_teardown(&self, truth: &Observed) -> Result<(), String> {
        let alive = truth.containers.iter().find(|(_, c)| matches!(c.state, RunState::Running { .. }));
        match alive {
            Some((id, _)) => Err(format!("sandbox taken down under running {}", id.short())),
            None => Ok(()),
        }
    }

    pub(super) fn check_start(
        &self,
        truth: &Observed,
        container: &ContainerName,
        sandbox_attempt: SandboxAttempt,
        id: &ContainerId,
    ) -> Result<(), String> {
        if let Some((other, c)) = truth
            .containers
            .iter()
            .find(|(o, c)| &c.container == container && *o != id && !matches!(c.state, RunState::Recorded(_)))
        {
            return Err(format!("{container} started beside {} which is {:?}", other.short(), c.state));
        }
        let other_run = || truth.containers.iter().any(|(o, c)| &c.container == container && o != id);
        if self.is_ephemeral(container) && other_run() {
            return Err(format!("ephemeral container {container} is started again"));
        }
        // A container that already exists is adopted, not run again.
        let adopted = truth.containers.get(id).is_some_and(|c| c.state != RunState::NotStarted);
        if !adopted && self.finished_inits.contains(&(sandbox_attempt, container.clone())) {
            return Err(format!(
                "init container {container} has finished in sandbox {sandbox_attempt}, and is run again"
            ));
        }
        if !truth.volumes_mounted {
            return Err(format!("{container} started without its volumes"));
        }
        let pod = &self.desired.pod;
        let is_main = pod.containers.iter().any(|c| &c.name == container);
        if is_main {
            for init in pod.init_containers.iter().filter(|c| !c.sidecar) {
                if !self.finished_inits.contains(&(sandbox_attempt, init.name.clone())) {
                    return Err(format!("{container} started before init container {} finished", init.name));
                }
            }
        }
        Ok(())
    }

    /// Checks that a resize is set on all that runs, and is told to be over.
    fn check_resized(&self, status: &PodStatus) -> Result<(), String> {
        if status.condition(ConditionType::PodResizeInProgress).is_some() {
            return Err("a resize never ends".to_owned());
        }
        let pod = &self.desired.pod;
        for c in self.truth.containers.values().filter(|c| matches!(c.state, RunState::Running { .. })) {
            let Some(spec) = pod.containers.iter().find(|spec| spec.name == c.container) else { continue };
            if c.resources.as_ref() != Some(&spec.resources) {
                return Err(format!(
                    "{} runs with {:?} and not with {:?}",
                    spec.name, c.resources, spec.resources
                ));
            }
        }
        // Without its memory the agent takes the cgroup for one that is up to date.
        if !self.lost_memory && self.truth_cgroup != Some(Allocation::of(pod)) {
            return Err(format!("the pod's cgroup is left at {:?}", self.truth_cgroup));
        }
        Ok(())
    }

    pub(super) fn check_nothing_left(&self) -> Result<(), String> {
        let t = &self.truth;
        if t.sandbox.is_some() || t.volumes_present || !t.containers.is_empty() {
            return Err(format!("the pod is over and leaves {t:?}"));
        }
        Ok(())
    }

    /// Checks, once the disturbances are over and nothing more happens, that the pod has reached its final
    /// state.
    pub(super) fn check_settled(&mut self) -> Result<(), String> {
        let Some(p) = self.plan.clone() else { return Err("no plan".into()) };
        if self.desired.end.is_some() {
            return Err(format!("the pod shall end and does not: {:?}", p.status));
        }
        let any_alive = self.truth.containers.values().any(|c| matches!(c.state, RunState::Running { .. }));
        match p.status.phase {
            Phase::Succeeded | Phase::Failed => {
                self.tally.terminal += 1;
                let never = self.desired.pod.restart_policy == RestartPolicy::Never;
                let onfail = self.desired.pod.restart_policy == RestartPolicy::OnFailure
                    && p.status.phase == Phase::Succeeded;
                let told = self.desired.terminal.is_some();
                if !(never || onfail || told || p.memory.failed.is_some()) {
                    return Err(format!(
                        "terminal phase {:?} under {:?}",
                        p.status.phase, self.desired.pod.restart_policy
                    ));
                }
                if any_alive || self.truth.sandbox.is_some() || self.truth.volumes_present {
                    return Err(format!("ended pod keeps {:?}", self.truth));
                }
                Ok(())
            }
            Phase::Running => {
                self.check_resized(&p.status)?;
                let ready = p.status.containers.iter().all(|c| {
                    c.ready == Truth::True
                        || matches!(c.state, berth_core::status::ContainerState::Terminated(_))
                });
                if ready { Ok(()) } else { Err(format!("calm and not ready: {:?}", p.status)) }
            }
            Phase::Pending => Err(format!("calm and pending: {:?} truth {:?}", p.status, self.truth)),
        }
    }
}
