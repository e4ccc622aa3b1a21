//! This node's CSINode: which CSI drivers are registered, by which id they know the node, and how many volumes each
//! takes here; and on the Node their topology and ids. The scheduler, the controllers that attach volumes and those that
//! provision them read it.
//!
//! One task. It begins once the Node is known, writes upon each change of the drivers or of the Node's UID, and compares
//! every five minutes, for what another one has changed. The objects are computed by `berth_source::csi_node`.
//!
//! On failure: tried again after 0.1 s to 10 s. A driver whose topology contradicts the Node's labels, or whose name, id
//! or topology the API server refuses, is left out and logged; the others are not affected.

use super::node::NewestNode;
use crate::{Task, rights, wait::backoff};
use berth_core::{error::Chain, ids::NodeName};
use berth_kube::{
    Error,
    pool::Pool,
    request::{Answer, Patch, Preconditions, Request},
    status::Refusal,
};
use berth_source::csi_node::{CsiNodeChange, CsiNodeDriver, csi_node_change, node_patch, topology_conflict};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};

/// Time until the objects are compared again.
const EVERY: Duration = Duration::from_secs(300);

/// First and longest wait between two tries.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(10);

/// The most changes in a row: deleted, created, an entry removed, an entry added, and one more of another writer.
const CHANGES: usize = 5;

const PATH: &str = "/apis/storage.k8s.io/v1/csinodes";

/// Starts to write the CSINode of `node`. `read` reads the drivers from what is watched.
pub fn start<P: Send + Sync + 'static>(
    pool: Pool,
    node: NodeName,
    object: NewestNode,
    plugins: watch::Receiver<P>,
    read: fn(&P) -> Vec<CsiNodeDriver>,
) -> Task {
    let api = Server { pool, node: node.clone() };
    let writer = Writer { api, node, known: BTreeSet::new(), refused: BTreeMap::new() };
    Task::spawn(run(writer, object, plugins, read))
}

async fn run<P>(
    mut writer: Writer<Server>,
    object: NewestNode,
    mut plugins: watch::Receiver<P>,
    read: fn(&P) -> Vec<CsiNodeDriver>,
) {
    let mut nodes = object.changes();
    let (mut failures, mut told) = (0, None);
    loop {
        // A Node that was deleted takes its CSINode with it.
        let Ok(node) = nodes.wait_for(Option::is_some).await.map(|node| node.clone()) else { return };
        let uid = object.uid();
        let drivers = read(&plugins.borrow_and_update());
        let written = match (&node, &uid) {
            (Some(node), Some(uid)) => writer.write(node, uid, drivers).await,
            _ => Ok(()),
        };
        let wait = match written {
            Ok(()) => {
                if told.take().is_some() {
                    tracing::info!("the CSINode {} is written again", writer.node);
                }
                failures = 0;
                EVERY
            }
            Err(error) => {
                failures += 1;
                let remedy = rights::remedy("csinodes", error.refusal(), &writer.node);
                let why = format!("{}{remedy}", Chain(&error));
                if told.as_ref() != Some(&why) {
                    tracing::warn!("cannot write the CSINode {}: {why}", writer.node);
                    told = Some(why);
                }
                let asked = error.refusal().and_then(|refusal| refusal.retry_after);
                asked.unwrap_or_else(|| backoff(failures, WAITS.0, WAITS.1))
            }
        };
        let of_another_node = |now: &Option<std::sync::Arc<Value>>| {
            now.as_ref().is_some_and(|now| now["metadata"]["uid"].as_str() != uid.as_deref())
        };
        tokio::select! {
            changed = plugins.changed() => if changed.is_err() {
                return;
            },
            changed = nodes.wait_for(of_another_node) => if changed.is_err() {
                return;
            },
            () = sleep(wait) => {}
        }
    }
}

/// What the API server is asked for.
trait CsiNodeApi: Send + Sync + 'static {
    /// Changes the Node's labels and annotations.
    fn patch_node(&self, patch: &Value) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads the CSINode; `None` if there is none.
    fn read(&self) -> impl Future<Output = Result<Option<Value>, Error>> + Send;

    /// Changes the CSINode, which was `before`.
    fn change(
        &self,
        change: CsiNodeChange,
        before: Option<&Value>,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// The API server itself.
struct Server {
    pool: Pool,
    node: NodeName,
}

impl Server {
    fn path(&self) -> String {
        format!("{PATH}/{}", self.node)
    }

    async fn send(&self, request: Request) -> Result<Answer, Error> {
        self.pool.send(&request.within(DEADLINE)).await
    }
}

impl CsiNodeApi for Server {
    async fn patch_node(&self, patch: &Value) -> Result<(), Error> {
        let target = format!("/api/v1/nodes/{}", self.node);
        self.send(Request::patch(target, Patch::StrategicMerge, patch.to_string())).await.map(drop)
    }

    async fn read(&self) -> Result<Option<Value>, Error> {
        match self.send(Request::get(self.path())).await {
            Err(error) if error.refusal().is_some_and(Refusal::is_not_found) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => serde_json::from_slice(&answer.body).map(Some).map_err(|e| Error::Broken {
                method: "GET".to_owned(),
                path: self.path(),
                reason: format!("cannot read the answer as an object: {e}"),
                connection: false,
            }),
        }
    }

    async fn change(&self, change: CsiNodeChange, before: Option<&Value>) -> Result<(), Error> {
        let request = match change {
            CsiNodeChange::Create(object) => Request::create(PATH, object.to_string()),
            CsiNodeChange::Put(object) => Request::put(self.path(), object.to_string()),
            CsiNodeChange::Delete => {
                let version = before.and_then(|b| b["metadata"]["resourceVersion"].as_str());
                let resource_version = version.map(str::to_owned);
                let precise = Preconditions { resource_version, ..Preconditions::default() };
                Request::delete(self.path(), None, &precise)
            }
        };
        self.send(request).await.map(drop)
    }
}

struct Writer<A> {
    api: A,
    node: NodeName,
    /// The drivers that were registered since the agent started.
    known: BTreeSet<String>,
    /// Why drivers are not shown, by name, as it was logged.
    refused: BTreeMap<String, String>,
}

impl<A: CsiNodeApi> Writer<A> {
    /// Makes the Node and the CSINode say what the drivers say. A driver that contradicts the Node, or that the API
    /// server refuses, is left out, and the others are not affected.
    async fn write(&mut self, node: &Value, uid: &str, drivers: Vec<CsiNodeDriver>) -> Result<(), Error> {
        self.known.extend(drivers.iter().map(|d| d.name.clone()));
        let mut refused = BTreeMap::new();
        let mut fitting = Vec::<CsiNodeDriver>::new();
        for driver in drivers {
            match topology_conflict(&driver, node, fitting.iter()) {
                None => fitting.push(driver),
                Some(conflict) => drop(refused.insert(driver.name, conflict.to_string())),
            }
        }
        let mut written = self.write_all(node, uid, &fitting).await;
        if written.as_ref().is_err_and(is_about_the_drivers) && !fitting.is_empty() {
            let mut accepted = Vec::new();
            for driver in fitting {
                let name = driver.name.clone();
                accepted.push(driver);
                match self.write_all(node, uid, &accepted).await {
                    Err(error) if is_about_the_drivers(&error) => {
                        accepted.pop();
                        refused.insert(name.clone(), format!("driver {name} is refused: {}", Chain(&error)));
                    }
                    other => other?,
                }
            }
            // The last one may have been refused halfway.
            written = self.write_all(node, uid, &accepted).await;
        }
        for (name, why) in &refused {
            if self.refused.get(name) != Some(why) {
                tracing::warn!("cannot show a CSI driver in the CSINode: {why}");
            }
        }
        self.refused = refused;
        written
    }

    async fn write_all(&self, node: &Value, uid: &str, drivers: &[CsiNodeDriver]) -> Result<(), Error> {
        if let Some(patch) = node_patch(node, drivers, &self.known) {
            self.api.patch_node(&patch).await?;
        }
        for _ in 0..CHANGES {
            let before = self.api.read().await?;
            if before.as_ref().is_some_and(|before| !before.is_object()) {
                tracing::debug!("the API server answered with no CSINode");
                return Ok(());
            }
            let change = csi_node_change(&self.node, uid, before.as_ref(), drivers, &self.known);
            let Some(change) = change else { return Ok(()) };
            match self.api.change(change, before.as_ref()).await {
                // Somebody else wrote it, or an answer was lost: read it again.
                Err(error) if error.refusal().is_some_and(|r| r.is_conflict() || r.is_not_found()) => {}
                other => other?,
            }
        }
        // Another writer is at it as well: the next comparison comes.
        Ok(())
    }
}

/// Whether the API server takes offence at what a driver says: its name, id or topology (400, 403, 422).
fn is_about_the_drivers(error: &Error) -> bool {
    error.refusal().is_some_and(|refusal| matches!(refusal.code, 400 | 403 | 422))
}

#[cfg(test)]
mod tests;
