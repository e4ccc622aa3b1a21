//! The [`NodeBackend`] of the node's API: pods by the status manager, logs by logd's files.

use super::{
    super::{local_api::LocalApi, status_manager::StatusManager},
    log_reader::{self, FollowReader},
};
use berth_core::{roots::Roots, status::ContainerState};
use berth_nodeapi::{Boxed, LogReader, LogRun, LogStart, NodeBackend, PodState, Unavailable};
use berth_server::{Interest, Published};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// The agent behind the node's API.
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) roots: Roots,
    pub(super) api: LocalApi,
    pub(super) status: Arc<StatusManager>,
    /// `/configz`.
    pub(super) configuration: Bytes,
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
    let all =
        [&spec["containers"], &spec["initContainers"]].into_iter().filter_map(Value::as_array).flatten();
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

impl NodeBackend for Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodState> {
        let (pod, status) = self.status.named(namespace, name)?;
        Some(PodState { pod, status })
    }

    fn runs(&self, run: &LogRun) -> bool {
        let Some((_, status)) = self.status.state(&run.pod) else { return false };
        let mut containers = status.containers.iter().chain(&status.init_containers);
        containers
            .any(|c| c.id.as_ref() == Some(&run.id) && matches!(c.state, ContainerState::Running { .. }))
    }

    fn output_closed<'a>(&'a self, run: &'a LogRun) -> Boxed<'a, ()> {
        Box::pin(async move {
            let changes = self.api.cache.subscribe(Interest::Pods);
            loop {
                self.api.logd.finished(&run.id).await;
                // A run that logd has not been asked for yet, after the agent's start, may go on.
                if !self.runs(run) {
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
            Ok(Box::new(FollowReader::new(follow)) as Box<dyn LogReader>)
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

    fn configuration(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { Ok(self.configuration.clone()) })
    }
}
