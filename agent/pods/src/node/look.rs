//! Looking at what is there: containerd's list, the sandbox records, the pod directories.

use super::{NodeHands, lock, start::exit_of};
use crate::{
    hands::{Process, Sight},
    manager::Found,
};
use berth_core::{
    ids::PodUid,
    model::Pod,
    plan::{ContainerSeen, Exit, Failure, Observed, Seen},
    time::Wall,
};
use berth_runtime::{FoundContainer, FoundState};
use std::{collections::BTreeMap, sync::Arc};

impl NodeHands {
    /// Everything of ours that containerd shows, by pod.
    pub(super) async fn look_at_all(&self) -> Result<BTreeMap<PodUid, Found>, Failure> {
        let runtime = self.runtime()?;
        let list = runtime.list().await.map_err(|e| Failure::new("RuntimeNotReady", e.chain()))?;
        let mut by_pod: BTreeMap<PodUid, Vec<FoundContainer>> = BTreeMap::new();
        for uid in self.sandboxes() {
            by_pod.entry(uid).or_default();
        }
        for c in list {
            by_pod.entry(c.pod.clone()).or_default().push(c);
        }
        let mut all = BTreeMap::new();
        for (uid, containers) in by_pod {
            let pod = containers.iter().find_map(stored_pod);
            all.insert(uid.clone(), Found { pod, sight: self.sight(&uid, containers)? });
        }
        Ok(all)
    }

    pub(super) async fn look_at(&self, uid: &PodUid) -> Result<Sight, Failure> {
        let runtime = self.runtime()?;
        let list = runtime.list().await.map_err(|e| Failure::new("RuntimeNotReady", e.chain()))?;
        self.sight(uid, list.into_iter().filter(|c| &c.pod == uid).collect())
    }

    fn sight(&self, uid: &PodUid, containers: Vec<FoundContainer>) -> Result<Sight, Failure> {
        let present = self.config.roots.pod_dir(uid).exists();
        let mut sight = Sight {
            seen: Observed {
                runtime_answers: true,
                sandbox: self.see_sandbox(uid)?,
                // Mounting is idempotent and cheap: after a restart it is done once more rather than trusted.
                volumes_mounted: false,
                volumes_present: present,
                containers: BTreeMap::new(),
            },
            processes: BTreeMap::new(),
        };
        for c in containers {
            lock(&self.owners).insert(c.id.clone(), uid.clone());
            if let FoundState::Running { pid, start_time, .. } = c.state {
                sight.processes.insert(c.id.clone(), Process { pid, start_time });
            }
            let task = !matches!(c.state, FoundState::NoTask);
            let other_boot = c.boot != self.config.boot;
            let state = match (&c.exit, c.state) {
                (Some(exit), _) => Seen::Recorded(exit_of(exit.clone())),
                (None, FoundState::Running { started_at, .. }) => {
                    Seen::Running { started_at: started_at.or(c.created_at).unwrap_or_default() }
                }
                (None, FoundState::Stopped { code, at }) => Seen::Ended(exit(code, at)),
                (None, FoundState::NoTask | FoundState::Created { .. }) if other_boot => {
                    Seen::Ended(Exit::unknown(berth_sys::clock::wall()))
                }
                (None, _) => Seen::NotStarted,
            };
            sight.seen.containers.insert(
                c.id.clone(),
                ContainerSeen {
                    container: c.container,
                    attempt: c.attempt,
                    incarnation: c.incarnation,
                    image_id: c.image_id,
                    state,
                    task,
                },
            );
        }
        Ok(sight)
    }
}

fn exit(code: i32, at: Wall) -> Exit {
    Exit { code, at, oom: false, reason: None, message: None, started_at: None }
}

fn stored_pod(c: &FoundContainer) -> Option<Arc<Pod>> {
    let pod = c.extension.get("pod")?.clone();
    match serde_json::from_value(pod) {
        Ok(pod) => Some(Arc::new(pod)),
        Err(error) => {
            tracing::warn!(container = c.id.short(), %error, "the pod stored on a container cannot be read");
            None
        }
    }
}
