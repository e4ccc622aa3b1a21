//! The sources of a node and their merge into one desired state. Pure.

use crate::{DesiredPod, Snapshot, manifest::Mode, provisioned::StorageClaims};
use berth_core::{
    ids::PodUid,
    model::{Objects, OriginKind, Service},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::watch;

/// A source of desired state. Its task or thread runs as long as the value lives.
pub trait Source {
    /// The newest snapshot. Before the first one an empty snapshot is shown, which is not listed.
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>>;
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory of manifests or of static pods.
    Directory {
        /// Its path.
        dir: PathBuf,
        /// The rules by which its files are read.
        mode: Mode,
    },
    /// The API server.
    Cluster,
}

impl SourceKind {
    /// Whether the pods of the source may refer to ConfigMaps and Secrets, which are then the source's own. One source
    /// of a node may.
    fn has_objects(&self) -> bool {
        matches!(self, SourceKind::Cluster | SourceKind::Directory { mode: Mode::Manifests, .. })
    }

    /// The origin of the source's pods.
    pub fn origin(&self) -> OriginKind {
        match self {
            SourceKind::Directory { mode: Mode::Manifests, .. } => OriginKind::Manifest,
            SourceKind::Directory { mode: Mode::StaticPods, .. } => OriginKind::StaticFile,
            SourceKind::Cluster => OriginKind::Cluster,
        }
    }
}

/// A source with its newest snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceState {
    /// A name for logs and state files, unique on the node.
    pub name: &'static str,
    /// What the source reads.
    pub kind: SourceKind,
    /// Its newest snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Whether any of its snapshots was listed. A source that fails after it has listed keeps its pods, so what it does
    /// not have is absent.
    listed: bool,
}

/// The sources of the node, in the order in which they were configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sources(Vec<SourceState>);

impl Sources {
    /// Adds a source whose first snapshot is still to come.
    pub fn add(&mut self, name: &'static str, kind: SourceKind) {
        self.0.push(SourceState { name, kind, snapshot: Arc::default(), listed: false });
    }

    /// Takes the newest snapshot of the named source.
    pub fn update(&mut self, name: &str, snapshot: Arc<Snapshot>) {
        if let Some(source) = self.0.iter_mut().find(|s| s.name == name) {
            source.listed |= snapshot.listed;
            source.snapshot = snapshot;
        }
    }

    /// The sources in their order.
    pub fn iter(&self) -> impl Iterator<Item = &SourceState> {
        self.0.iter()
    }

    /// The newest snapshot of each source, in their order.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.0.iter().map(|s| &s.snapshot)
    }

    /// The newest snapshot of the control plane; `None` where the node works for none.
    pub fn cluster(&self) -> Option<&Arc<Snapshot>> {
        self.0.iter().find(|s| s.kind == SourceKind::Cluster).map(|s| &s.snapshot)
    }

    /// The claims of the manifests. No other source tells that a claim is gone.
    pub fn claims(&self) -> Arc<StorageClaims> {
        let manifests = self.0.iter().find(|s| s.kind.origin() == OriginKind::Manifest);
        manifests.map(|s| Arc::clone(&s.snapshot.storage)).unwrap_or_default()
    }

    /// The origins whose source has listed, or has no source on this node. A pod of any other origin may not be deleted
    /// for being absent.
    pub fn listed(&self) -> BTreeSet<OriginKind> {
        let unlisted = |origin: &OriginKind| self.0.iter().any(|s| s.kind.origin() == *origin && !s.listed);
        OriginKind::ALL.into_iter().filter(|origin| !unlisted(origin)).collect()
    }

    /// The pod of that UID, of the first source that has it.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<DesiredPod>> {
        self.snapshots().find_map(|s| s.pods.get(uid))
    }

    /// The pods of all sources. Where two have the same UID, the later source wins.
    pub fn pods(&self) -> BTreeMap<PodUid, Arc<DesiredPod>> {
        self.snapshots()
            .flat_map(|s| s.pods.iter().map(|(uid, pod)| (uid.clone(), Arc::clone(pod))))
            .collect()
    }

    /// The ConfigMaps and Secrets to which pods may refer.
    pub fn objects(&self) -> Arc<Objects> {
        let source = self.0.iter().find(|s| s.kind.has_objects());
        // Pods of the other sources refer to no objects.
        source.map_or_else(|| Arc::new(Objects::listed()), |s| Arc::clone(&s.snapshot.objects))
    }

    /// The Services of all sources.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.snapshots().flat_map(|s| s.services.iter().map(|d| &d.service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(mode: Mode) -> SourceKind {
        SourceKind::Directory { dir: "/m".into(), mode }
    }

    /// Volumes are deleted after claims that are gone.
    #[test]
    fn a_directory_of_static_pods_says_nothing_of_claims() {
        let mut sources = Sources::default();
        sources.add("static-pods", kind(Mode::StaticPods));
        sources.add("manifests", kind(Mode::Manifests));
        let storage = |name: &str| {
            let claims = [("default".parse().unwrap(), name.to_owned())].into();
            let storage = Arc::new(StorageClaims { whole: true, claims, ..StorageClaims::default() });
            Arc::new(Snapshot { listed: true, storage, ..Snapshot::default() })
        };
        sources.update("static-pods", storage("odd"));
        assert_eq!(*sources.claims(), StorageClaims::default());
        sources.update("manifests", storage("data"));
        assert!(sources.claims().claims.iter().all(|(_, name)| name == "data") && sources.claims().whole);
    }

    #[test]
    fn a_source_lists_for_its_own_pods_alone_and_for_good() {
        use OriginKind::{Cluster, Manifest, StaticFile};
        let mut sources = Sources::default();
        sources.add("manifests", kind(Mode::Manifests));
        sources.add("static-pods", kind(Mode::StaticPods));
        let snapshot = |listed| Arc::new(Snapshot { listed, ..Snapshot::default() });
        assert_eq!(sources.listed(), [Cluster].into(), "a source that is not there has nothing to list");
        sources.update("static-pods", snapshot(true));
        assert_eq!(sources.listed(), [StaticFile, Cluster].into());
        sources.update("static-pods", snapshot(false));
        assert_eq!(sources.listed(), [StaticFile, Cluster].into(), "the source has listed before");
        sources.update("manifests", snapshot(true));
        assert_eq!(sources.listed(), [Manifest, StaticFile, Cluster].into());
    }

    #[test]
    fn objects_are_those_of_the_manifests_whatever_the_order_of_the_sources() {
        let objects = Arc::new(Objects::default());
        for order in [[Mode::Manifests, Mode::StaticPods], [Mode::StaticPods, Mode::Manifests]] {
            let mut sources = Sources::default();
            for mode in order {
                let name = if mode == Mode::Manifests { "manifests" } else { "static-pods" };
                sources.add(name, kind(mode));
            }
            sources.update(
                "manifests",
                Arc::new(Snapshot { objects: Arc::clone(&objects), ..Snapshot::default() }),
            );
            assert!(Arc::ptr_eq(&sources.objects(), &objects));
        }
    }
}
