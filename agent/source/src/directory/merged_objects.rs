//! The objects of all files, merged into one set. Pure: of several objects with one name, that of the first file by name
//! has it. A change of a file costs what the file holds and what else has the same names.

use super::{
    file_objects::{DataKey, FileObjects, data_key},
    name_index::{FilePart, NameIndex, ObjectPlace},
};
use crate::{
    DesiredPod, DesiredService, ManifestError,
    manifest::{StorageKey, StorageManifest},
};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, KeyedData, Objects},
    shared::{Keyed, Shared},
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The objects of all files together.
#[derive(Debug, Default, Clone)]
pub(super) struct MergedObjects {
    pub(super) pods: Arc<BTreeMap<PodUid, Arc<DesiredPod>>>,
    pub(super) objects: Arc<Objects>,
    /// The Services as the manifests have them, without assigned addresses.
    pub(super) services: Shared<DesiredService>,
    pub(super) slices: Shared<EndpointSlice>,
    /// Claims, persistent volumes, storage classes and CSI drivers.
    pub(super) storage: Arc<BTreeMap<StorageKey, Arc<StorageManifest>>>,
}

type Pod = (usize, Arc<DesiredPod>);

/// The objects of the files by name, and the merged set that follows from them.
#[derive(Debug)]
pub(super) struct ObjectIndex {
    files: BTreeMap<Arc<str>, Arc<FileObjects>>,
    pods: NameIndex<PodKey, Pod>,
    /// The pods that have their names, by UID: the first one has the UID.
    uids: NameIndex<PodUid, Pod>,
    /// The UID and the place in `uids` of the pod that has a name.
    named: BTreeMap<PodKey, (PodUid, ObjectPlace)>,
    config_maps: NameIndex<DataKey, Arc<KeyedData>>,
    secrets: NameIndex<DataKey, Arc<KeyedData>>,
    services: NameIndex<PodKey, Arc<DesiredService>>,
    slices: NameIndex<PodKey, Arc<EndpointSlice>>,
    storage: NameIndex<StorageKey, Arc<StorageManifest>>,
    errors: Errors,
    merged: MergedObjects,
}

/// Puts the objects that have their names into the set.
fn settle_kind<T: Keyed>(
    what: &str,
    index: &mut NameIndex<PodKey, Arc<T>>,
    errors: &mut Errors,
    set: &mut Shared<T>,
) {
    index.settle(|key, objects| {
        errors.add_defined_again(what, key, objects, |_| None);
        match objects.first() {
            None => set.remove(key),
            Some((_, now)) if set.get(key).is_some_and(|old| Arc::ptr_eq(old, now)) => {}
            Some((_, now)) => set.put(Arc::clone(now)),
        }
    });
}

impl ObjectIndex {
    /// The index of an empty directory.
    pub(super) fn new(dir: PathBuf) -> ObjectIndex {
        ObjectIndex {
            errors: Errors { dir, by: BTreeMap::new() },
            files: BTreeMap::new(),
            pods: NameIndex::default(),
            uids: NameIndex::default(),
            named: BTreeMap::new(),
            config_maps: NameIndex::default(),
            secrets: NameIndex::default(),
            services: NameIndex::default(),
            slices: NameIndex::default(),
            storage: NameIndex::default(),
            merged: MergedObjects::default(),
        }
    }

    /// Takes the objects and the problem of a file; one with neither is gone. The merged set follows at
    /// [`ObjectIndex::settle`].
    pub(super) fn update(
        &mut self,
        name: &str,
        good: Option<Arc<FileObjects>>,
        problem: Option<&ManifestError>,
    ) {
        let file = self.files.get_key_value(name).map_or_else(|| name.into(), |(file, _)| Arc::clone(file));
        let before = self.files.remove(name).unwrap_or_default();
        if let Some(good) = &good {
            self.files.insert(Arc::clone(&file), Arc::clone(good));
        }
        let now = good.unwrap_or_default();
        let errors = &mut self.errors;
        errors.set(
            ObjectPlace { file: Arc::clone(&file), part: FilePart::Problem, number: 0 },
            problem.cloned(),
        );
        if Arc::ptr_eq(&before, &now) {
            return;
        }
        for number in 0..before.warnings.len().max(now.warnings.len()) {
            let place = ObjectPlace { file: Arc::clone(&file), part: FilePart::Warnings, number };
            errors.set(place, now.warnings.get(number).cloned());
        }
        let same = |a: &Pod, b: &Pod| a.0 == b.0 && Arc::ptr_eq(&a.1, &b.1);
        let key = |pod: &Pod| pod.1.pod.key.clone();
        let mut part = FilePartUpdate { file, part: FilePart::Pods, errors };
        part.enter(&mut self.pods, &before.pods, &now.pods, key, same);
        let key = |o: &Arc<KeyedData>| data_key(o);
        part.part = FilePart::ConfigMaps;
        part.enter(&mut self.config_maps, &before.config_maps, &now.config_maps, key, Arc::ptr_eq);
        part.part = FilePart::Secrets;
        part.enter(&mut self.secrets, &before.secrets, &now.secrets, key, Arc::ptr_eq);
        part.part = FilePart::Services;
        let key = |s: &Arc<DesiredService>| s.service.key.clone();
        part.enter(&mut self.services, &before.services, &now.services, key, Arc::ptr_eq);
        part.part = FilePart::Slices;
        let key = |s: &Arc<EndpointSlice>| s.key.clone();
        part.enter(&mut self.slices, &before.slices, &now.slices, key, Arc::ptr_eq);
        part.part = FilePart::Storage;
        let key = |s: &Arc<StorageManifest>| s.key();
        part.enter(&mut self.storage, &before.storage, &now.storage, key, Arc::ptr_eq);
    }

    /// Takes that the directory has been listed: an object that no file has does not exist.
    pub(super) fn objects_listed(&mut self) {
        if !self.merged.objects.is_listed() {
            Arc::make_mut(&mut self.merged.objects).set_listed();
        }
    }

    /// The merged set, with all updates in it.
    pub(super) fn settle(&mut self) -> &MergedObjects {
        self.settle_pods();
        self.settle_objects();
        self.settle_storage();
        let ObjectIndex { errors, merged, .. } = self;
        settle_kind("Service", &mut self.services, errors, &mut merged.services);
        settle_kind("EndpointSlice", &mut self.slices, errors, &mut merged.slices);
        merged
    }

    /// The file that defines a Service.
    pub(super) fn file_of_service(&self, key: &PodKey) -> Option<PathBuf> {
        let (place, _) = self.services.first(key)?;
        Some(self.errors.dir.join(&*place.file))
    }

    /// The errors of all files, in order of file and document.
    pub(super) fn errors(&self) -> impl Iterator<Item = &ManifestError> {
        self.errors.by.values()
    }

    fn settle_pods(&mut self) {
        let ObjectIndex { pods, uids, named, errors, merged, .. } = self;
        let document = |(document, _): &Pod| Some(*document);
        let mut holders = Vec::new();
        pods.settle(|key, objects| {
            errors.add_defined_again("pod", key, objects, document);
            if let Some((uid, place)) = named.remove(key) {
                uids.remove(&uid, &place);
            }
            holders.extend(objects.first().map(|(place, pod)| (key.clone(), place.clone(), pod.clone())));
        });
        // Only after all old places are free: two pods may have exchanged their UIDs.
        for (key, place, pod) in holders {
            let uid = pod.1.pod.uid.clone();
            uids.put(uid.clone(), place.clone(), pod);
            named.insert(key, (uid, place));
        }
        uids.settle(|uid, objects| {
            let reason = |_: &Path, _: &ObjectPlace| {
                format!("uid {uid} is already taken by another pod of this directory")
            };
            errors.add_others(objects, document, reason);
            let now = objects.first().map(|(_, (_, pod))| pod);
            let same = match (now, merged.pods.get(uid)) {
                (Some(now), Some(old)) => Arc::ptr_eq(now, old),
                (now, old) => now.is_none() && old.is_none(),
            };
            match now {
                _ if same => {}
                Some(now) => drop(Arc::make_mut(&mut merged.pods).insert(uid.clone(), Arc::clone(now))),
                None => drop(Arc::make_mut(&mut merged.pods).remove(uid)),
            }
        });
    }

    fn settle_storage(&mut self) {
        let ObjectIndex { storage, errors, merged, .. } = self;
        storage.settle(|key, defined| {
            let (kind, namespace, name) = key;
            let shown = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
            errors.add_defined_again(kind, &shown, defined, |_| None);
            match (defined.first().map(|(_, now)| now), merged.storage.get(key)) {
                (Some(now), old) if old != Some(now) => {
                    Arc::make_mut(&mut merged.storage).insert(key.clone(), Arc::clone(now));
                }
                (None, Some(_)) => drop(Arc::make_mut(&mut merged.storage).remove(key)),
                _ => {}
            }
        });
    }

    fn settle_objects(&mut self) {
        let ObjectIndex { config_maps, secrets, errors, merged, .. } = self;
        let objects = &mut merged.objects;
        config_maps.settle(|key, defined| {
            errors.add_defined_again("ConfigMap", &shown(key), defined, |_| None);
            let now = defined.first().map(|(_, now)| now);
            match (now, objects.config_map(&key.0, &key.1)) {
                (Some(now), old) if old != Some(now) => {
                    Arc::make_mut(objects).put_config_map(Arc::clone(now))
                }
                (None, Some(_)) => Arc::make_mut(objects).remove_config_map(key),
                _ => {}
            }
        });
        secrets.settle(|key, defined| {
            errors.add_defined_again("Secret", &shown(key), defined, |_| None);
            let now = defined.first().map(|(_, now)| now);
            match (now, objects.secret(&key.0, &key.1)) {
                (Some(now), old) if old != Some(now) => Arc::make_mut(objects).put_secret(Arc::clone(now)),
                (None, Some(_)) => Arc::make_mut(objects).remove_secret(key),
                _ => {}
            }
        });
    }
}

fn shown((namespace, name): &DataKey) -> String {
    format!("{namespace}/{name}")
}

/// An update of one part of a file.
struct FilePartUpdate<'a> {
    file: Arc<str>,
    part: FilePart,
    errors: &'a mut Errors,
}

impl FilePartUpdate<'_> {
    /// Replaces the objects of that part of the file in the index.
    fn enter<K: Ord + Clone, T: Clone>(
        &mut self,
        index: &mut NameIndex<K, T>,
        before: &[T],
        now: &[T],
        key: impl Fn(&T) -> K,
        same: impl Fn(&T, &T) -> bool,
    ) {
        let place = |number| ObjectPlace { file: Arc::clone(&self.file), part: self.part, number };
        let other = |at: usize, there: &[T], object: &T| there.get(at).is_none_or(|t| !same(t, object));
        for (number, object) in before.iter().enumerate().filter(|(at, o)| other(*at, now, o)) {
            index.remove(&key(object), &place(number));
            self.errors.set(place(number), None);
        }
        for (number, object) in now.iter().enumerate().filter(|(at, o)| other(*at, before, o)) {
            index.put(key(object), place(number), object.clone());
        }
    }
}

/// Errors by place.
#[derive(Debug)]
struct Errors {
    dir: PathBuf,
    by: BTreeMap<ObjectPlace, ManifestError>,
}

impl Errors {
    fn set(&mut self, place: ObjectPlace, error: Option<ManifestError>) {
        match error {
            Some(error) => drop(self.by.insert(place, error)),
            None => drop(self.by.remove(&place)),
        }
    }

    /// Adds an error for each object but the first, which has the name.
    fn add_defined_again<T>(
        &mut self,
        what: &str,
        name: &dyn Display,
        objects: &[(ObjectPlace, T)],
        document: impl Fn(&T) -> Option<usize>,
    ) {
        self.add_others(objects, document, |dir, first| {
            let first = dir.join(&*first.file);
            format!("{what} {name} is already defined in {}; that one is used", first.display())
        });
    }

    /// Adds an error for each object but the first, with a reason that may name the place of the first.
    fn add_others<T>(
        &mut self,
        objects: &[(ObjectPlace, T)],
        document: impl Fn(&T) -> Option<usize>,
        reason: impl Fn(&Path, &ObjectPlace) -> String,
    ) {
        let Some(((first, _), others)) = objects.split_first() else { return };
        self.by.remove(first);
        for (place, object) in others {
            let error = ManifestError {
                file: self.dir.join(&*place.file),
                document: document(object),
                field: Some("metadata.name".to_owned()),
                reason: reason(&self.dir, first),
            };
            self.by.insert(place.clone(), error);
        }
    }
}

#[cfg(test)]
mod tests;
