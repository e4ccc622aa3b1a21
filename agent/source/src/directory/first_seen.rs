//! When each pod and Service that gives no creation time was first seen.

use super::file_objects::FileObjects;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
struct First {
    /// Nanoseconds since 1970; `None` where its manifest says itself when it was made.
    at: Option<i64>,
    /// How many objects of files have the UID.
    holders: u32,
}

/// By UID. What no file has any more is forgotten at the end of the look, not before: it may have moved from one file
/// to another.
#[derive(Debug, Default)]
pub(super) struct FirstSeen {
    first: BTreeMap<String, First>,
    doubtful: Vec<String>,
}

impl FirstSeen {
    /// Takes over what is remembered.
    pub(super) fn extend(&mut self, remembered: &BTreeMap<String, i64>) {
        for (uid, at) in remembered {
            self.first.entry(uid.clone()).or_default().at = Some(*at);
            self.doubtful.push(uid.clone());
        }
    }

    /// When the object was first seen, which is then if it was not yet.
    pub(super) fn since(&mut self, uid: String, then: i64) -> i64 {
        *self.first.entry(uid).or_default().at.get_or_insert(then)
    }

    /// What is known of the file's objects.
    pub(super) fn of(&self, good: &FileObjects) -> BTreeMap<String, i64> {
        good.uids().filter_map(|uid| Some((uid.to_owned(), self.first.get(uid)?.at?))).collect()
    }

    /// A file has these contents.
    pub(super) fn enter(&mut self, good: &FileObjects) {
        for uid in good.uids() {
            let first = self.first.entry(uid.to_owned()).or_default();
            first.holders = first.holders.saturating_add(1);
        }
    }

    /// A file had these contents.
    pub(super) fn leave(&mut self, good: &FileObjects) {
        for uid in good.uids() {
            if let Some(first) = self.first.get_mut(uid) {
                first.holders = first.holders.saturating_sub(1);
                self.doubtful.push(uid.to_owned());
            }
        }
    }

    /// Forgets what no file has.
    pub(super) fn sweep(&mut self) {
        for uid in std::mem::take(&mut self.doubtful) {
            if self.first.get(&uid).is_some_and(|first| first.holders == 0) {
                self.first.remove(&uid);
            }
        }
    }
}
