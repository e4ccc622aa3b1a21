//! In-place resize of a running pod: the allocated resources are set on the pod's cgroup and on the runs whose record
//! names others (`computePodResizeAction`, `pkg/kubelet/kuberuntime`).

use super::{
    Action, Payload, StopCause,
    memory::Resize,
    planner::{ContainerPhase, ContainerRole, Planner},
};
use crate::{
    event::Event,
    ids::ContainerId,
    model::Container,
    resize::{Allocation, ContainerUpdate, CpuMemory, completed, needs_restart},
};
use serde::{Deserialize, Serialize};

/// What a resize of a pod sets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodResize {
    /// The allocation that the resize sets.
    pub allocation: Allocation,
    /// The runs on which other resources are set now.
    pub updates: Vec<ContainerUpdate>,
}

impl Planner<'_> {
    /// Notes a changed allocation: from then on a resize is in progress.
    pub(super) fn note_allocation(&mut self) {
        let now = Allocation::of(self.pod);
        let before = self.memory.allocated.replace(now.clone());
        if before.is_some_and(|before| before != now) {
            self.memory.retries.remove(&Action::resize());
            self.memory.resize =
                Some(Resize { generation: self.pod.generation, error: None, since: self.now.wall });
        }
        // A sandbox without any memory of its cgroup counts as one with the allocated resources.
        if self.seen.sandbox.is_some() {
            self.memory.cgroup.get_or_insert(now);
        }
    }

    /// Plans the next step of a resize, and tells its end.
    pub(super) fn sync_resize(&mut self) {
        let pod = self.pod;
        let (mut updates, mut restarts) = (Vec::new(), false);
        for spec in pod.lasting_containers() {
            let Some((id, now)) = self.outdated(spec) else { continue };
            if needs_restart(spec, &now) {
                restarts = true;
                self.restart_resized(spec, &id);
            } else {
                let wanted = CpuMemory::of(&spec.resources);
                updates.push(ContainerUpdate { id, container: spec.name.clone(), now, wanted });
            }
        }
        let due = !updates.is_empty() || self.cgroup_is_outdated();
        // A container that has to restart ends first: its memory may be above the pod's new limit.
        if due && !restarts && self.ready_sandbox().is_some() {
            let allocation = Allocation::of(pod);
            self.emit(Action::ResizePod(Payload(PodResize { allocation, updates })));
        }
        self.tell_resize(due || restarts);
    }

    fn tell_resize(&mut self, in_progress: bool) {
        match (in_progress, &self.memory.resize) {
            (true, None) => {
                let (generation, since) = (self.pod.generation, self.now.wall);
                self.memory.resize = Some(Resize { generation, error: None, since });
            }
            (false, Some(resize)) => {
                self.events.push(completed(self.pod, resize.generation));
                self.memory.resize = None;
                self.memory.retries.remove(&Action::resize());
            }
            _ => {}
        }
    }

    /// The running run of a container that can be resized and on which other resources are set than are allocated, with
    /// those.
    fn outdated(&self, spec: &Container) -> Option<(ContainerId, CpuMemory)> {
        if self.role(&spec.name) == ContainerRole::Init {
            return None;
        }
        let ContainerPhase::Running(id) = self.container_phase(&spec.name) else { return None };
        let set = self.seen.containers.get(id)?.resources.as_ref()?;
        let now = CpuMemory::of(set);
        (now != CpuMemory::of(&spec.resources)).then(|| (id.clone(), now))
    }

    fn cgroup_is_outdated(&self) -> bool {
        self.seen.sandbox.is_some()
            && self.memory.cgroup.as_ref().is_some_and(|set| *set != Allocation::of(self.pod))
    }

    /// Whether a start has to wait for the pod's cgroup. A resize that has failed delays no start.
    pub(super) fn waits_for_resize(&self) -> bool {
        self.cgroup_is_outdated() && !self.memory.retries.contains_key(&Action::resize())
    }

    fn restart_resized(&mut self, spec: &Container, id: &ContainerId) {
        let stopping = self.run(&spec.name).is_some_and(|r| &r.id == id && r.stop.is_some());
        if !stopping {
            let text = format!("Container {} resize requires restart", spec.name);
            self.events.push(Event::normal("Killing", text).of(&spec.name));
            self.stop_run(spec, id, StopCause::Resized, self.pod.grace_seconds);
        }
    }
}
