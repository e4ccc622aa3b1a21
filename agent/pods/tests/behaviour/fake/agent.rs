//! An agent: the manager of pods over the node in memory.

use super::{Node, reports::RecordedReports};
use berth_core::{
    ids::{BootId, NodeName, PodUid},
    model::{Objects, OriginKind, Pod},
    roots::Roots,
};
use berth_pods::{DesiredSet, ManagerConfig, MemoryStore};
use std::{collections::BTreeSet, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// An agent on a node. Dropping the value ends the agent at once, as SIGKILL does.
pub struct Agent {
    pub node: Arc<Node>,
    pub reports: Arc<RecordedReports>,
    pub desired: watch::Sender<Arc<DesiredSet>>,
    stop: Option<oneshot::Sender<()>>,
    manager: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.manager.abort();
    }
}

impl Agent {
    /// Starts an agent. The relist follows at once where containerd is up.
    pub async fn start(node: &Arc<Node>, store: &MemoryStore, desired: DesiredSet) -> Agent {
        let agent = Agent::start_unlisted(node, store, desired);
        if node.lock().up {
            node.back().await;
        }
        agent
    }

    /// Starts an agent that has not received a relist yet.
    pub fn start_unlisted(node: &Arc<Node>, store: &MemoryStore, desired: DesiredSet) -> Agent {
        let (incoming_tx, incoming) = mpsc::channel(1024);
        *node.incoming.lock().unwrap() = Some(incoming_tx);
        let reports = Arc::new(RecordedReports::new(node.bump.clone()));
        let (desired_tx, desired) = watch::channel(Arc::new(desired));
        let (stop, stopped) = oneshot::channel();
        let manager = tokio::spawn(berth_pods::run(ManagerConfig {
            executor: Arc::clone(node),
            reports: Arc::clone(&reports),
            store: store.clone(),
            desired,
            incoming,
            stop: stopped,
        }));
        Agent { node: Arc::clone(node), reports, desired: desired_tx, stop: Some(stop), manager }
    }

    /// Aborts the agent's tasks, which comes closest to SIGKILL.
    pub async fn kill(mut self) {
        self.manager.abort();
        // The join error of the aborted task is the expected result.
        (&mut self.manager).await.ok();
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.manager).await.unwrap();
    }

    pub fn want(&self, change: impl FnOnce(&mut DesiredSet)) {
        let mut set = DesiredSet::clone(&self.desired.borrow());
        change(&mut set);
        self.desired.send(Arc::new(set)).unwrap();
    }

    pub async fn ready(&self, pod: &PodUid) {
        self.node.until(&format!("{pod} ready"), |_| self.reports.is_ready(pod)).await;
    }

    /// Waits until nothing of the pod is left on the node or in the reports.
    pub async fn gone(&self, pod: &PodUid) {
        self.node
            .until(&format!("{pod} gone"), |s| !s.pods.contains_key(pod) && !self.reports.shows(pod))
            .await;
    }
}

pub fn wanted(pods: impl IntoIterator<Item = Pod>) -> DesiredSet {
    let pods = pods.into_iter().map(|p| (p.uid.clone(), p.into())).collect();
    DesiredSet { listed: everywhere(), pods, objects: Arc::new(Objects::listed()), ..DesiredSet::default() }
}

/// The listed origins of sources that have all listed.
pub fn everywhere() -> BTreeSet<OriginKind> {
    OriginKind::ALL.into()
}

/// A store in a temporary directory.
pub fn store() -> (tempfile::TempDir, MemoryStore) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-pods-test");
    let store = MemoryStore::open(&roots, &BootId::new("boot-1").unwrap()).unwrap();
    (dir, store)
}

/// Names of the memory files in a store's directory.
pub fn memory_files(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().join("run/memory")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
