//! The images of containerd's store with all their names, who uses each, and their removal: what image collection needs.
//!
//! Images are told apart by the digest of their configuration, as the CRI does, so that all names of one image are
//! removed together. An image that is not complete for this machine is none of this list: nothing is known of its users.

use super::Record;
use crate::{
    Runtime,
    client::{LIST, QUERY, RECORD, WORK, call, from_status},
    error::{Error, absent, present},
    lease::expiry,
    pull::LABEL_PULL,
    record::{self, LABEL_POD_UID},
};
use berth_core::ids::ContainerId;
use containerd_client::services::v1::{
    DeleteImageRequest, DeleteRequest, ListContainersRequest, ListContentRequest, ListRequest,
    ListResourcesRequest, PluginsRequest,
    snapshots::{Kind, RemoveSnapshotRequest},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

/// The label of an image that is never to be removed, as containerd's CRI plugin reads it.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Deadline of a removal, which waits for containerd's garbage collection.
const COLLECT: Duration = Duration::from_secs(120);

/// Name of the lease whose end collects garbage.
const GARBAGE: &str = "berth-collect";

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The digest of its configuration.
    pub id: String,
    /// All its names, sorted.
    pub names: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// Whether it is marked never to be removed.
    pub pinned: bool,
    /// Whether a container's record or an active snapshot is based on it.
    pub used: bool,
    /// Whether a lease that is not Berth's holds it.
    pub leased: bool,
    /// When its first name was made, in nanoseconds since 1970.
    pub created_at: Option<berth_core::time::Wall>,
}

/// What the store holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUse {
    /// Blobs: manifests, configurations, compressed layers.
    pub content: u64,
    /// Unpacked layers of images.
    pub snapshots: u64,
}

impl StoreUse {
    /// All bytes.
    pub fn bytes(self) -> u64 {
        self.content.saturating_add(self.snapshots)
    }
}

/// Who uses images.
#[derive(Debug, Default)]
struct Users {
    /// Names of images, and image ids, on records of containers.
    names: BTreeSet<String>,
    /// Snapshots on which active ones are based.
    parents: BTreeSet<String>,
    /// Digests, snapshots and names that leases of others hold.
    leased: BTreeSet<String>,
}

impl Users {
    fn uses(&self, image: &Known) -> bool {
        let named = |name: &String| self.names.contains(name);
        named(&image.id)
            || image.names.iter().any(named)
            || image
                .targets
                .iter()
                .any(|target| self.names.iter().any(|n| n.ends_with(&format!("@{target}"))))
            || (!image.chain_id.is_empty() && self.parents.contains(&image.chain_id))
    }

    fn leases(&self, image: &Known) -> bool {
        let held = |name: &String| self.leased.contains(name);
        held(&image.id)
            || image.names.iter().any(held)
            || image.targets.iter().any(held)
            || (!image.chain_id.is_empty() && held(&image.chain_id))
    }
}

/// An image before its users are known.
#[derive(Debug)]
struct Known {
    id: String,
    names: Vec<String>,
    targets: BTreeSet<String>,
    chain_id: String,
    size: u64,
    pinned: bool,
    created_at: Option<berth_core::time::Wall>,
}

impl Runtime {
    /// The complete images of the store.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn stored_images(&self) -> Result<Vec<StoredImage>, Error> {
        // Users come after the images: an image that is pulled in between is not in the list yet.
        let known = self.known_images().await?;
        let users = self.image_users().await?;
        let stored = |image: Known| StoredImage {
            used: users.uses(&image),
            leased: users.leases(&image),
            id: image.id,
            names: image.names,
            size: image.size,
            pinned: image.pinned,
            created_at: image.created_at,
        };
        Ok(known.into_values().map(stored).collect())
    }

    async fn known_images(&self) -> Result<BTreeMap<String, Known>, Error> {
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut records = self.image_records().await?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        for record in records {
            let pinned = is_pinned(&record);
            let created_at = crate::wire::wall(record.created_at.as_ref());
            let Some(target) = record.target else { continue };
            let content = match self.image_content(&record.name, &target).await {
                Ok(content) => content,
                Err(e) if e.is_unknown() => return Err(e),
                Err(_incomplete) => continue,
            };
            let image = known.entry(content.config_digest.clone()).or_insert_with(|| Known {
                id: content.config_digest.clone(),
                names: Vec::new(),
                targets: BTreeSet::new(),
                chain_id: content.chain_id.clone(),
                size: content.size,
                pinned: false,
                created_at: None,
            });
            image.names.push(record.name);
            image.targets.insert(target.digest);
            image.pinned |= pinned;
            image.created_at = image.created_at.into_iter().chain(created_at).min();
        }
        Ok(known)
    }

    async fn image_users(&self) -> Result<Users, Error> {
        let mut users = Users { leased: self.foreign_leases().await?, ..Users::default() };
        for info in self.snapshot_infos().await? {
            if info.kind() != Kind::Committed {
                users.parents.insert(info.parent);
            }
        }
        let client = self.client();
        let request = ListContainersRequest { filters: Vec::new() };
        let mut service = client.containers();
        let mut stream =
            call("list", "containers", RECORD, service.list_stream(client.request(request, LIST))).await?;
        loop {
            let message = stream.message().await.map_err(|s| from_status("list", &"containers", LIST, s))?;
            let Some(message) = message else { return Ok(users) };
            let Some(container) = message.container else { continue };
            // An unreadable record of Berth's still has the image's name.
            if let Ok(Some(found)) = record::read(&container.id, &container.extensions) {
                users.names.insert(found.mark.image_id);
            }
            users.names.insert(container.image);
        }
    }

    /// The digests, snapshots and names that leases hold which are neither of a pod nor of a pull of Berth's.
    async fn foreign_leases(&self) -> Result<BTreeSet<String>, Error> {
        let client = self.client();
        let mut service = client.leases();
        let list = service.list(client.request(ListRequest { filters: Vec::new() }, RECORD));
        let leases = call("list", "leases", RECORD, list).await?.leases;
        let foreign = leases.into_iter().filter(|lease| {
            !lease.labels.contains_key(LABEL_POD_UID) && !lease.labels.contains_key(LABEL_PULL)
        });
        let mut held = BTreeSet::new();
        for lease in foreign {
            let request = ListResourcesRequest { id: lease.id.clone() };
            let list = service.list_resources(client.request(request, QUERY));
            // A lease that ended meanwhile holds nothing.
            let found = absent(call("list resources of lease", &lease.id, QUERY, list).await)?;
            held.extend(found.into_iter().flat_map(|r| r.resources).map(|r| r.id));
        }
        Ok(held)
    }

    /// Removes these names of an image. With the last one, what nothing else holds is gone afterwards.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn remove_names(&self, names: &[String]) -> Result<(), Error> {
        for (n, name) in names.iter().enumerate() {
            let client = self.client();
            let request = DeleteImageRequest {
                name: name.clone(),
                sync: n + 1 == names.len(),
                ..DeleteImageRequest::default()
            };
            let mut service = client.images();
            let delete = service.delete(client.request(request, COLLECT));
            absent(call("remove image", name, COLLECT, delete).await)?;
        }
        Ok(())
    }

    /// Removes the writable layer of a container that has ended. Its record, with its exit, and its output stay.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn remove_layer(&self, id: &ContainerId) -> Result<(), Error> {
        let client = self.client();
        let request =
            RemoveSnapshotRequest { snapshotter: self.roots().snapshotter.clone(), key: id.to_string() };
        let mut service = client.snapshots();
        absent(call("remove snapshot", id, WORK, service.remove(client.request(request, WORK))).await)?;
        Ok(())
    }

    /// Collects what nothing holds, such as the directories of removed layers: containerd does that later by itself.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn collect_garbage(&self) -> Result<(), Error> {
        // The synchronous end of a lease is the way to ask for it.
        present(self.create_lease(GARBAGE, &[expiry(COLLECT)]).await)?;
        let client = self.client();
        let request = DeleteRequest { id: GARBAGE.to_owned(), sync: true };
        let mut service = client.leases();
        let delete = service.delete(client.request(request, COLLECT));
        absent(call("release lease", GARBAGE, COLLECT, delete).await)?;
        Ok(())
    }

    /// The ids of all containers that have a writable layer.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn writable_layers(&self) -> Result<BTreeSet<String>, Error> {
        let infos = self.snapshot_infos().await?;
        Ok(infos.into_iter().filter(|info| info.kind() == Kind::Active).map(|info| info.name).collect())
    }

    /// The directory of the snapshotter, which is on the file system of the images; `None` where containerd does not
    /// tell it.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn image_dir(&self) -> Result<Option<PathBuf>, Error> {
        let client = self.client();
        let mut service = client.introspection();
        let filter = format!("type==io.containerd.snapshotter.v1,id=={}", self.roots().snapshotter);
        let request = client.request(PluginsRequest { filters: vec![filter] }, QUERY);
        let reply = call("list", "plugins", QUERY, service.plugins(request)).await?;
        Ok(reply.plugins.into_iter().find_map(|mut p| p.exports.remove("root")).map(PathBuf::from))
    }

    /// What the store holds.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn store_use(&self) -> Result<StoreUse, Error> {
        let client = self.client();
        let mut service = client.content();
        let request = client.request(ListContentRequest { filters: Vec::new() }, LIST);
        let mut stream = call("list", "content", RECORD, service.list(request)).await?;
        let mut content = 0_u64;
        while let Some(part) =
            stream.message().await.map_err(|status| from_status("list", &"content", LIST, status))?
        {
            let sizes = part.info.iter().map(|info| u64::try_from(info.size).unwrap_or(0));
            content = sizes.fold(content, u64::saturating_add);
        }
        Ok(StoreUse { content, snapshots: self.layers_use().await?.images.bytes })
    }
}

fn is_pinned(record: &Record) -> bool {
    record.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Known {
        Known {
            id: "sha256:config".into(),
            names: vec!["a.test/x:1".into()],
            targets: ["sha256:target".to_owned()].into(),
            chain_id: "sha256:chain".into(),
            size: 1,
            pinned: false,
            created_at: None,
        }
    }

    #[test]
    fn every_way_in_which_a_container_names_its_image_is_a_use() {
        for name in ["sha256:config", "a.test/x:1", "b.test/y@sha256:target"] {
            let users = Users { names: [name.to_owned()].into(), ..Users::default() };
            assert!(users.uses(&image()), "{name}");
        }
        let by_snapshot = Users { parents: ["sha256:chain".to_owned()].into(), ..Users::default() };
        assert!(by_snapshot.uses(&image()));
        // An image without layers has no snapshot, and an active one without a parent is based on none.
        let no_layers = Known { chain_id: String::new(), ..image() };
        assert!(!Users { parents: [String::new()].into(), ..Users::default() }.uses(&no_layers));
        let other =
            Users { names: ["a.test/x:2".to_owned(), "sha256:target".to_owned()].into(), ..Users::default() };
        assert!(!other.uses(&image()));
    }

    #[test]
    fn every_part_of_an_image_that_a_lease_holds_counts() {
        for part in ["sha256:config", "a.test/x:1", "sha256:target", "sha256:chain"] {
            let users = Users { leased: [part.to_owned()].into(), ..Users::default() };
            assert!(users.leases(&image()) && !users.uses(&image()), "{part}");
        }
        assert!(!Users { leased: ["sha256:base".to_owned()].into(), ..Users::default() }.leases(&image()));
    }
}
