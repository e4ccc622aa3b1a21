//! A file's last good contents, ready to be shared.

use super::first_seen::FirstSeen;
use crate::{
    DesiredPod, DesiredService, ManifestError,
    manifest::{ParsedFile, PodEntry, ServiceEntry},
};
use berth_core::{
    ids::{Namespace, PodKey},
    model::{EndpointSlice, KeyedData},
    time::Wall,
};
use serde_json::Value;
use std::{collections::HashMap, hash::Hash, sync::Arc};

/// See the module's page.
#[derive(Debug, Default, Clone)]
pub(super) struct FileObjects {
    /// Each pod with its document.
    pub(super) pods: Vec<(usize, Arc<DesiredPod>)>,
    pub(super) config_maps: Vec<Arc<KeyedData>>,
    pub(super) secrets: Vec<Arc<KeyedData>>,
    pub(super) services: Vec<Arc<DesiredService>>,
    pub(super) slices: Vec<Arc<EndpointSlice>>,
    pub(super) warnings: Vec<ManifestError>,
}

/// The name of a ConfigMap or Secret.
pub(super) type DataKey = (Namespace, String);

pub(super) fn data_key(object: &KeyedData) -> DataKey {
    (object.namespace.clone(), object.name.clone())
}

impl FileObjects {
    /// Takes over what was read. What is as before keeps its `Arc`; when a pod or Service was first seen stays the
    /// same, and is looked up and noted in `seen`.
    pub(super) fn new(parsed: ParsedFile, before: Option<&FileObjects>, seen: &mut FirstSeen) -> FileObjects {
        let nothing = FileObjects::default();
        let before = before.unwrap_or(&nothing);
        let pod = |mut entry: PodEntry| {
            first_seen(&mut entry, seen);
            let made = DesiredPod { pod: Arc::new(entry.pod), raw: Arc::new(entry.raw), held: None };
            (entry.document, made)
        };
        let (documents, pods): (Vec<usize>, Vec<DesiredPod>) = parsed.pods.into_iter().map(pod).unzip();
        let old: Vec<Arc<DesiredPod>> = before.pods.iter().map(|(_, pod)| Arc::clone(pod)).collect();
        let pods = keep(pods, &old, |p| p.pod.key.clone());
        let service = |mut entry: ServiceEntry| {
            service_first_seen(&mut entry, seen);
            DesiredService { service: Arc::new(entry.service), raw: Arc::new(entry.raw) }
        };
        let services: Vec<DesiredService> = parsed.services.into_iter().map(service).collect();
        FileObjects {
            pods: documents.into_iter().zip(pods).collect(),
            config_maps: keep(parsed.config_maps, &before.config_maps, data_key),
            secrets: keep(parsed.secrets, &before.secrets, data_key),
            services: keep(services, &before.services, |s| s.service.key.clone()),
            slices: keep(parsed.slices, &before.slices, |s: &EndpointSlice| -> PodKey { s.key.clone() }),
            warnings: parsed.warnings,
        }
    }

    /// The UIDs of its pods and Services.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        let services = self.services.iter().map(|s| &*s.service.uid);
        self.pods.iter().map(|(_, p)| p.pod.uid.as_str()).chain(services)
    }

    /// The contents as they are to be shown while the file is held for that reason.
    pub(super) fn held(&self, why: &str) -> FileObjects {
        let hold = |pod: &DesiredPod| Arc::new(DesiredPod { held: Some(why.to_owned()), ..pod.clone() });
        let pods = self.pods.iter().map(|(document, pod)| (*document, hold(pod))).collect();
        FileObjects { pods, ..self.clone() }
    }
}

/// Shares the objects; one that is as before stays the one from before.
fn keep<T: PartialEq, K: Hash + Eq>(
    objects: Vec<T>,
    before: &[Arc<T>],
    key: impl Fn(&T) -> K,
) -> Vec<Arc<T>> {
    let known: HashMap<K, &Arc<T>> = before.iter().map(|old| (key(old), old)).collect();
    let same = |object: &T| known.get(&key(object)).copied().filter(|old| ***old == *object);
    objects.into_iter().map(|object| same(&object).map_or_else(|| Arc::new(object), Arc::clone)).collect()
}

fn first_seen(entry: &mut PodEntry, seen: &mut FirstSeen) {
    if !entry.created_given {
        let uid = entry.pod.uid.as_str().to_owned();
        since(uid, &mut entry.pod.created, &mut entry.raw, seen);
    }
}

fn service_first_seen(entry: &mut ServiceEntry, seen: &mut FirstSeen) {
    if !entry.created_given {
        let uid = entry.service.uid.to_string();
        since(uid, &mut entry.service.created, &mut entry.raw, seen);
    }
}

/// An object that gives no time was made when it was first seen.
fn since(uid: String, created: &mut Wall, raw: &mut Value, seen: &mut FirstSeen) {
    let since = seen.since(uid, created.0);
    if created.0 != since {
        *created = Wall(since);
        if let Some(time) = crate::status::time(Wall(since))
            && let Some(shown) = raw.pointer_mut("/metadata/creationTimestamp")
        {
            *shown = time;
        }
    }
}
