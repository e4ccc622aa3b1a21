//! The pods whose status the API server did not take yet, for the status page.

use berth_core::{
    ids::{PodKey, PodUid},
    sync::lock,
    time::Wall,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// The pods whose last request failed. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Unpublished(Arc<Mutex<BTreeMap<PodUid, UnpublishedStatus>>>);

/// A pod whose last request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishedStatus {
    /// Namespace and name of the pod.
    pub pod: PodKey,
    /// Time of the first of the requests that failed one after another.
    pub since: Wall,
    /// The last error, on one line.
    pub reason: String,
}

impl Unpublished {
    /// All such pods.
    pub fn all(&self) -> Vec<UnpublishedStatus> {
        lock(&self.0).values().cloned().collect()
    }

    /// Takes that a request for the pod failed.
    pub(super) fn failed(&self, uid: &PodUid, pod: &PodKey, reason: String, now: Wall) {
        let mut pods = lock(&self.0);
        let since = pods.get(uid).map_or(now, |known| known.since);
        pods.insert(uid.clone(), UnpublishedStatus { pod: pod.clone(), since, reason });
    }

    /// Takes that a request for the pod succeeded, or that the API server has the pod no more.
    pub(super) fn published(&self, uid: &PodUid) {
        lock(&self.0).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_unpublished_since_its_first_failure_until_a_success() {
        let unpublished = Unpublished::default();
        let uid: PodUid = "u1".parse().unwrap();
        let key = PodKey { namespace: "default".parse().unwrap(), name: "web".parse().unwrap() };
        unpublished.failed(&uid, &key, "refused".to_owned(), Wall(1));
        unpublished.failed(&uid, &key, "timed out".to_owned(), Wall(2));
        let reason = "timed out".to_owned();
        assert_eq!(unpublished.all(), [UnpublishedStatus { pod: key.clone(), since: Wall(1), reason }]);
        unpublished.published(&uid);
        assert_eq!(unpublished.all(), []);
        unpublished.failed(&uid, &key, "refused".to_owned(), Wall(3));
        assert_eq!(unpublished.all()[0].since, Wall(3));
    }
}
