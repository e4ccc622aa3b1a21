//! Unpacks an image's layers into snapshots by containerd's diff service.

use super::{Image, chain_ids};
use crate::{
    Runtime,
    client::{RECORD, UNPACK, call},
    error::{Error, absent, present},
};
use berth_sys::clock;
use containerd_client::{
    services::v1::{
        ApplyRequest,
        snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest},
    },
    types::Descriptor,
};

impl Runtime {
    /// Unpacks the image's layers that are not yet unpacked for the node's snapshotter: an image imported by
    /// another tool may lack them. `lease` holds the new snapshots.
    pub(crate) async fn unpack(&self, image: &Image, lease: &str) -> Result<(), Error> {
        if !image.chain_id.is_empty() && self.has_snapshot(&image.chain_id).await? {
            // A snapshot has all those below it.
            return Ok(());
        }
        let target = Descriptor { digest: image.target_digest.clone(), ..Descriptor::default() };
        let content = self.image_content(&image.name, &target).await?;
        let mut parent = String::new();
        let chain = chain_ids(&content.diff_ids);
        for ((chain_id, diff_id), layer) in chain.iter().zip(&content.diff_ids).zip(&content.layers) {
            if !self.has_snapshot(chain_id).await? {
                self.apply(&image.name, layer, diff_id, &parent, chain_id, lease).await?;
            }
            parent.clone_from(chain_id);
        }
        Ok(())
    }

    pub(super) async fn has_snapshot(&self, key: &str) -> Result<bool, Error> {
        let client = self.client();
        let request =
            StatSnapshotRequest { snapshotter: self.roots().snapshotter.clone(), key: key.to_owned() };
        let found = absent(
            call("look up snapshot", key, RECORD, client.snapshots().stat(client.request(request, RECORD)))
                .await,
        )?;
        Ok(found.is_some())
    }

    async fn apply(
        &self,
        image: &str,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain_id: &str,
        lease: &str,
    ) -> Result<(), Error> {
        let client = self.client();
        let snapshotter = self.roots().snapshotter.clone();
        let key = format!("berth-unpack-{:x} {chain_id}", clock::wall().0);
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            ..PrepareSnapshotRequest::default()
        };
        let prepared = call(
            "prepare snapshot",
            &key,
            RECORD,
            client.snapshots().prepare(client.leased(request, RECORD, lease)),
        )
        .await?;
        let request =
            ApplyRequest { diff: Some(layer.clone()), mounts: prepared.mounts, ..ApplyRequest::default() };
        let applied = call(
            "unpack layer",
            &layer.digest,
            UNPACK,
            client.diff().apply(client.leased(request, UNPACK, lease)),
        )
        .await?;
        let digest = applied.applied.map(|d| d.digest).unwrap_or_default();
        if digest != diff_id {
            return Err(Error::Image {
                image: image.to_owned(),
                reason: format!("layer {} unpacks to {digest}, not {diff_id}", layer.digest),
            });
        }
        let request = CommitSnapshotRequest {
            snapshotter,
            name: chain_id.to_owned(),
            key,
            ..CommitSnapshotRequest::default()
        };
        let mut service = client.snapshots();
        let commit = service.commit(client.leased(request, RECORD, lease));
        // Another client may have unpacked the same layer in the meantime; its snapshot is equivalent.
        present(call("commit snapshot", chain_id, RECORD, commit).await)?;
        Ok(())
    }
}
