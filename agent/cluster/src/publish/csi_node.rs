//! This node's CSINode: which CSI drivers are registered, by which id they know the node, and how many volumes each
//! takes here; and on the Node their topology and ids. The scheduler, the controllers that attach volumes and those that
//! provision them read it.
//!
//! One task. It begins once the Node is known, writes upon each change of the drivers or of the Node's UID, and compares
//! every five minutes, for what another one has changed. The objects are computed by `berth_source::csi_node`.
//!
//! On failure: tried again after 0.1 s to 10 s. A driver whose topology contradicts the Node's labels is left out and
//! logged; the others are not affected.

use super::node::NewestNode;
use crate::{Task, rights, wait::backoff};
use berth_core::{error::Chain, ids::NodeName};
use berth_kube::{
    Error,
    pool::Pool,
    request::{Patch, Preconditions, Request},
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
    let writer = Writer { pool, node, object, known: BTreeSet::new(), conflicts: BTreeMap::new() };
    Task::spawn(run(writer, plugins, read))
}

async fn run<P>(mut writer: Writer, mut plugins: watch::Receiver<P>, read: fn(&P) -> Vec<CsiNodeDriver>) {
    let mut nodes = writer.object.changes();
    let (mut failures, mut told) = (0, None);
    loop {
        // A Node that was deleted takes its CSINode with it.
        let Ok(node) = nodes.wait_for(Option::is_some).await.map(|node| node.clone()) else { return };
        let uid = writer.object.uid();
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

struct Writer {
    pool: Pool,
    node: NodeName,
    object: NewestNode,
    /// The drivers that were registered since the agent started.
    known: BTreeSet<String>,
    /// The conflicts that were logged, by driver.
    conflicts: BTreeMap<String, String>,
}

impl Writer {
    /// Makes the Node and the CSINode say what the drivers say.
    async fn write(&mut self, node: &Value, uid: &str, drivers: Vec<CsiNodeDriver>) -> Result<(), Error> {
        self.known.extend(drivers.iter().map(|d| d.name.clone()));
        let drivers = self.without_conflicts(node, drivers);
        if let Some(patch) = node_patch(node, &drivers, &self.known) {
            let target = format!("/api/v1/nodes/{}", self.node);
            self.send(&Request::patch(target, Patch::StrategicMerge, patch.to_string())).await?;
        }
        for _ in 0..CHANGES {
            let one = format!("{PATH}/{}", self.node);
            let before = match self.send(&Request::get(one.clone())).await {
                Ok(before) => Some(before),
                Err(error) if error.refusal().is_some_and(|r| r.is_not_found()) => None,
                Err(error) => return Err(error),
            };
            if before.as_ref().is_some_and(|before| !before.is_object()) {
                tracing::debug!("the API server answered with no CSINode");
                return Ok(());
            }
            let change = csi_node_change(&self.node, uid, before.as_ref(), &drivers, &self.known);
            let request = match change {
                None => return Ok(()),
                Some(CsiNodeChange::Create(object)) => Request::create(PATH, object.to_string()),
                Some(CsiNodeChange::Put(object)) => Request::put(one, object.to_string()),
                Some(CsiNodeChange::Delete) => {
                    let version = before.as_ref().and_then(|b| b["metadata"]["resourceVersion"].as_str());
                    let resource_version = version.map(str::to_owned);
                    let precise = Preconditions { resource_version, ..Preconditions::default() };
                    Request::delete(one, None, &precise)
                }
            };
            match self.send(&request).await {
                // Somebody else wrote it, or an answer was lost: read it again.
                Err(error) if error.refusal().is_some_and(|r| r.is_conflict() || r.is_not_found()) => {}
                other => other.map(drop)?,
            }
        }
        // Another writer is at it as well: the next comparison comes.
        Ok(())
    }

    /// The drivers whose topology fits the Node and each other. The first by name wins.
    fn without_conflicts(&mut self, node: &Value, drivers: Vec<CsiNodeDriver>) -> Vec<CsiNodeDriver> {
        let (mut fitting, mut conflicts) = (Vec::<CsiNodeDriver>::new(), BTreeMap::new());
        for driver in drivers {
            match topology_conflict(&driver, node, fitting.iter()) {
                None => fitting.push(driver),
                Some(conflict) => {
                    let text = conflict.to_string();
                    if self.conflicts.get(&driver.name) != Some(&text) {
                        tracing::warn!("cannot show a CSI driver in the CSINode: {text}");
                    }
                    conflicts.insert(driver.name, text);
                }
            }
        }
        self.conflicts = conflicts;
        fitting
    }

    async fn send(&self, request: &Request) -> Result<Value, Error> {
        let answer = self.pool.send(&request.clone().within(DEADLINE)).await?;
        // What is no object is the caller's.
        Ok(serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}
