//! What the node reports to the API server: its lease, its Node, the statuses of its pods, and events.
//!
//! Each submodule is one task. A task ends when its handle is dropped. None waits for another: the lease is renewed
//! while the API server is slow for the rest.
//!
//! What to send next is decided by pure functions; the tasks send the requests and give the answers back.

pub mod csi_node;
pub mod events;
pub mod lease;
pub mod mirrors;
pub mod node;
pub mod pods;

use berth_core::{ids::PodUid, model::Pod};
use berth_kube::{
    rate_limit::TokenBucket,
    reflector::{Bad, Meta},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Requests a second and at once, the kubelet's `kubeAPIQPS` and `kubeAPIBurst`.
const RATE: (f64, u32) = (50.0, 100);

/// The reports on the pods of this node, for the publisher.
pub trait PodReports: Send + Sync + 'static {
    /// Waits until a report has changed since the last [`PodReports::take_dirty`].
    fn dirty(&self) -> impl Future<Output = ()> + Send;

    /// Takes the pods whose report has changed since the last call.
    fn take_dirty(&self) -> BTreeSet<PodUid>;

    /// The newest report on a pod. `None` where the node has nothing to say of it yet. The report on a pod that is torn
    /// down stays until the API server has the pod no more.
    fn report(&self, uid: &PodUid) -> Option<PodToPublish>;
}

/// The report on one pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodToPublish {
    /// The pod that the report is about.
    pub pod: Arc<Pod>,
    /// Its status, as `berth_source::status::pod_object` makes it.
    pub status: Value,
    /// Whether the pod was observed since the agent started. Another report is not published.
    pub observed: bool,
    /// Whether a container of the pod may run.
    pub may_run: bool,
    /// Whether no process, network and volume of the pod is left on the node. Records of its containers may be.
    pub reclaimed: bool,
}

/// Reads an object with its identity, for a reflector whose consumer keeps the JSON.
fn read_object(json: &[u8]) -> Result<(Meta, Value), Bad> {
    let bad = |e: serde_json::Error| Bad(e.to_string());
    let object: Value = serde_json::from_slice(json).map_err(bad)?;
    let meta = Meta::deserialize(&object["metadata"]).map_err(bad)?;
    Ok((meta, object))
}

/// The rate of the requests about pods. Clones share it.
#[derive(Debug, Clone)]
pub struct RateLimit(Arc<Mutex<TokenBucket>>);

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit::new(RATE.0, RATE.1)
    }
}

impl RateLimit {
    /// A limit of its own.
    pub fn new(per_second: f64, burst: u32) -> RateLimit {
        RateLimit(Arc::new(Mutex::new(TokenBucket::new(per_second, burst))))
    }

    /// Takes a place and waits for it. A caller that gives up keeps its place taken.
    pub async fn wait(&self) {
        let wait = berth_core::sync::lock(&self.0).take(berth_sys::clock::monotonic());
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
    }
}
