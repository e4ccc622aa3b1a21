//! Index of the ConfigMaps and Secrets that pods refer to, by pod and by object.

use berth_core::{
    ids::{Namespace, PodUid},
    model::{ObjectKind, Pod},
    refs::{RefUse, refs},
};
use std::collections::{BTreeMap, BTreeSet};

/// The kind, the namespace and the name of an object.
type ObjectName = (ObjectKind, Namespace, String);

/// Pods by the objects of which their files and variables are made.
#[derive(Debug, Default)]
pub(crate) struct References {
    by_object: BTreeMap<ObjectName, BTreeSet<PodUid>>,
    by_pod: BTreeMap<PodUid, BTreeSet<ObjectName>>,
}

impl References {
    /// Adds a pod, or replaces its references after a change.
    pub(crate) fn put(&mut self, pod: &Pod) {
        self.remove(&pod.uid);
        let data = refs(pod).into_iter().filter(|r| matches!(r.used_for, RefUse::Volume | RefUse::Env));
        let names: BTreeSet<ObjectName> = data.map(|r| (r.kind, r.namespace, r.name)).collect();
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

    /// The pods that refer to an object that changed.
    pub(crate) fn holders(&self, changed: impl Fn(ObjectKind, &Namespace, &str) -> bool) -> BTreeSet<PodUid> {
        let objects =
            self.by_object.iter().filter(|((kind, namespace, name), _)| changed(*kind, namespace, name));
        objects.flat_map(|(_, pods)| pods).cloned().collect()
    }
}
