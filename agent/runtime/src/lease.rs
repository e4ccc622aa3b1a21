//! One lease for each pod: containerd's garbage collection spares the resources of a pod as long as its lease
//! exists.

use crate::{
    Runtime,
    client::{RECORD, call},
    error::{Error, absent, present},
    record::LABEL_POD_UID,
};
use berth_core::{ids::PodUid, sync::lock};
use containerd_client::services::v1::{CreateRequest, DeleteRequest, ListRequest};
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

/// Cache of the pods whose lease exists, so that only a pod's first container makes the call.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashSet<PodUid>>);

/// containerd's label for the time at which a lease ends by itself (containerd, docs/garbage-collection.md).
const LABEL_EXPIRES: &str = "containerd.io/gc.expire";

/// The label by which a lease ends by itself after this time.
pub(crate) fn expiry(after: Duration) -> (&'static str, String) {
    (LABEL_EXPIRES, (Timestamp::now() + after).to_string())
}

/// Name of a pod's lease.
pub(crate) fn name(pod: &PodUid) -> String {
    format!("berth-{pod}")
}

impl Runtime {
    /// Creates the pod's lease, unless it exists. The start of a container does the same.
    pub async fn ensure_lease(&self, pod: &PodUid) -> Result<(), Error> {
        if lock(&self.leases().0).contains(pod) {
            return Ok(());
        }
        let label = (LABEL_POD_UID, pod.to_string());
        present(self.create_lease(&name(pod), &[label]).await)?;
        lock(&self.leases().0).insert(pod.clone());
        Ok(())
    }

    /// Creates a lease with labels. The error is already-exists where there is one of this name.
    pub(crate) async fn create_lease(
        &self,
        lease: &str,
        labels: &[(&'static str, String)],
    ) -> Result<(), Error> {
        let client = self.client();
        let labels: HashMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let request = CreateRequest { id: lease.to_owned(), labels };
        let mut service = client.leases();
        call("make lease", lease, RECORD, service.create(client.request(request, RECORD))).await?;
        Ok(())
    }

    /// Deletes the pod's lease; containerd collects all resources without another holder. Succeeds where
    /// there is no lease.
    pub async fn release_lease(&self, pod: &PodUid) -> Result<(), Error> {
        lock(&self.leases().0).remove(pod);
        self.delete_lease(&name(pod)).await
    }

    /// Deletes a lease. Succeeds where there is no lease of this name.
    pub(crate) async fn delete_lease(&self, lease: &str) -> Result<(), Error> {
        self.end_lease(lease, false).await
    }

    /// Deletes a lease; with `sync`, what it alone held is gone afterwards.
    pub(crate) async fn end_lease(&self, lease: &str, sync: bool) -> Result<(), Error> {
        let client = self.client();
        let request = DeleteRequest { id: lease.to_owned(), sync };
        let mut service = client.leases();
        absent(call("release lease", lease, RECORD, service.delete(client.request(request, RECORD))).await)?;
        Ok(())
    }

    /// The pods that hold a lease, including pods unknown to the agent.
    pub async fn leased_pods(&self) -> Result<Vec<PodUid>, Error> {
        let client = self.client();
        let request = ListRequest { filters: vec![format!("labels.\"{LABEL_POD_UID}\"")] };
        let mut service = client.leases();
        let reply = call("list", "leases", RECORD, service.list(client.request(request, RECORD))).await?;
        // A lease whose label is no UID is not Berth's.
        Ok(reply
            .leases
            .into_iter()
            .filter_map(|l| l.labels.get(LABEL_POD_UID).and_then(|uid| PodUid::new(uid.clone()).ok()))
            .collect())
    }
}
