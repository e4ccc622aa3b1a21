//! The API server's newest version of each pod of this node.

use crate::object::is_newer;
use berth_core::{ids::PodUid, sync::lock};
use berth_source::RawPod;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// The pods of this node as the API server has them, by UID. Clones share their pods.
///
/// An object comes by a watch and by the answer to a request for the same pod, in either order; the newer version wins.
/// So the publisher needs no GET before a PATCH, and a late event of a watch does not undo an answer.
#[derive(Debug, Clone)]
pub struct ApiPods {
    pods: Arc<Mutex<BTreeMap<PodUid, Arc<RawPod>>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for ApiPods {
    fn default() -> ApiPods {
        ApiPods { pods: Arc::default(), changes: Arc::new(watch::channel(0).0) }
    }
}

impl ApiPods {
    /// Takes a version of a pod. Returns whether it is newer than the known one; an older one is dropped.
    pub fn put(&self, uid: &PodUid, object: Arc<RawPod>) -> bool {
        let mut pods = lock(&self.pods);
        if pods.get(uid).is_some_and(|known| !is_newer(object.version(), known.version())) {
            return false;
        }
        pods.insert(uid.clone(), object);
        drop(pods);
        self.changed();
        true
    }

    /// Takes a version of a pod by its watch. Returns the copy to keep: the known one where an answer has brought the
    /// same version before, so that a pod is in memory once.
    pub(crate) fn share(&self, uid: &PodUid, object: Arc<RawPod>) -> Arc<RawPod> {
        if self.put(uid, Arc::clone(&object)) {
            return object;
        }
        match self.get(uid) {
            Some(known) if known.version() == object.version() => known,
            _ => object,
        }
    }

    /// Takes that the API server has the pod no more.
    pub fn remove(&self, uid: &PodUid) {
        if lock(&self.pods).remove(uid).is_some() {
            self.changed();
        }
    }

    /// The newest known version of a pod.
    pub fn get(&self, uid: &PodUid) -> Option<Arc<RawPod>> {
        lock(&self.pods).get(uid).cloned()
    }

    /// Visits every pod. Neither `visit` nor what it calls may ask these pods for anything.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&PodUid, &Arc<RawPod>)) {
        lock(&self.pods).iter().for_each(|(uid, object)| visit(uid, object));
    }

    /// The UIDs of all pods.
    pub fn uids(&self) -> Vec<PodUid> {
        lock(&self.pods).keys().cloned().collect()
    }

    /// A receiver that is marked as changed by each change of a pod.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_version_that_an_answer_has_brought_is_shared_with_the_watch() {
        let pods = ApiPods::default();
        let uid: PodUid = "u1".parse().unwrap();
        let at = |version: &str| Arc::new(RawPod::new(&json!({"metadata": {"resourceVersion": version}})));
        let (answer, event) = (at("2"), at("2"));
        pods.put(&uid, Arc::clone(&answer));
        assert!(Arc::ptr_eq(&pods.share(&uid, event), &answer));
        let (older, newer) = (at("1"), at("3"));
        assert!(Arc::ptr_eq(&pods.share(&uid, Arc::clone(&older)), &older), "another object than the newest");
        assert!(Arc::ptr_eq(&pods.share(&uid, Arc::clone(&newer)), &newer));
        assert!(Arc::ptr_eq(&pods.get(&uid).unwrap(), &newer));
    }

    #[test]
    fn the_newer_version_of_a_pod_wins_in_either_order() {
        let pods = ApiPods::default();
        let uid: PodUid = "u1".parse().unwrap();
        let at = |version: &str| Arc::new(RawPod::new(&json!({"metadata": {"resourceVersion": version}})));
        let mut changes = pods.changes();
        assert!(pods.put(&uid, at("99")));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(pods.put(&uid, at("100")), "versions are numbers, not texts");
        assert!(!pods.put(&uid, at("99")), "a late event");
        assert!(!pods.put(&uid, at("100")));
        assert_eq!(pods.get(&uid), Some(at("100")));
        pods.remove(&uid);
        assert!(pods.get(&uid).is_none() && pods.uids().is_empty());
        changes.mark_unchanged();
        pods.remove(&uid);
        assert!(!changes.has_changed().unwrap(), "an unknown pod is no change");
    }
}
