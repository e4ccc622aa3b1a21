//! Whether the first call for a volume may be made. The controller that detaches volumes leaves those alone that the
//! Node's status lists in `volumesInUse`, so a volume that it attaches is listed before the node touches it. Pure.

use std::collections::BTreeSet;

/// What is known of a volume before a call that makes it usable on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeUse<'a> {
    /// The volume's name in the Node's status (`unique_name`); `None` for a volume that nobody attaches.
    pub attached: Option<&'a str>,
    /// Whether the volume is staged or published already.
    pub in_use: bool,
}

/// Whether the call may be made. `listed` are the volumes that the API server's Node lists and that the node itself
/// goes on to list. What is in use goes on, also while the API server is away.
pub fn may_use(volume: VolumeUse<'_>, listed: &BTreeSet<String>) -> bool {
    volume.in_use || volume.attached.is_none_or(|name| listed.contains(name))
}

/// The volumes that are safe to use: those that the node tells of, and that the API server's Node lists.
pub fn listed<'a>(told: &BTreeSet<String>, node: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    node.into_iter().filter(|name| told.contains(*name)).map(str::to_owned).collect()
}

/// Decides when a volume leaves the list: one look after it was last in use. What a look finds is older than what
/// begins beside it, and the next look finds that.
#[derive(Debug, Default)]
pub struct Lingering {
    last: BTreeSet<String>,
}

impl Lingering {
    /// What the node tells after a look that found these volumes in use.
    pub fn look(&mut self, found: BTreeSet<String>) -> BTreeSet<String> {
        let told = found.union(&self.last).cloned().collect();
        self.last = found;
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn an_attached_volume_waits_for_its_listing_and_one_in_use_does_not() {
        let first = |attached, in_use| VolumeUse { attached, in_use };
        let (none, listed) = (set(&[]), set(&["a"]));
        assert!(may_use(first(None, false), &none), "nobody attaches it");
        assert!(!may_use(first(Some("a"), false), &none));
        assert!(may_use(first(Some("a"), false), &listed));
        assert!(!may_use(first(Some("b"), false), &listed), "each volume for itself");
        assert!(may_use(first(Some("a"), true), &none), "the API server is away, or the agent was restarted");
    }

    #[test]
    fn a_volume_that_the_node_no_longer_tells_of_is_not_listed() {
        assert_eq!(listed(&set(&["a", "b"]), ["b", "c"]), set(&["b"]));
    }

    #[test]
    fn a_volume_leaves_one_look_after_it_was_in_use() {
        let mut lingering = Lingering::default();
        assert_eq!(lingering.look(set(&["a", "b"])), set(&["a", "b"]));
        assert_eq!(lingering.look(set(&["b"])), set(&["a", "b"]));
        assert_eq!(lingering.look(set(&["b"])), set(&["b"]));
    }
}
