//! The sizes of claims, read and changed one by one where the node expands a volume.

use berth_core::volume::expand::{ClaimSize, SizeChange};
use berth_kube::{
    pool::Pool,
    request::{Patch, Request},
};
use berth_source::claim_size::{claim_size, size_patch};
use berth_sys::clock;
use std::{fmt, time::Duration};

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(10);

/// The claims of the API server.
#[derive(Clone)]
pub struct ClaimSizes {
    pool: Pool,
}

impl fmt::Debug for ClaimSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimSizes").finish_non_exhaustive()
    }
}

impl ClaimSizes {
    /// Asks on these connections.
    pub fn new(pool: Pool) -> ClaimSizes {
        ClaimSizes { pool }
    }

    /// What the claim says now.
    ///
    /// # Errors
    /// The API server's reason, or why it cannot be asked.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<ClaimSize, String> {
        self.send(Request::get(path(namespace, name, ""))).await
    }

    /// Changes the claim's status. Returns the claim after it.
    ///
    /// # Errors
    /// The API server's reason, or why it cannot be asked.
    pub async fn change(
        &self,
        (namespace, name): (&str, &str),
        claim: &ClaimSize,
        change: &SizeChange,
    ) -> Result<ClaimSize, String> {
        let patch = size_patch(claim, change, clock::wall()).to_string();
        self.send(Request::patch(path(namespace, name, "/status"), Patch::StrategicMerge, patch)).await
    }

    async fn send(&self, request: Request) -> Result<ClaimSize, String> {
        let answer = self.pool.send(&request.within(DEADLINE)).await.map_err(|e| e.reason())?;
        claim_size(&answer.body).map_err(|e| format!("cannot read a PersistentVolumeClaim: {e}"))
    }
}

fn path(namespace: &str, name: &str, below: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}{below}")
}
