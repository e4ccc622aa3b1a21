//! Observation of pods: reads containerd's list, the sandbox records and the pod directories.

use crate::{NodeExecutor, metrics, start::exit_of};
use berth_core::{
    error::Chain,
    ids::{ContainerId, PodUid},
    model::{Pod, Resources},
    plan::{Exit, Failure, ObservedContainer, RunState},
    status::ContainerUser,
    time::Boottime,
};
use berth_pods::{FoundPod, NodeEvent, NodeProcess, PodSnapshot};
use berth_runtime::{FoundContainer, FoundState};
use berth_sys::{clock, fs::read_to_string_limited};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

impl NodeExecutor {
    /// Observes every pod that has a container or a sandbox.
    pub(crate) async fn relist(&self) -> Result<NodeEvent, Failure> {
        let (taken, begun) = (clock::boottime(), Instant::now());
        let list = self.containers().await;
        metrics::count_relist(begun, list.is_err());
        let list = list?;
        let mut by_pod: BTreeMap<PodUid, Vec<FoundContainer>> = BTreeMap::new();
        for uid in self.sandboxes() {
            by_pod.entry(uid).or_default();
        }
        for c in list {
            by_pod.entry(c.pod.clone()).or_default().push(c);
        }
        let (mut found, mut unseen) = (BTreeMap::new(), BTreeSet::new());
        for (uid, containers) in by_pod {
            let pod = containers.iter().find_map(stored_pod);
            match self.snapshot(&uid, pod.as_deref(), containers, taken) {
                Ok(snapshot) => {
                    found.insert(uid, FoundPod { pod, snapshot });
                }
                // A pod that cannot be observed does not keep the others from being observed.
                Err(failure) => {
                    tracing::warn!(%uid, why = failure.message, "pod not seen");
                    unseen.insert(uid);
                }
            }
        }
        Ok(NodeEvent::RuntimeBack { found, unseen, taken })
    }

    pub(crate) async fn observe_pod(&self, uid: &PodUid) -> Result<PodSnapshot, Failure> {
        let taken = clock::boottime();
        let of_pod =
            self.runtime()?.list_of(uid).await.map_err(|e| Failure::new("RuntimeNotReady", Chain(&e)))?;
        let pod = of_pod.iter().find_map(stored_pod);
        self.snapshot(uid, pod.as_deref(), of_pod, taken)
    }

    async fn containers(&self) -> Result<Vec<FoundContainer>, Failure> {
        self.runtime()?.list().await.map_err(|e| Failure::new("RuntimeNotReady", Chain(&e)))
    }

    /// Whether the OOM killer has killed a process of a container's cgroup.
    pub(crate) fn has_oom_kills(&self, pod: &Pod, id: &ContainerId) -> bool {
        oom_killed(&self.cgroups.dirs_of(&self.cgroups.container_cgroup(pod, id)))
    }

    fn snapshot(
        &self,
        uid: &PodUid,
        pod: Option<&Pod>,
        containers: Vec<FoundContainer>,
        taken: Boottime,
    ) -> Result<PodSnapshot, Failure> {
        let mut snapshot = PodSnapshot { taken, ..PodSnapshot::default() };
        for c in containers {
            self.claims.found(&c.id, uid);
            if let FoundState::Running { pid, start_time, .. } = c.state
                && c.exit.is_none()
            {
                snapshot.processes.insert(c.id.clone(), NodeProcess { pid, start_time });
            }
            if c.state == FoundState::Unknown && c.exit.is_none() {
                snapshot.unsure.insert(c.id.clone());
            }
            let task = !matches!(c.state, FoundState::NoTask);
            let killed = || pod.is_some_and(|p| self.has_oom_kills(p, &c.id));
            let state = match (&c.exit, c.state) {
                (Some(exit), _) => RunState::Recorded(exit_of(exit.clone())),
                (None, FoundState::Running { started_at, .. }) => {
                    RunState::Running { started_at: started_at.or(c.created_at).unwrap_or_default() }
                }
                (None, FoundState::Stopped { code, at }) => RunState::Ended(Exit {
                    code,
                    at,
                    // The OOM event may have come while the agent was not connected.
                    oom: code != 0 && killed(),
                    reason: None,
                    message: None,
                    started_at: c.created_at,
                }),
                (None, _) if c.boot != self.config.boot => RunState::Ended(Exit::unknown(clock::wall())),
                // The shim does not answer. The container may still run, so its state counts as running and
                // as unsure.
                (None, FoundState::Unknown) => {
                    RunState::Running { started_at: c.created_at.unwrap_or_default() }
                }
                (None, FoundState::NoTask | FoundState::Created { .. }) => RunState::NotStarted,
            };
            snapshot.seen.containers.insert(
                c.id.clone(),
                ObservedContainer {
                    user: stored_user(&c),
                    resources: stored_resources(&c),
                    container: c.container,
                    attempt: c.attempt,
                    sandbox_attempt: c.sandbox_attempt,
                    image_id: c.image_id,
                    state,
                    task,
                },
            );
        }
        let alive = snapshot.seen.containers.values().filter(|c| matches!(c.state, RunState::Running { .. }));
        let lives_in = alive.map(|c| c.sandbox_attempt).max();
        snapshot.seen.sandbox = self.see_sandbox(uid, pod.zip(lives_in))?;
        snapshot.seen.volumes_present = self.config.roots.pod_dir(uid).exists();
        snapshot.seen.runtime_answers = true;
        Ok(snapshot)
    }
}

/// Whether the OOM killer has killed a process of these cgroups. The source is the kernel's own count:
/// `oom_kill` in `memory.oom_control` (v1) or `memory.events` (v2).
fn oom_killed(dirs: &[PathBuf]) -> bool {
    let counted = |dir: &PathBuf| {
        ["memory.oom_control", "memory.events"].iter().any(|file| {
            let text = read_to_string_limited(&dir.join(file), 4096).unwrap_or_default();
            let count = text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
            count.is_some_and(|n| n > 0)
        })
    };
    dirs.iter().any(counted)
}

/// User and groups of a container. Records of an earlier build lack them.
fn stored_user(c: &FoundContainer) -> Option<ContainerUser> {
    ContainerUser::deserialize(c.extension.get("user")?).ok()
}

/// The resources that are set on a container; those of its creation in a record of an earlier build.
fn stored_resources(c: &FoundContainer) -> Option<Resources> {
    let of_pod = || {
        let lists = ["containers", "init_containers"]
            .into_iter()
            .filter_map(|list| c.extension["pod"][list].as_array());
        let own = lists.flatten().find(|own| own["name"] == c.container.as_str())?;
        own.get("resources")
    };
    Resources::deserialize(c.extension.get("resources").or_else(of_pod)?).ok()
}

fn stored_pod(c: &FoundContainer) -> Option<Arc<Pod>> {
    let pod = c.extension.get("pod")?.clone();
    match serde_json::from_value(pod) {
        Ok(pod) => Some(Arc::new(pod)),
        Err(error) => {
            tracing::warn!(container = c.id.short(), %error, "cannot read the pod stored on a container");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_count_shows_kills_for_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (v1, v2) = (dir.path().join("v1"), dir.path().join("v2"));
        for d in [&v1, &v2] {
            std::fs::create_dir(d).unwrap();
        }
        let both = [v1.clone(), v2.clone()];
        assert!(!oom_killed(&both), "no file is no kill");
        std::fs::write(v1.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
            .unwrap();
        std::fs::write(v2.join("memory.events"), "low 0\noom 3\noom_kill 0\noom_group_kill 0\n").unwrap();
        assert!(!oom_killed(&both), "the limit was met, nobody was killed");
        std::fs::write(v2.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        assert!(oom_killed(&both));
        std::fs::remove_file(v2.join("memory.events")).unwrap();
        std::fs::write(v1.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
            .unwrap();
        assert!(oom_killed(&both));
    }
}
