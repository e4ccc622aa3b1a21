//! From files to one snapshot. Pure: the files in order of their names, the first to define something wins.

use crate::{
    DesiredPod, DesiredService, ManifestError, Snapshot,
    manifest::{Parsed, PodEntry, ServiceEntry},
};
use berth_core::{
    ids::PodKey,
    model::{EndpointSlice, KeyedData, Objects},
    time::Wall,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file's last good contents, ready to be shared.
#[derive(Debug, Default)]
pub(super) struct Good {
    /// Each pod with its document.
    pub(super) pods: Vec<(usize, Arc<DesiredPod>)>,
    /// The same pods while the file is held, made when the hold begins.
    held: Vec<(usize, Arc<DesiredPod>)>,
    config_maps: Vec<KeyedData>,
    secrets: Vec<KeyedData>,
    services: Vec<Arc<DesiredService>>,
    slices: Vec<Arc<EndpointSlice>>,
    warnings: Vec<ManifestError>,
}

impl Good {
    /// Takes over what was read. Pods that are as before keep their `Arc`; when a pod was first seen stays the same,
    /// and is looked up and noted in `seen`.
    pub(super) fn new(parsed: Parsed, before: Option<&Good>, seen: &mut BTreeMap<String, i64>) -> Good {
        let pods = parsed.pods.into_iter().map(|mut entry| {
            first_seen(&mut entry, seen);
            let desired = DesiredPod { pod: Arc::new(entry.pod), raw: Arc::new(entry.raw), held: None };
            let same = before.and_then(|b| b.pods.iter().find(|(_, old)| **old == desired));
            (entry.document, same.map_or_else(|| Arc::new(desired), |(_, old)| Arc::clone(old)))
        });
        Good {
            pods: pods.collect(),
            held: Vec::new(),
            config_maps: parsed.config_maps,
            secrets: parsed.secrets,
            services: parsed
                .services
                .into_iter()
                .map(|mut entry| {
                    service_first_seen(&mut entry, seen);
                    let s = DesiredService { service: Arc::new(entry.service), raw: Arc::new(entry.raw) };
                    let same = before.and_then(|b| b.services.iter().find(|old| ***old == s));
                    same.map_or_else(|| Arc::new(s), Arc::clone)
                })
                .collect(),
            slices: parsed
                .slices
                .into_iter()
                .map(|s| {
                    let same = before.and_then(|b| b.slices.iter().find(|old| ***old == s));
                    same.map_or_else(|| Arc::new(s), Arc::clone)
                })
                .collect(),
            warnings: parsed.warnings,
        }
    }

    /// The UIDs of its pods and Services.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        let services = self.services.iter().map(|s| &*s.service.uid);
        self.pods.iter().map(|(_, p)| p.pod.uid.as_str()).chain(services)
    }

    /// The pods as they are to be shown while the file is held for that reason, or not held.
    pub(super) fn hold(&mut self, why: Option<&str>) {
        let now = self.held.first().map(|(_, p)| p.held.as_deref());
        match why {
            None => self.held.clear(),
            Some(why) if now == Some(Some(why)) => {}
            Some(why) => {
                self.held = self
                    .pods
                    .iter()
                    .map(|(document, p)| {
                        (
                            *document,
                            Arc::new(DesiredPod { held: Some(why.to_owned()), ..DesiredPod::clone(p) }),
                        )
                    })
                    .collect();
            }
        }
    }
}

fn first_seen(entry: &mut PodEntry, seen: &mut BTreeMap<String, i64>) {
    if !entry.created_given {
        let uid = entry.pod.uid.to_string();
        since(uid, &mut entry.pod.created, &mut entry.raw, seen);
    }
}

fn service_first_seen(entry: &mut ServiceEntry, seen: &mut BTreeMap<String, i64>) {
    if !entry.created_given {
        let uid = entry.service.uid.to_string();
        since(uid, &mut entry.service.created, &mut entry.raw, seen);
    }
}

/// An object that gives no time was made when it was first seen.
fn since(uid: String, created: &mut Wall, raw: &mut Value, seen: &mut BTreeMap<String, i64>) {
    let since = *seen.entry(uid).or_insert(created.0);
    if created.0 != since {
        *created = Wall(since);
        if let Some(time) = crate::status::time(Wall(since))
            && let Some(shown) = raw.pointer_mut("/metadata/creationTimestamp")
        {
            *shown = time;
        }
    }
}

/// One file on its way into the snapshot.
pub(super) struct FileView<'a> {
    pub(super) path: PathBuf,
    pub(super) good: Option<&'a Good>,
    pub(super) problem: Option<&'a ManifestError>,
}

/// Everything together. The version and unchanged parts are taken from the snapshot before.
pub(super) fn merge(
    listed: bool,
    directory: Option<ManifestError>,
    files: &[FileView<'_>],
    before: &Snapshot,
) -> Snapshot {
    let mut next = Snapshot { listed, errors: directory.into_iter().collect(), ..Snapshot::default() };
    let mut objects = Objects::default();
    let mut taken = Taken::default();
    for file in files {
        next.errors.extend(file.problem.cloned());
        let Some(good) = file.good else { continue };
        next.errors.extend(good.warnings.iter().cloned());
        let pods = if good.held.is_empty() { &good.pods } else { &good.held };
        for (document, pod) in pods {
            let clash = taken.pod(&file.path, &pod.pod.key).or_else(|| taken.uid(pod));
            match clash {
                None => {
                    next.pods.insert(pod.pod.uid.clone(), Arc::clone(pod));
                }
                Some(reason) => next.errors.push(ManifestError {
                    file: file.path.clone(),
                    document: Some(*document),
                    field: Some("metadata.name".to_owned()),
                    reason,
                }),
            }
        }
        let mut clash = |what: &'static str, name: String| {
            taken.object(&file.path, what, name).map(|reason| {
                next.errors.push(ManifestError {
                    file: file.path.clone(),
                    document: None,
                    field: Some("metadata.name".to_owned()),
                    reason,
                });
            })
        };
        for object in &good.config_maps {
            if clash("ConfigMap", format!("{}/{}", object.namespace, object.name)).is_none() {
                objects.put_config_map(object.clone());
            }
        }
        for object in &good.secrets {
            if clash("Secret", format!("{}/{}", object.namespace, object.name)).is_none() {
                objects.put_secret(object.clone());
            }
        }
        for service in &good.services {
            if clash("Service", service.service.key.to_string()).is_none() {
                next.services.push(Arc::clone(service));
            }
        }
        for slice in &good.slices {
            if clash("EndpointSlice", slice.key.to_string()).is_none() {
                next.slices.push(Arc::clone(slice));
            }
        }
    }
    next.objects = if objects == *before.objects { Arc::clone(&before.objects) } else { Arc::new(objects) };
    next.version = before.version;
    next
}

/// Services that are as before keep their `Arc`: what they were given made new ones of them.
pub(super) fn keep_services(next: &mut Snapshot, before: &Snapshot) {
    let known: BTreeMap<&PodKey, &Arc<DesiredService>> =
        before.services.iter().map(|s| (&s.service.key, s)).collect();
    for service in &mut next.services {
        if let Some(old) = known.get(&service.service.key).filter(|old| ***old == *service) {
            *service = Arc::clone(old);
        }
    }
}

fn all_same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Whether nothing changed, versions aside: what did not change kept its `Arc`.
pub(super) fn same(a: &Snapshot, b: &Snapshot) -> bool {
    a.listed == b.listed
        && a.pods.len() == b.pods.len()
        && a.pods.values().zip(b.pods.values()).all(|(a, b)| Arc::ptr_eq(a, b))
        && Arc::ptr_eq(&a.objects, &b.objects)
        && all_same(&a.services, &b.services)
        && all_same(&a.slices, &b.slices)
        && a.errors == b.errors
}

/// Who defined what first.
#[derive(Default)]
struct Taken {
    pods: BTreeMap<PodKey, PathBuf>,
    uids: BTreeSet<String>,
    objects: BTreeMap<(&'static str, String), PathBuf>,
}

impl Taken {
    fn pod(&mut self, file: &Path, key: &PodKey) -> Option<String> {
        let first = self.pods.get(key).map(|first| twice("pod", &key.to_string(), first));
        if first.is_none() {
            self.pods.insert(key.clone(), file.to_owned());
        }
        first
    }

    fn uid(&mut self, pod: &DesiredPod) -> Option<String> {
        let uid = pod.pod.uid.to_string();
        (!self.uids.insert(uid.clone()))
            .then(|| format!("uid {uid} is already taken by another pod of this directory"))
    }

    fn object(&mut self, file: &Path, what: &'static str, name: String) -> Option<String> {
        let key = (what, name);
        let first = self.objects.get(&key).map(|first| twice(what, &key.1, first));
        if first.is_none() {
            self.objects.insert(key, file.to_owned());
        }
        first
    }
}

fn twice(what: &str, name: &str, first: &Path) -> String {
    format!("{what} {name} is already defined in {}; that one is used", first.display())
}
