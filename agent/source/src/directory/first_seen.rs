//! The time at which each pod and Service without a creation time was first seen.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
struct FirstSeenAt {
    /// Nanoseconds since 1970; `None` if the manifest itself gives a creation time.
    at: Option<i64>,
    /// The number of objects with the UID, over all files.
    holders: u32,
}

/// Times at which objects were first seen, by UID. A UID that no file has any more is forgotten at the end of
/// a scan, not earlier: the object may have moved from one file to another.
#[derive(Debug, Default)]
pub(super) struct FirstSeen {
    by_uid: BTreeMap<String, FirstSeenAt>,
    /// UIDs that no file may have any more.
    unheld: Vec<String>,
}

impl FirstSeen {
    /// Adds the times that were saved before a restart.
    pub(super) fn extend(&mut self, saved: &BTreeMap<String, i64>) {
        for (uid, at) in saved {
            self.by_uid.entry(uid.clone()).or_default().at = Some(*at);
            self.unheld.push(uid.clone());
        }
    }

    /// The time at which the object was first seen: `then` for one that was not seen before.
    pub(super) fn since(&mut self, uid: String, then: i64) -> i64 {
        *self.by_uid.entry(uid).or_default().at.get_or_insert(then)
    }

    /// The times of those UIDs that have one.
    pub(super) fn of<'a>(&self, uids: impl Iterator<Item = &'a str>) -> BTreeMap<String, i64> {
        uids.filter_map(|uid| Some((uid.to_owned(), self.by_uid.get(uid)?.at?))).collect()
    }

    /// A file has objects with these UIDs now.
    pub(super) fn enter<'a>(&mut self, uids: impl Iterator<Item = &'a str>) {
        for uid in uids {
            let first = self.by_uid.entry(uid.to_owned()).or_default();
            first.holders = first.holders.saturating_add(1);
        }
    }

    /// A file no longer has objects with these UIDs.
    pub(super) fn leave<'a>(&mut self, uids: impl Iterator<Item = &'a str>) {
        for uid in uids {
            if let Some(first) = self.by_uid.get_mut(uid) {
                first.holders = first.holders.saturating_sub(1);
                self.unheld.push(uid.to_owned());
            }
        }
    }

    /// Forgets the UIDs that no file has.
    pub(super) fn forget_unheld(&mut self) {
        for uid in std::mem::take(&mut self.unheld) {
            if self.by_uid.get(&uid).is_some_and(|first| first.holders == 0) {
                self.by_uid.remove(&uid);
            }
        }
    }
}
