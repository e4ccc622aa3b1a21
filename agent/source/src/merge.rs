//! The sources of a node and their merge into one desired state. Pure.

use crate::{DesiredPod, Snapshot, manifest::Mode};
use berth_core::{
    ids::PodUid,
    model::{Objects, Service},
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
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
}

impl SourceKind {
    /// Whether the pods of the source may refer to ConfigMaps and Secrets, which are then the source's own.
    fn has_objects(&self) -> bool {
        matches!(self, SourceKind::Directory { mode: Mode::Manifests, .. })
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
}

/// The sources of the node, in the order in which they were configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sources(Vec<SourceState>);

impl Sources {
    /// Adds a source whose first snapshot is still to come.
    pub fn add(&mut self, name: &'static str, kind: SourceKind) {
        self.0.push(SourceState { name, kind, snapshot: Arc::default() });
    }

    /// Takes the newest snapshot of the named source.
    pub fn update(&mut self, name: &str, snapshot: Arc<Snapshot>) {
        if let Some(source) = self.0.iter_mut().find(|s| s.name == name) {
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

    /// Whether every source has listed. While one has not, no pod may be deleted for being absent.
    pub fn listed(&self) -> bool {
        self.snapshots().all(|s| s.listed)
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

    #[test]
    fn a_set_of_sources_is_listed_once_every_source_is() {
        let mut sources = Sources::default();
        sources.add("manifests", kind(Mode::Manifests));
        sources.add("static-pods", kind(Mode::StaticPods));
        let listed = || Arc::new(Snapshot { listed: true, ..Snapshot::default() });
        assert!(!sources.listed());
        sources.update("static-pods", listed());
        assert!(!sources.listed());
        sources.update("manifests", listed());
        assert!(sources.listed());
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
