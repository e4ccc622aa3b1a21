//! Index of the ConfigMaps and Secrets that pods refer to, by pod and by object.

use berth_core::{
    ids::{Namespace, PodUid},
    model::{EnvFromSource, EnvValue, Pod},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Name = (Namespace, String);

/// The names of the objects that a pod refers to, without their kind. An object of the other kind with the
/// same name causes one unneeded sync of the pod and has no other effect.
fn names(pod: &Pod) -> BTreeSet<Name> {
    let mut names: BTreeSet<&str> = pod.volume_objects().into_iter().map(|(_, name)| name).collect();
    for c in pod.all_containers() {
        for from in &c.env_from {
            let (EnvFromSource::ConfigMap(name) | EnvFromSource::Secret(name)) = &from.source;
            names.insert(name);
        }
        for e in &c.env {
            if let EnvValue::ConfigMapKey(k) | EnvValue::SecretKey(k) = &e.value {
                names.insert(&k.name);
            }
        }
    }
    names.into_iter().map(|n| (pod.key.namespace.clone(), n.to_owned())).collect()
}

/// Pods by the objects that they refer to.
#[derive(Debug, Default)]
pub(crate) struct References {
    by_object: HashMap<Name, BTreeSet<PodUid>>,
    by_pod: BTreeMap<PodUid, BTreeSet<Name>>,
}

impl References {
    /// Adds a pod, or replaces its references after a change.
    pub(crate) fn put(&mut self, pod: &Pod) {
        self.remove(&pod.uid);
        let names = names(pod);
        for name in &names {
            self.by_object.entry(name.clone()).or_default().insert(pod.uid.clone());
        }
        self.by_pod.insert(pod.uid.clone(), names);
    }

    pub(crate) fn remove(&mut self, uid: &PodUid) {
        for name in self.by_pod.remove(uid).unwrap_or_default() {
            if let Some(pods) = self.by_object.get_mut(&name) {
                pods.remove(uid);
                if pods.is_empty() {
                    self.by_object.remove(&name);
                }
            }
        }
    }

    /// The pods that refer to any of these objects.
    pub(crate) fn holders(&self, objects: &[Name]) -> BTreeSet<PodUid> {
        objects.iter().filter_map(|o| self.by_object.get(o)).flatten().cloned().collect()
    }
}
