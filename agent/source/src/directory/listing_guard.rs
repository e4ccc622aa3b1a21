//! Whether a listing of the directory is accepted as complete, so that pods without a manifest may be ended.
//! A function of two listings; the watcher makes them.
//!
//! An unreadable directory has no listing. A directory other than the one before (another device or inode)
//! may be the empty mount point under a volume that went away, a new tree that is still being filled, or a
//! finished one that was moved into place. So a replacement is accepted only once it holds a manifest and
//! stayed unchanged for [`ListingGuard::settle`]. An empty replacement is never accepted while objects could
//! be lost by it. The directory from before is accepted at once when it is back. With no objects to lose, any
//! directory is accepted.

use super::listing::{FileId, Files};
use std::time::{Duration, Instant};

/// The directory whose listing was accepted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownDirectory {
    /// Accepted by this process.
    Exactly(FileId),
    /// Accepted before a restart. Device numbers may have changed since, inode numbers have not.
    Inode(u64),
}

impl KnownDirectory {
    fn is(self, identity: FileId) -> bool {
        match self {
            KnownDirectory::Exactly(known) => known == identity,
            KnownDirectory::Inode(inode) => inode == identity.inode,
        }
    }
}

/// A replacement that has yet to stay unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replacement {
    identity: FileId,
    files: Files,
    since: Instant,
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListingVerdict {
    /// The listing is complete.
    Listed,
    /// The listing does not count for now.
    NotListed {
        /// Why, for people.
        reason: String,
        /// Time until the next check, if it need not wait for an event.
        again: Option<Duration>,
    },
}

/// Guard that keeps pods from being ended by a missing, unreadable or replaced directory.
#[derive(Debug)]
pub(super) struct ListingGuard {
    accepted: Option<KnownDirectory>,
    candidate: Option<Replacement>,
    /// How long a replacement must stay unchanged.
    settle: Duration,
}

impl ListingGuard {
    pub(super) fn new(accepted: Option<KnownDirectory>, settle: Duration) -> ListingGuard {
        ListingGuard { accepted, candidate: None, settle }
    }

    /// The directory could not be read. A replacement has to stay unchanged from its next listing on.
    pub(super) fn unreadable(&mut self) {
        self.candidate = None;
    }

    /// Checks a listing: the directory, its manifest files, and whether there are objects to lose.
    pub(super) fn check(
        &mut self,
        identity: FileId,
        files: &Files,
        objects_to_lose: bool,
        now: Instant,
    ) -> ListingVerdict {
        let same = self.accepted.is_none_or(|accepted| accepted.is(identity));
        if same || !objects_to_lose {
            return self.accept(identity);
        }
        if files.is_empty() {
            self.candidate = None;
            return ListingVerdict::NotListed {
                reason: "was replaced by an empty directory; the pods stay until it holds a manifest"
                    .to_owned(),
                again: None,
            };
        }
        let since = match &self.candidate {
            Some(c) if c.identity == identity && c.files == *files => c.since,
            _ => now,
        };
        let waited = now.saturating_duration_since(since);
        if waited >= self.settle {
            return self.accept(identity);
        }
        self.candidate = Some(Replacement { identity, files: files.clone(), since });
        ListingVerdict::NotListed {
            reason: "was replaced by another directory; it counts once it has stayed the same for a while"
                .to_owned(),
            again: Some(self.settle.saturating_sub(waited)),
        }
    }

    fn accept(&mut self, identity: FileId) -> ListingVerdict {
        self.accepted = Some(KnownDirectory::Exactly(identity));
        self.candidate = None;
        ListingVerdict::Listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);
    const A: FileId = FileId { device: 1, inode: 10 };
    const B: FileId = FileId { device: 1, inode: 20 };

    fn files(names: &[&str]) -> Files {
        names.iter().map(|n| ((*n).to_owned(), None)).collect()
    }

    fn listed(v: &ListingVerdict) -> bool {
        *v == ListingVerdict::Listed
    }

    #[test]
    fn the_same_directory_is_accepted_also_when_empty() {
        let mut guard = ListingGuard::new(None, SETTLE);
        let now = Instant::now();
        assert!(listed(&guard.check(A, &files(&["a"]), true, now)));
        assert!(listed(&guard.check(A, &files(&[]), true, now)));
    }

    #[test]
    fn an_empty_replacement_is_never_accepted() {
        let mut guard = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        for minutes in 0..60 {
            assert!(!listed(&guard.check(B, &files(&[]), true, now + Duration::from_secs(60 * minutes))));
        }
        assert!(listed(&guard.check(A, &files(&[]), true, now)), "the old one is back");
        assert!(listed(&guard.check(B, &files(&[]), false, now)), "nothing to lose");
    }

    #[test]
    fn a_replacement_is_accepted_after_it_stayed_the_same() {
        let mut guard = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        assert!(!listed(&guard.check(B, &files(&["a"]), true, now)));
        let almost = now + Duration::from_millis(900);
        assert!(
            !listed(&guard.check(B, &files(&["a", "b"]), true, almost)),
            "it grew: the time starts again"
        );
        assert!(!listed(&guard.check(B, &files(&["a", "b"]), true, almost + SETTLE / 2)));
        assert!(listed(&guard.check(B, &files(&["a", "b"]), true, almost + SETTLE)));
        assert!(listed(&guard.check(B, &files(&[]), true, almost + SETTLE)), "now it is the directory");
    }

    #[test]
    fn a_replacement_that_goes_away_in_between_has_to_stay_the_same_again() {
        let mut guard = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        assert!(!listed(&guard.check(B, &files(&["a"]), true, now)));
        guard.unreadable();
        assert!(!listed(&guard.check(B, &files(&["a"]), true, now + 2 * SETTLE)));
    }

    #[test]
    fn after_a_restart_the_inode_identifies_the_directory() {
        let other_device = FileId { device: 7, ..A };
        let now = Instant::now();
        assert!(listed(&ListingGuard::new(Some(KnownDirectory::Inode(10)), SETTLE).check(
            other_device,
            &files(&[]),
            true,
            now
        )));
        assert!(!listed(&ListingGuard::new(Some(KnownDirectory::Inode(10)), SETTLE).check(
            B,
            &files(&[]),
            true,
            now
        )));
    }
}
