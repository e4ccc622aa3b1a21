//! The end of a pod: the phase in which it ends, and how much of it is still on the node.

use super::{
    Action, Failure, RunState,
    planner::{ContainerPhase, Planner},
};
use crate::{event::Event, model::RestartPolicy, status::Phase};
use std::time::Duration;

impl Planner<'_> {
    /// The phase in which the pod ends, once none of its containers will start again.
    pub(super) fn terminal(&mut self) -> Option<Phase> {
        let pod = self.pod;
        // The phase of a pod that has ended is final, even while its containers and volumes are removed.
        if let Some(phase) = self.memory.phase.filter(|p| p.is_terminal()) {
            return Some(phase);
        }
        // Another writer may end a pod: eviction by taints, the garbage collection of pods, a Job's back-off.
        if let Some(shown) = self.shown_terminal {
            return Some(shown.phase);
        }
        if self.memory.failed.is_some() {
            return Some(Phase::Failed);
        }
        let by_containers = self.ended_by_itself();
        if by_containers.is_some() {
            return by_containers;
        }
        if self.memory.ending.is_none()
            && let (Some(limit), Some(start)) = (pod.active_deadline_seconds, self.memory.start_boottime)
        {
            let left = Duration::from_secs(u64::from(limit)).saturating_sub(self.memory.active_before);
            let due = start + left;
            if due <= self.now.boottime {
                const WHY: &str = "Pod was active on the node longer than the specified deadline";
                self.memory.failed = Some(Failure::new("DeadlineExceeded", WHY));
                self.events.push(Event::normal("DeadlineExceeded", WHY));
                return Some(Phase::Failed);
            }
            self.wake(due);
        }
        None
    }

    /// The phase of a pod whose containers have all ended for good.
    fn ended_by_itself(&self) -> Option<Phase> {
        let pod = self.pod;
        if pod.restart_policy == RestartPolicy::Never && !self.mains_ever_started() {
            let failed = pod
                .init_containers
                .iter()
                .filter(|c| !c.sidecar)
                .any(|c| matches!(self.container_phase(&c.name), ContainerPhase::Dead(_, exit) if !exit.init_done()));
            if failed {
                return Some(Phase::Failed);
            }
        }
        let mut all_well = true;
        for c in &pod.containers {
            match self.container_phase(&c.name) {
                ContainerPhase::Dead(id, exit) if !self.restartable(&c.name, id, exit) => {
                    all_well &= exit.code == 0
                }
                _ => return self.unrecreatable(),
            }
        }
        if pod.containers.is_empty() {
            return None;
        }
        Some(if all_well { Phase::Succeeded } else { Phase::Failed })
    }

    /// Phase Failed for a pod with restart policy Never that lost its sandbox after one of its containers
    /// ran. Such a pod gets no second sandbox (`pkg/kubelet/kuberuntime/util`).
    fn unrecreatable(&self) -> Option<Phase> {
        let lost = self.seen.sandbox.is_none()
            && !self.in_flight(|a| matches!(a, Action::MakeSandbox(_)))
            && self.seen.runtime_answers
            && self.pod.restart_policy == RestartPolicy::Never
            && self
                .pod
                .all_containers()
                .any(|c| self.newest(&c.name).is_some_and(|(_, s)| s.state.exit().is_some()))
            && !self.anything_alive();
        lost.then_some(Phase::Failed)
    }

    /// Whether any run of a main container is on record.
    fn mains_ever_started(&self) -> bool {
        self.pod.containers.iter().any(|c| self.newest(&c.name).is_some())
    }

    /// The phase of a pod that has not ended when the machine shuts down, with the kubelet's reason and
    /// message (`pkg/kubelet/nodeshutdown`). The pod stays in the source, and the next boot runs it again.
    pub(super) fn shut_down(&mut self) -> Option<Phase> {
        self.memory.shutdown?;
        const WHY: &str = "Pod was terminated in response to imminent node shutdown.";
        self.memory.failed = Some(Failure::new("Terminated", WHY));
        Some(Phase::Failed)
    }

    /// Whether every process of the pod is dead, its exit stored, and no volume is mounted. The network may
    /// still be on the way down; the pod's addresses are not reused before its end.
    pub(super) fn is_gone(&self) -> bool {
        !self.anything_alive()
            && !self.seen.volumes_present
            && !self.seen.containers.values().any(|c| matches!(c.state, RunState::Ended(_)))
            && !self.in_flight(|a| {
                matches!(a, Action::MakeSandbox(_) | Action::MountVolumes | Action::UnmountVolumes)
            })
    }

    /// Whether only container records of the pod are left: every process is dead, and there is no sandbox and
    /// no volume.
    pub(super) fn resources_reclaimed(&self) -> bool {
        !self.anything_alive()
            && self.seen.sandbox.is_none()
            && !self.seen.volumes_present
            && !self.in_flight(|a| {
                matches!(
                    a,
                    Action::MakeSandbox(_)
                        | Action::MountVolumes
                        | Action::TeardownSandbox(_)
                        | Action::UnmountVolumes
                )
            })
    }
}
