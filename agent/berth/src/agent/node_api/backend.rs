//! The [`NodeBackend`] of the node's API: pods by the status manager, logs by logd's files.

use super::{
    super::{local_api::LocalApi, status_manager::StatusManager},
    log_reader::{self, FollowReader},
    pages::Started,
};
use berth_core::{
    ids::ContainerId,
    roots::Roots,
    status::{ContainerState, PodStatus},
    time::Wall,
};
use berth_logd::reader::LogChanges;
use berth_nodeapi::{Boxed, LogReader, LogRun, LogStart, NodeBackend, PodState, Unavailable};
use berth_server::{Interest, Published};
use berth_sys::clock;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, time::timeout};

/// Longest time from the end of a run until all of its output is in its log.
const COMPLETE: Duration = Duration::from_secs(2);

/// The agent behind the node's API.
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) roots: Roots,
    pub(super) api: LocalApi,
    pub(super) status: Arc<StatusManager>,
    /// `/configz`.
    pub(super) configuration: Bytes,
    /// Changes of logs, for those who follow them; `None` where the kernel gives no inotify instance.
    pub(super) log_changes: Option<Arc<LogChanges>>,
    /// `/flagz`.
    pub(super) flags: String,
    /// For `/statusz`.
    pub(super) started: Started,
}

/// A `v1.PodList`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodList<T> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    items: Vec<T>,
}

fn list<T: Serialize>(items: Vec<T>) -> Result<Bytes, Unavailable> {
    let list = PodList { kind: "PodList", api_version: "v1", metadata: json!({}), items };
    serde_json::to_vec(&list)
        .map(Bytes::from)
        .map_err(|e| Unavailable(format!("cannot encode the pods: {e}")))
}

/// A pod as the runtime knows it; `None` where no container runs.
fn running(pod: &Published) -> Option<Value> {
    let view = &pod.view;
    let object = pod.object()?;
    let spec = &object["spec"];
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let all = lists.iter().filter_map(|list| spec[*list].as_array()).flatten();
    let runs = |c: &&Value| view.containers.iter().any(|running| c["name"] == running.name.as_str());
    let containers: Vec<Value> = all
        .filter(runs)
        .map(|c| json!({ "name": c["name"], "image": c["image"], "resources": {} }))
        .collect();
    (!containers.is_empty()).then(|| {
        json!({
            "metadata": { "name": view.key.name, "namespace": view.key.namespace, "uid": view.uid },
            "spec": { "containers": containers },
            "status": {},
        })
    })
}

/// How much longer the output of a run may take to be complete; `None` while it runs. A run that has ended is kept open
/// while its container waits for the next one.
fn rest(status: Option<&PodStatus>, run: &ContainerId, now: Wall) -> Option<Duration> {
    let all = status.into_iter().flat_map(PodStatus::all_containers);
    for container in all {
        if container.id.as_ref() == Some(run) && matches!(container.state, ContainerState::Running { .. }) {
            return None;
        }
        let current = match &container.state {
            ContainerState::Terminated(ended) => Some(ended),
            _ => None,
        };
        let mut ended = current.into_iter().chain(&container.last_state);
        if let Some(ended) = ended.find(|ended| ended.id.as_ref() == Some(run)) {
            let since = ended.finished_at.map_or(0, |at| now.0.saturating_sub(at.0));
            return Some(COMPLETE.saturating_sub(Duration::from_nanos(since.try_into().unwrap_or_default())));
        }
    }
    Some(COMPLETE)
}

impl NodeBackend for Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodState> {
        let (pod, status) = self.status.named(namespace, name)?;
        Some(PodState { pod, status })
    }

    fn runs(&self, run: &LogRun) -> bool {
        let status = self.status.state(&run.pod).map(|(_, status)| status);
        rest(status.as_deref(), &run.id, clock::wall()).is_none()
    }

    fn output_closed<'a>(&'a self, run: &'a LogRun) -> Boxed<'a, ()> {
        Box::pin(async move {
            let changes = self.api.cache.subscribe(Interest::Pods);
            loop {
                let status = self.status.state(&run.pod).map(|(_, status)| status);
                if let Some(left) = rest(status.as_deref(), &run.id, clock::wall()) {
                    // Past the deadline what is there is all.
                    drop(timeout(left, self.api.logd.finished(&run.id)).await);
                    return;
                }
                changes.changed().await;
                while changes.take().is_some() {}
            }
        })
    }

    fn open_log<'a>(
        &'a self,
        run: &'a LogRun,
        from: LogStart,
    ) -> Boxed<'a, Result<Box<dyn LogReader>, Unavailable>> {
        let (roots, run) = (self.roots.clone(), run.clone());
        Box::pin(async move {
            let opening = spawn_blocking(move || log_reader::open(&roots, &run, from));
            let follow = opening.await.map_err(|e| Unavailable(format!("cannot open the log: {e}")))??;
            Ok(Box::new(FollowReader::new(follow, self.log_changes.clone())) as Box<dyn LogReader>)
        })
    }

    fn sync_loop(&self) -> Result<(), String> {
        if self.api.pods.is_closed() { Err("the manager of pods has ended".to_owned()) } else { Ok(()) }
    }

    fn pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async {
            let pods = self.api.cache.pods();
            list(pods.iter().filter_map(|pod| pod.object()).collect())
        })
    }

    fn running_pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { list(self.api.cache.pods().iter().filter_map(|pod| running(pod)).collect()) })
    }

    fn flags(&self) -> String {
        self.flags.clone()
    }

    fn status_page(&self) -> String {
        self.started.page()
    }

    fn configuration(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { Ok(self.configuration.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{
        model::QosClass,
        status::{ContainerStatus, Phase, Terminated, Truth},
    };

    fn hash(letter: &str) -> ContainerId {
        letter.repeat(64).parse().unwrap()
    }

    #[test]
    fn a_run_that_has_ended_is_complete_soon_although_its_container_waits_for_the_next_one() {
        let second = |n: i64| Wall(n * 1_000_000_000);
        let ended = |letter, at| Terminated {
            exit_code: 1,
            reason: "Error".into(),
            message: None,
            started_at: None,
            finished_at: at,
            id: Some(hash(letter)),
        };
        let told = |state, last, run: &str| {
            let mut status = PodStatus::new(Phase::Running, QosClass::BestEffort);
            status.containers.push(ContainerStatus {
                name: "c".parse().unwrap(),
                image: "i".into(),
                image_id: String::new(),
                id: Some(hash("a")),
                ready: Truth::False,
                started: None,
                restart_count: 3,
                state,
                last_state: last,
                user: None,
                resources: None,
            });
            rest(Some(&status), &hash(run), second(100))
        };
        let running = || ContainerState::Running { started_at: second(1) };
        let waiting = || ContainerState::Waiting { reason: "CrashLoopBackOff".into(), message: None };
        let terminated = |at| ContainerState::Terminated(ended("a", Some(second(at))));
        assert_eq!(told(running(), None, "a"), None);
        assert_eq!(told(terminated(99), None, "a"), Some(Duration::from_secs(1)));
        assert_eq!(told(terminated(10), None, "a"), Some(Duration::ZERO));
        assert_eq!(told(waiting(), Some(ended("a", Some(second(40)))), "a"), Some(Duration::ZERO));
        assert_eq!(told(running(), Some(ended("b", None)), "b"), Some(COMPLETE));
        assert_eq!(told(running(), None, "b"), Some(COMPLETE));
        // The clock was set back meanwhile.
        assert_eq!(told(terminated(200), None, "a"), Some(COMPLETE));
        assert_eq!(rest(None, &hash("a"), second(1)), Some(COMPLETE));
    }
}
