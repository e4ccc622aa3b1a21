//! Table of pod names and their holders. Of two pods of files with one name, the second waits until nothing of
//! the first is left.

use berth_core::ids::{PodKey, PodUid};
use std::collections::{BTreeSet, HashMap};

/// The holders of each name. A name has more than one holder only where the pods were found on the node like
/// that.
#[derive(Debug, Default)]
pub(crate) struct NameHolders(HashMap<PodKey, BTreeSet<PodUid>>);

impl NameHolders {
    /// Whether a pod other than `by_another_than` holds the name.
    pub(crate) fn taken(&self, key: &PodKey, by_another_than: &PodUid) -> bool {
        self.0.get(key).is_some_and(|holders| holders.iter().any(|u| u != by_another_than))
    }

    pub(crate) fn take(&mut self, key: &PodKey, uid: &PodUid) {
        self.0.entry(key.clone()).or_default().insert(uid.clone());
    }

    pub(crate) fn release(&mut self, uid: &PodUid) {
        self.0.retain(|_, holders| {
            holders.remove(uid);
            !holders.is_empty()
        });
    }
}
