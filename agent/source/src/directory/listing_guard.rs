//! Whether a look at the directory is to be believed. Pure.
//!
//! A directory that cannot be read says nothing. A directory that is another one than before (another device or
//! inode) may be the empty mount point under a volume that went away, or a new tree that is still being filled, or a
//! finished one that was moved into place. So a replacement is believed only when it holds a manifest and has looked
//! the same for [`ListingGuard::settle`]; an empty one is never believed while there is something to lose. The directory
//! from before, back again, is believed at once. Where nothing is known that could be lost, any directory is believed.

use super::listing::{FileId, Files};
use std::time::{Duration, Instant};

/// The directory that was believed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownDirectory {
    /// Seen by this process.
    Exactly(FileId),
    /// From before a restart: device numbers may have changed since, inode numbers have not.
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

/// A replacement that is watched until it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replacement {
    identity: FileId,
    files: Files,
    since: Instant,
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListingVerdict {
    /// What the directory holds is all there is.
    Listed,
    /// It says nothing for now.
    NotListed {
        reason: String,
        /// When to look again, beside at events.
        again: Option<Duration>,
    },
}

/// Remembers what was believed.
#[derive(Debug)]
pub(super) struct ListingGuard {
    known: Option<KnownDirectory>,
    candidate: Option<Replacement>,
    settle: Duration,
}

impl ListingGuard {
    pub(super) fn new(known: Option<KnownDirectory>, settle: Duration) -> ListingGuard {
        ListingGuard { known, candidate: None, settle }
    }

    /// The directory could not be read: a replacement that was being watched starts anew.
    pub(super) fn unreadable(&mut self) {
        self.candidate = None;
    }

    /// One look: the directory, its manifest files, and whether there is anything to lose.
    pub(super) fn look(
        &mut self,
        identity: FileId,
        files: &Files,
        something_to_lose: bool,
        now: Instant,
    ) -> ListingVerdict {
        let same = self.known.is_none_or(|known| known.is(identity));
        if same || !something_to_lose {
            return self.believe(identity);
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
            return self.believe(identity);
        }
        self.candidate = Some(Replacement { identity, files: files.clone(), since });
        ListingVerdict::NotListed {
            reason: "was replaced by another directory; it counts once it has stayed the same for a while"
                .to_owned(),
            again: Some(self.settle.saturating_sub(waited)),
        }
    }

    fn believe(&mut self, identity: FileId) -> ListingVerdict {
        self.known = Some(KnownDirectory::Exactly(identity));
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
    fn the_same_directory_is_believed_also_when_empty() {
        let mut judge = ListingGuard::new(None, SETTLE);
        let now = Instant::now();
        assert!(listed(&judge.look(A, &files(&["a"]), true, now)));
        assert!(listed(&judge.look(A, &files(&[]), true, now)));
    }

    #[test]
    fn an_empty_replacement_is_never_believed() {
        let mut judge = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        for minutes in 0..60 {
            assert!(!listed(&judge.look(B, &files(&[]), true, now + Duration::from_secs(60 * minutes))));
        }
        assert!(listed(&judge.look(A, &files(&[]), true, now)), "the old one is back");
        assert!(listed(&judge.look(B, &files(&[]), false, now)), "nothing to lose");
    }

    #[test]
    fn a_replacement_is_believed_after_it_stayed_the_same() {
        let mut judge = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        assert!(!listed(&judge.look(B, &files(&["a"]), true, now)));
        let almost = now + Duration::from_millis(900);
        assert!(!listed(&judge.look(B, &files(&["a", "b"]), true, almost)), "it grew: counted anew");
        assert!(!listed(&judge.look(B, &files(&["a", "b"]), true, almost + SETTLE / 2)));
        assert!(listed(&judge.look(B, &files(&["a", "b"]), true, almost + SETTLE)));
        assert!(listed(&judge.look(B, &files(&[]), true, almost + SETTLE)), "now it is the directory");
    }

    #[test]
    fn a_replacement_that_goes_away_in_between_starts_anew() {
        let mut judge = ListingGuard::new(Some(KnownDirectory::Exactly(A)), SETTLE);
        let now = Instant::now();
        assert!(!listed(&judge.look(B, &files(&["a"]), true, now)));
        judge.unreadable();
        assert!(!listed(&judge.look(B, &files(&["a"]), true, now + 2 * SETTLE)));
    }

    #[test]
    fn over_a_restart_the_inode_decides() {
        let other_device = FileId { device: 7, ..A };
        let now = Instant::now();
        assert!(listed(&ListingGuard::new(Some(KnownDirectory::Inode(10)), SETTLE).look(
            other_device,
            &files(&[]),
            true,
            now
        )));
        assert!(!listed(&ListingGuard::new(Some(KnownDirectory::Inode(10)), SETTLE).look(
            B,
            &files(&[]),
            true,
            now
        )));
    }
}
