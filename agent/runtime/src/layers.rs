//! Disk usage of layers, as the snapshotter counts it: committed ones belong to images, active ones are the
//! writable layers of containers.
//!
//! The snapshotter walks an active layer for each question, so the caller asks rarely.

use crate::{Error, Runtime, client::call};
use containerd_client::services::v1::snapshots::{Info, Kind, ListSnapshotsRequest, UsageRequest};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;

/// Deadline of one question.
const USAGE: Duration = Duration::from_secs(5);

/// Deadline of the list.
const LIST: Duration = Duration::from_secs(10);

/// The most layers that are asked about.
const MAX_LAYERS: usize = 4096;

/// Disk usage of a layer, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Inodes that the layer has.
    pub inodes: u64,
}

/// Disk usage of all layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayersUse {
    /// All layers of images together.
    pub images: LayerUse,
    /// Writable layers by snapshot key, which is the container's id.
    pub writable: BTreeMap<String, LayerUse>,
}

impl Runtime {
    /// Asks for the disk usage of every layer. A layer that is removed meanwhile is left out.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn layers_use(&self) -> Result<LayersUse, Error> {
        let mut found = LayersUse::default();
        let infos = self.snapshot_infos().await?.into_iter().map(|info| (info.kind(), info.name));
        let layers = infos.filter(|(kind, _)| *kind != Kind::View);
        for (kind, key) in layers.take(MAX_LAYERS) {
            let request = UsageRequest { snapshotter: self.roots().snapshotter.clone(), key: key.clone() };
            let mut service = self.client().snapshots();
            let asked = service.usage(self.client().request(request, USAGE));
            let usage = match call("ask usage of snapshot", &key, USAGE, asked).await {
                Ok(usage) => usage,
                Err(e) if e.kind() == crate::Kind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let number = |n: i64| u64::try_from(n).unwrap_or(0);
            let usage = LayerUse { bytes: number(usage.size), inodes: number(usage.inodes) };
            if kind == Kind::Committed {
                found.images.bytes = found.images.bytes.saturating_add(usage.bytes);
                found.images.inodes = found.images.inodes.saturating_add(usage.inodes);
            } else {
                found.writable.insert(key, usage);
            }
        }
        Ok(found)
    }

    /// containerd's records of all committed and active snapshots, and of the views.
    pub(crate) async fn snapshot_infos(&self) -> Result<Vec<Info>, Error> {
        let request =
            ListSnapshotsRequest { snapshotter: self.roots().snapshotter.clone(), filters: Vec::new() };
        let client = self.client();
        let mut service = client.snapshots();
        let list = service.list(client.request(request, LIST));
        let mut parts = call("list", "snapshots", LIST, list).await?;
        let mut layers = Vec::new();
        let read = async {
            while let Some(part) = parts.message().await? {
                layers.extend(part.info.into_iter().filter(|info| info.kind() != Kind::Unknown));
            }
            Ok(())
        };
        match timeout(LIST, read).await {
            Ok(Ok(())) => Ok(layers),
            Ok(Err(status)) => Err(crate::client::from_status("list", &"snapshots", LIST, status)),
            Err(_elapsed) => {
                Err(Error::Deadline { operation: "list", subject: "snapshots".to_owned(), after: LIST })
            }
        }
    }
}
