//! The objects of a file's last good version, shared by `Arc`.

use super::first_seen::FirstSeen;
use crate::{
    DesiredPod, DesiredService, ManifestError,
    manifest::{ParsedFile, PodEntry, ServiceEntry, StorageManifest},
};
use berth_core::{
    ids::{Namespace, PodKey},
    model::{EndpointSlice, KeyedData},
    time::Wall,
};
use serde_json::Value;
use std::{collections::HashMap, hash::Hash, sync::Arc};

/// The objects of one file.
#[derive(Debug, Default, Clone)]
pub(super) struct FileObjects {
    /// Each pod with the number of its document.
    pub(super) pods: Vec<(usize, Arc<DesiredPod>)>,
    pub(super) config_maps: Vec<Arc<KeyedData>>,
    pub(super) secrets: Vec<Arc<KeyedData>>,
    pub(super) services: Vec<Arc<DesiredService>>,
    pub(super) slices: Vec<Arc<EndpointSlice>>,
    pub(super) storage: Vec<Arc<StorageManifest>>,
    /// Errors that do not make the file bad.
    pub(super) warnings: Vec<ManifestError>,
}

/// Namespace and name of a ConfigMap or Secret.
pub(super) type DataKey = (Namespace, String);

pub(super) fn data_key(object: &KeyedData) -> DataKey {
    (object.namespace.clone(), object.name.clone())
}

impl FileObjects {
    /// The objects of a parsed file. An object equal to the one before keeps its `Arc`. A pod or Service
    /// without a creation time gets the time at which it was first seen, from `first_seen`.
    pub(super) fn new(
        parsed: ParsedFile,
        before: Option<&FileObjects>,
        first_seen: &mut FirstSeen,
    ) -> FileObjects {
        let nothing = FileObjects::default();
        let before = before.unwrap_or(&nothing);
        let pod = |mut entry: PodEntry| {
            pod_created(&mut entry, first_seen);
            let made = DesiredPod::of_file(Arc::new(entry.pod), &entry.raw);
            (entry.document, made)
        };
        let (documents, pods): (Vec<usize>, Vec<DesiredPod>) = parsed.pods.into_iter().map(pod).unzip();
        let old: Vec<Arc<DesiredPod>> = before.pods.iter().map(|(_, pod)| Arc::clone(pod)).collect();
        let pods = keep(pods, &old, |p| p.pod.key.clone());
        let service = |mut entry: ServiceEntry| {
            service_created(&mut entry, first_seen);
            DesiredService { service: Arc::new(entry.service), raw: Arc::new(entry.raw) }
        };
        let services: Vec<DesiredService> = parsed.services.into_iter().map(service).collect();
        FileObjects {
            pods: documents.into_iter().zip(pods).collect(),
            config_maps: keep(parsed.config_maps, &before.config_maps, data_key),
            secrets: keep(parsed.secrets, &before.secrets, data_key),
            services: keep(services, &before.services, |s| s.service.key.clone()),
            slices: keep(parsed.slices, &before.slices, |s: &EndpointSlice| -> PodKey { s.key.clone() }),
            storage: keep(parsed.storage, &before.storage, StorageManifest::key),
            warnings: parsed.warnings,
        }
    }

    /// The UIDs of the pods and Services.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        let services = self.services.iter().map(|s| &*s.service.uid);
        self.pods.iter().map(|(_, p)| p.pod.uid.as_str()).chain(services)
    }

    /// The objects with every pod marked as held, for that reason.
    pub(super) fn held(&self, why: &str) -> FileObjects {
        let hold = |pod: &DesiredPod| Arc::new(DesiredPod { held: Some(why.to_owned()), ..pod.clone() });
        let pods = self.pods.iter().map(|(document, pod)| (*document, hold(pod))).collect();
        FileObjects { pods, ..self.clone() }
    }
}

/// Shares the objects. An object equal to the one of its name before keeps the `Arc` from before.
fn keep<T: PartialEq, K: Hash + Eq>(
    objects: Vec<T>,
    before: &[Arc<T>],
    key: impl Fn(&T) -> K,
) -> Vec<Arc<T>> {
    let known: HashMap<K, &Arc<T>> = before.iter().map(|old| (key(old), old)).collect();
    let same = |object: &T| known.get(&key(object)).copied().filter(|old| ***old == *object);
    objects.into_iter().map(|object| same(&object).map_or_else(|| Arc::new(object), Arc::clone)).collect()
}

fn pod_created(entry: &mut PodEntry, first_seen: &mut FirstSeen) {
    if !entry.created_given {
        let uid = entry.pod.uid.as_str().to_owned();
        set_created(uid, &mut entry.pod.created, &mut entry.raw, first_seen);
    }
}

fn service_created(entry: &mut ServiceEntry, first_seen: &mut FirstSeen) {
    if !entry.created_given {
        let uid = entry.service.uid.to_string();
        set_created(uid, &mut entry.service.created, &mut entry.raw, first_seen);
    }
}

/// Sets the creation time of an object, in the model and in the JSON, to the time at which it was first seen.
fn set_created(uid: String, created: &mut Wall, raw: &mut Value, first_seen: &mut FirstSeen) {
    let since = first_seen.since(uid, created.0);
    if created.0 != since {
        *created = Wall(since);
        if let Some(time) = crate::status::time(Wall(since))
            && let Some(shown) = raw.pointer_mut("/metadata/creationTimestamp")
        {
            *shown = time;
        }
    }
}
