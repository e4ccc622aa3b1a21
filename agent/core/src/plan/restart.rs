//! Restarts of containers: whether another run follows a dead one, and from when on.

use super::{
    Exit, StopCause,
    backoff::CrashBackoff,
    planner::{ContainerRole, Planner},
    remember::boottime_of,
};
use crate::{
    ids::{ContainerId, ContainerName},
    model::RestartPolicy,
    time::Boottime,
};
use std::time::Duration;

impl Planner<'_> {
    /// Whether another run follows the dead newest run of a container.
    pub(super) fn restartable(&self, container: &ContainerName, id: &ContainerId, exit: &Exit) -> bool {
        let stop = self.run(container).filter(|r| &r.id == id).and_then(|r| r.stop.as_ref()).map(|s| s.cause);
        let stopped_to_be_followed = matches!(
            stop,
            Some(StopCause::Liveness | StopCause::Startup | StopCause::PostStart | StopCause::SandboxLost)
        );
        // The next run has already begun, so the decision to restart was taken before.
        let begun =
            self.mem(container).and_then(|m| m.attempt) > self.seen.containers.get(id).map(|c| c.attempt);
        match (self.role(container), self.pod.restart_policy) {
            (ContainerRole::Ephemeral, _) => false,
            _ if begun || matches!(stop, Some(StopCause::Changed | StopCause::Resized)) => true,
            (ContainerRole::Sidecar, _) => true,
            (_, RestartPolicy::Never) => false,
            (ContainerRole::Init, _) => !exit.init_done(),
            (ContainerRole::Main, RestartPolicy::Always) => true,
            (ContainerRole::Main, RestartPolicy::OnFailure) => exit.code != 0 || stopped_to_be_followed,
        }
    }

    /// The crash back-off that delays the run after the dead newest run of a container: its end and its
    /// length. `None` where the next run may begin at once.
    ///
    /// A run that a failed probe or a changed image ended is followed at once if the back-off since the end
    /// of the run before it was over when it ended. The reason: the kubelet kills and starts in one pass over
    /// the pod and counts from the last end that it knows then (`doBackOff`, `pkg/kubelet/kuberuntime`). A
    /// changed image resets the back-off.
    pub(super) fn back_off(
        &self,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Option<(Boottime, Duration)> {
        let now = self.now.boottime;
        let ended_at = self.run(container).and_then(|r| r.ended_at).unwrap_or(now);
        let backoff = self.crash_back_off(container);
        let at_once = self.killed_by_node(container, id) && self.back_off_ran_out_before(container, ended_at);
        if at_once { None } else { backoff.wait(ended_at, now) }
    }

    /// The crash back-off of a container as it counts once the run after the dead newest run begins now.
    pub(super) fn counted(&self, container: &ContainerName, id: &ContainerId) -> CrashBackoff {
        let now = self.now.boottime;
        let mut backoff = self.crash_back_off(container);
        let ended_at = self.run(container).and_then(|r| r.ended_at).unwrap_or(now);
        let at_once = self.killed_by_node(container, id) && self.back_off_ran_out_before(container, ended_at);
        let counted = if at_once { self.previous_end(container) } else { Some(ended_at) };
        if let Some(end) = counted {
            backoff.count(end, now);
        }
        backoff
    }

    /// Whether the back-off since the end of the previous run was over when the newest run ended.
    fn back_off_ran_out_before(&self, container: &ContainerName, ended_at: Boottime) -> bool {
        let backoff = self.crash_back_off(container);
        self.previous_end(container).is_none_or(|end| backoff.wait(end, ended_at).is_none())
    }

    fn killed_by_node(&self, container: &ContainerName, id: &ContainerId) -> bool {
        let stop = self.run(container).filter(|r| &r.id == id).and_then(|r| r.stop.as_ref());
        stop.is_some_and(|s| {
            matches!(
                s.cause,
                StopCause::Liveness | StopCause::Startup | StopCause::Changed | StopCause::Resized
            )
        })
    }

    /// The crash back-off of a container; the initial one where the pod now names another image.
    fn crash_back_off(&self, container: &ContainerName) -> CrashBackoff {
        let same = self.mem(container).filter(|_| !self.image_changed(container));
        same.map(|m| m.backoff).unwrap_or_default()
    }

    /// Whether the pod names another image than the one that the last run began with. False where the image
    /// of the last run is not known.
    pub(super) fn image_changed(&self, container: &ContainerName) -> bool {
        let wanted = self.pod.container(container).map(|c| c.image.as_str());
        let begun_with = self.run(container).and_then(|r| r.image.as_deref());
        begun_with.is_some_and(|begun| Some(begun) != wanted)
    }

    fn previous_end(&self, container: &ContainerName) -> Option<Boottime> {
        let exit = self.previous(container)?.1.state.exit()?;
        Some(boottime_of(exit.at, self.now))
    }
}
