//! From files to one set of objects. Pure: the files in order of their names, the first to define something wins. A
//! change of a file costs what the file holds and what else has the same names.

use super::{
    file_objects::{DataKey, FileObjects, data_key},
    name_index::{FilePart, NameIndex, ObjectPlace},
};
use crate::{DesiredPod, DesiredService, Keyed, ManifestError, Shared};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, KeyedData, Objects},
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What all files together hold.
#[derive(Debug, Default, Clone)]
pub(super) struct MergedObjects {
    pub(super) pods: Arc<BTreeMap<PodUid, Arc<DesiredPod>>>,
    pub(super) objects: Arc<Objects>,
    /// As the manifests have them.
    pub(super) services: Shared<DesiredService>,
    pub(super) slices: Shared<EndpointSlice>,
}

type Pod = (usize, Arc<DesiredPod>);

/// The files as they are shown, and what follows from them.
#[derive(Debug)]
pub(super) struct ObjectIndex {
    files: BTreeMap<Arc<str>, Arc<FileObjects>>,
    pods: NameIndex<PodKey, Pod>,
    /// The pods that won their names; the first to have a UID wins that.
    uids: NameIndex<PodUid, Pod>,
    /// Where in `uids` the pod that won a name stands.
    won: BTreeMap<PodKey, (PodUid, ObjectPlace)>,
    config_maps: NameIndex<DataKey, Arc<KeyedData>>,
    secrets: NameIndex<DataKey, Arc<KeyedData>>,
    services: NameIndex<PodKey, Arc<DesiredService>>,
    slices: NameIndex<PodKey, Arc<EndpointSlice>>,
    errors: Errors,
    whole: MergedObjects,
}

/// Shows the winners of names in the set of what is there.
fn settle_named<T: Keyed>(
    what: &str,
    claims: &mut NameIndex<PodKey, Arc<T>>,
    errors: &mut Errors,
    set: &mut Shared<T>,
) {
    claims.settle(|key, claims| {
        errors.twice(what, key, claims, |_| None);
        match claims.first() {
            None => set.remove(key),
            Some((_, now)) if set.get(key).is_some_and(|old| Arc::ptr_eq(old, now)) => {}
            Some((_, now)) => set.put(Arc::clone(now)),
        }
    });
}

impl ObjectIndex {
    /// Of an empty directory.
    pub(super) fn new(dir: PathBuf) -> ObjectIndex {
        ObjectIndex {
            errors: Errors { dir, by: BTreeMap::new() },
            files: BTreeMap::new(),
            pods: NameIndex::default(),
            uids: NameIndex::default(),
            won: BTreeMap::new(),
            config_maps: NameIndex::default(),
            secrets: NameIndex::default(),
            services: NameIndex::default(),
            slices: NameIndex::default(),
            whole: MergedObjects::default(),
        }
    }

    /// A file is to be shown like this now; with neither contents nor problem it is not there. Nothing follows from it
    /// before [`ObjectIndex::settle`].
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
    }

    /// Everything together, after the files that were updated.
    pub(super) fn settle(&mut self) -> &MergedObjects {
        self.settle_pods();
        self.settle_objects();
        let ObjectIndex { errors, whole, .. } = self;
        settle_named("Service", &mut self.services, errors, &mut whole.services);
        settle_named("EndpointSlice", &mut self.slices, errors, &mut whole.slices);
        whole
    }

    /// The file that holds a Service.
    pub(super) fn file_of_service(&self, key: &PodKey) -> Option<PathBuf> {
        let (place, _) = self.services.first(key)?;
        Some(self.errors.dir.join(&*place.file))
    }

    /// What is wrong with the files, in order of file and document.
    pub(super) fn errors(&self) -> impl Iterator<Item = &ManifestError> {
        self.errors.by.values()
    }

    fn settle_pods(&mut self) {
        let ObjectIndex { pods, uids, won, errors, whole, .. } = self;
        let document = |(document, _): &Pod| Some(*document);
        let mut winners = Vec::new();
        pods.settle(|key, claims| {
            errors.twice("pod", key, claims, document);
            if let Some((uid, place)) = won.remove(key) {
                uids.take(&uid, &place);
            }
            winners.extend(claims.first().map(|(place, pod)| (key.clone(), place.clone(), pod.clone())));
        });
        // After all have left their places: two may have changed theirs.
        for (key, place, pod) in winners {
            let uid = pod.1.pod.uid.clone();
            uids.put(uid.clone(), place.clone(), pod);
            won.insert(key, (uid, place));
        }
        uids.settle(|uid, claims| {
            let reason = |_: &Path, _: &ObjectPlace| {
                format!("uid {uid} is already taken by another pod of this directory")
            };
            errors.losers(claims, document, reason);
            let now = claims.first().map(|(_, (_, pod))| pod);
            let same = match (now, whole.pods.get(uid)) {
                (Some(now), Some(old)) => Arc::ptr_eq(now, old),
                (now, old) => now.is_none() && old.is_none(),
            };
            match now {
                _ if same => {}
                Some(now) => drop(Arc::make_mut(&mut whole.pods).insert(uid.clone(), Arc::clone(now))),
                None => drop(Arc::make_mut(&mut whole.pods).remove(uid)),
            }
        });
    }

    fn settle_objects(&mut self) {
        let ObjectIndex { config_maps, secrets, errors, whole, .. } = self;
        let objects = &mut whole.objects;
        config_maps.settle(|key, claims| {
            errors.twice("ConfigMap", &shown(key), claims, |_| None);
            let now = claims.first().map(|(_, now)| now);
            match (now, objects.config_map(&key.0, &key.1)) {
                (Some(now), old) if old != Some(now) => {
                    Arc::make_mut(objects).put_config_map(Arc::clone(now))
                }
                (None, Some(_)) => Arc::make_mut(objects).remove_config_map(key),
                _ => {}
            }
        });
        secrets.settle(|key, claims| {
            errors.twice("Secret", &shown(key), claims, |_| None);
            let now = claims.first().map(|(_, now)| now);
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

/// A part of a file on its way into the claims.
struct FilePartUpdate<'a> {
    file: Arc<str>,
    part: FilePart,
    errors: &'a mut Errors,
}

impl FilePartUpdate<'_> {
    /// What stood in that part of the file before, and what does now.
    fn enter<K: Ord + Clone, T: Clone>(
        &mut self,
        claims: &mut NameIndex<K, T>,
        before: &[T],
        now: &[T],
        key: impl Fn(&T) -> K,
        same: impl Fn(&T, &T) -> bool,
    ) {
        let place = |number| ObjectPlace { file: Arc::clone(&self.file), part: self.part, number };
        let other = |at: usize, there: &[T], object: &T| there.get(at).is_none_or(|t| !same(t, object));
        for (number, object) in before.iter().enumerate().filter(|(at, o)| other(*at, now, o)) {
            claims.take(&key(object), &place(number));
            self.errors.set(place(number), None);
        }
        for (number, object) in now.iter().enumerate().filter(|(at, o)| other(*at, before, o)) {
            claims.put(key(object), place(number), object.clone());
        }
    }
}

/// What is wrong where.
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

    /// All but the first define a name again.
    fn twice<T>(
        &mut self,
        what: &str,
        name: &dyn Display,
        claims: &[(ObjectPlace, T)],
        document: impl Fn(&T) -> Option<usize>,
    ) {
        self.losers(claims, document, |dir, first| {
            let first = dir.join(&*first.file);
            format!("{what} {name} is already defined in {}; that one is used", first.display())
        });
    }

    /// All but the first lose, for a reason that may name the place of the first.
    fn losers<T>(
        &mut self,
        claims: &[(ObjectPlace, T)],
        document: impl Fn(&T) -> Option<usize>,
        reason: impl Fn(&Path, &ObjectPlace) -> String,
    ) {
        let Some(((first, _), losers)) = claims.split_first() else { return };
        self.by.remove(first);
        for (place, object) in losers {
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
