//! Index of the ConfigMaps, Secrets and tokens that pods refer to, by pod and by object. What a claim leads to follows
//! from other objects, so pods with persistent volumes are compared as a whole.

use berth_core::{
    ids::{Namespace, PodUid},
    model::{ObjectKind, Objects, Pod, TokenRef},
    refs::refs,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a pod's files and variables are made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    Object(ObjectKind, Namespace, String),
    Token(TokenRef),
}

impl Content {
    fn of(pod: &Pod) -> BTreeSet<Content> {
        let contents = refs(pod).into_iter().filter_map(|r| match TokenRef::of(pod, &r) {
            Some(token) => Some(Content::Token(token)),
            None => (r.used_for.is_object() && !r.kind.is_storage()).then_some(Content::Object(
                r.kind,
                r.namespace,
                r.name,
            )),
        });
        contents.collect()
    }

    fn differs(&self, before: &Objects, now: &Objects) -> bool {
        match self {
            Content::Object(kind, namespace, name) => {
                before.get(*kind, namespace, name) != now.get(*kind, namespace, name)
            }
            Content::Token(token) => before.token(token) != now.token(token),
        }
    }
}

/// Pods by the objects of which their files and variables are made.
#[derive(Debug, Default)]
pub(crate) struct References {
    by_content: BTreeMap<Content, BTreeSet<PodUid>>,
    by_pod: BTreeMap<PodUid, BTreeSet<Content>>,
    /// The pods with persistent volumes, or with those of CSI drivers.
    with_storage: BTreeMap<PodUid, Arc<Pod>>,
}

impl References {
    /// Adds a pod, or replaces its references after a change.
    pub(crate) fn put(&mut self, pod: &Arc<Pod>) {
        self.remove(&pod.uid);
        let contents = Content::of(pod);
        for content in &contents {
            self.by_content.entry(content.clone()).or_default().insert(pod.uid.clone());
        }
        self.by_pod.insert(pod.uid.clone(), contents);
        if refs(pod).iter().any(|r| r.kind.is_storage()) {
            self.with_storage.insert(pod.uid.clone(), Arc::clone(pod));
        }
    }

    pub(crate) fn remove(&mut self, uid: &PodUid) {
        self.with_storage.remove(uid);
        for content in self.by_pod.remove(uid).unwrap_or_default() {
            if let Some(pods) = self.by_content.get_mut(&content) {
                pods.remove(uid);
                if pods.is_empty() {
                    self.by_content.remove(&content);
                }
            }
        }
    }

    /// The pods that refer to an object that changed.
    pub(crate) fn holders(&self, before: &Objects, now: &Objects) -> BTreeSet<PodUid> {
        let changed = self.by_content.iter().filter(|(content, _)| content.differs(before, now));
        let differs = |pod: &Pod| before.of_pod(pod) != now.of_pod(pod);
        let with_storage = self.with_storage.iter().filter(|(_, pod)| differs(pod)).map(|(uid, _)| uid);
        changed.flat_map(|(_, pods)| pods).chain(with_storage).cloned().collect()
    }
}
