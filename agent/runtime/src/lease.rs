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
use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

/// Cache of the pods whose lease exists, so that only a pod's first container makes the call.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashSet<PodUid>>);

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
        present(self.create_lease(&name(pod), (LABEL_POD_UID, pod.as_str())).await)?;
        lock(&self.leases().0).insert(pod.clone());
        Ok(())
    }

    /// Creates a lease with one label. The error is already-exists where there is one of this name.
    pub(crate) async fn create_lease(&self, lease: &str, label: (&str, &str)) -> Result<(), Error> {
        let client = self.client();
        let labels = HashMap::from([(label.0.to_owned(), label.1.to_owned())]);
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
        let client = self.client();
        let request = DeleteRequest { id: lease.to_owned(), sync: false };
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
