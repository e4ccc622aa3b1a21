//! Image collection: which images of the node are removed, in which order, and how much has to be freed. Pure. The rules
//! are the kubelet's (`pkg/kubelet/images/image_gc_manager.go`).
//!
//! [`ImageAges`] is what cannot be observed: when an image was seen first, and when it was last in use. It is lost with the
//! agent, as the kubelet's is.

use crate::time::{Boottime, Wall};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// When images are removed (`ImageGCPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionPolicy {
    /// From this usage of the file system on images are removed, in percent (`imageGCHighThresholdPercent`).
    pub high_percent: u8,
    /// Images are removed down to this usage, in percent (`imageGCLowThresholdPercent`).
    pub low_percent: u8,
    /// The age below which no image is removed for space (`imageMinimumGCAge`).
    pub minimum_age: Duration,
    /// An image that was not in use for so long is removed whatever the usage is (`imageMaximumGCAge`); zero: never.
    pub maximum_age: Duration,
}

impl Default for CollectionPolicy {
    fn default() -> CollectionPolicy {
        CollectionPolicy {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_secs(120),
            maximum_age: Duration::ZERO,
        }
    }
}

impl CollectionPolicy {
    /// The fault of the policy, in the kubelet's words (`ValidateKubeletConfiguration`).
    pub fn fault(&self) -> Option<String> {
        let CollectionPolicy { high_percent, low_percent, minimum_age, maximum_age } = *self;
        let percent = |field: &str, flag: &str, value: u8| {
            (value > 100).then(|| {
                format!(
                    "invalid configuration: {field} ({flag}) {value} must be between 0 and 100, inclusive"
                )
            })
        };
        percent("imageGCLowThresholdPercent", "--image-gc-low-threshold", low_percent)
            .or_else(|| percent("imageGCHighThresholdPercent", "--image-gc-high-threshold", high_percent))
            .or_else(|| {
                (low_percent >= high_percent).then(|| {
                    format!(
                        "invalid configuration: imageGCLowThresholdPercent (--image-gc-low-threshold) {low_percent} must \
                         be less than imageGCHighThresholdPercent (--image-gc-high-threshold) {high_percent}"
                    )
                })
            })
            .or_else(|| {
                (!maximum_age.is_zero() && maximum_age <= minimum_age).then(|| {
                    format!(
                        "invalid configuration: imageMaximumGCAge {} must be greater than imageMinimumGCAge {}",
                        super::go_duration(maximum_age),
                        super::go_duration(minimum_age)
                    )
                })
            })
    }

    /// Whether images are never removed: no usage is beyond the mark, and no image too old.
    pub fn is_off(&self) -> bool {
        self.high_percent == 100 && self.maximum_age.is_zero()
    }

    /// How many bytes have to be freed on a file system of this capacity; `None` where the usage is below the high mark.
    pub fn excess(&self, disk: Disk) -> Option<Excess> {
        let available = u128::from(disk.available.min(disk.capacity));
        let capacity = u128::from(disk.capacity);
        let free_percent = (available * 100).checked_div(capacity)?;
        let used_percent = u8::try_from(100 - free_percent.min(100)).unwrap_or(100);
        if used_percent < self.high_percent {
            return None;
        }
        let wanted = capacity * u128::from(100 - self.low_percent.min(100)) / 100;
        Some(Excess {
            used_percent,
            bytes: u64::try_from(wanted.saturating_sub(available)).unwrap_or(u64::MAX),
        })
    }
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub capacity: u64,
    /// What is free.
    pub available: u64,
}

/// A usage beyond the high mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// The usage in percent.
    pub used_percent: u8,
    /// The bytes to be freed.
    pub bytes: u64,
}

/// Why an image stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// A container's record, or a pod that is wanted, names it.
    InUse,
    /// It is marked never to be removed.
    Pinned,
    /// Another user of containerd's namespace holds it.
    Leased,
    /// It is younger than the minimum age.
    Young,
}

impl Keep {
    /// The reason in words, for a sentence about such images.
    pub fn words(self) -> &'static str {
        match self {
            Keep::InUse => "in use",
            Keep::Pinned => "pinned",
            Keep::Leased => "leased by others",
            Keep::Young => "below the minimum age",
        }
    }
}

/// What decides over an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The image's id.
    pub id: String,
    /// Whether a container or a wanted pod names it.
    pub in_use: bool,
    /// Whether it is marked never to be removed.
    pub pinned: bool,
    /// Whether a lease of another user holds it.
    pub leased: bool,
    /// When its first name was made.
    pub created_at: Option<Wall>,
}

impl Candidate {
    /// Why the image stays, whatever its age is.
    pub fn kept(&self) -> Option<Keep> {
        [(self.in_use, Keep::InUse), (self.pinned, Keep::Pinned), (self.leased, Keep::Leased)]
            .into_iter()
            .find_map(|(so, keep)| so.then_some(keep))
    }
}

#[derive(Debug, Clone, Copy)]
struct Age {
    first_seen: Boottime,
    last_used: Option<Boottime>,
}

/// When each image was seen first, and last in use, since the agent started.
#[derive(Debug, Clone, Default)]
pub struct ImageAges(BTreeMap<String, Age>);

/// An image that may be removed, and whether its age alone demands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The image's id.
    pub id: String,
    /// Whether it was not in use for longer than the maximum age.
    pub too_old: bool,
}

impl ImageAges {
    /// Takes what is there at this moment.
    pub fn observe(&mut self, images: &[Candidate], now: Boottime) {
        for image in images {
            let age = self.0.entry(image.id.clone()).or_insert(Age { first_seen: now, last_used: None });
            if image.in_use {
                age.last_used = Some(now);
            }
        }
        let present: BTreeSet<&str> = images.iter().map(|i| i.id.as_str()).collect();
        self.0.retain(|id, _| present.contains(id.as_str()));
    }

    /// Whether the image is younger than the minimum age.
    pub fn is_young(&self, id: &str, policy: &CollectionPolicy, now: Boottime) -> bool {
        self.0.get(id).is_none_or(|age| now.since(age.first_seen) < policy.minimum_age)
    }

    /// The images that may be removed, in the order of their removal: the ones longest unused first, those that were
    /// never used before the others. `began` is when the agent started: no image is too old before the maximum age has
    /// passed since, because its last use is not known.
    pub fn removals(
        &self,
        images: &[Candidate],
        policy: &CollectionPolicy,
        began: Boottime,
        now: Boottime,
    ) -> Vec<Removal> {
        let mut free: Vec<(Age, &Candidate)> = images
            .iter()
            .filter(|image| image.kept().is_none())
            .filter_map(|image| Some((*self.0.get(&image.id)?, image)))
            .collect();
        // What the agent saw first at once, as at its start, goes by the age of the names.
        free.sort_by_key(|(age, image)| (age.last_used, age.first_seen, image.created_at, image.id.as_str()));
        let aged = !policy.maximum_age.is_zero() && now.since(began) > policy.maximum_age;
        let removal = |(age, image): (Age, &Candidate)| {
            let unused = age.last_used.map_or(Duration::MAX, |used| now.since(used));
            Removal { id: image.id.clone(), too_old: aged && unused > policy.maximum_age }
        };
        free.into_iter().map(removal).collect()
    }
}

/// The kubelet's message where too little could be freed (event `FreeDiskSpaceFailed`).
pub fn insufficient(used_percent: u8, capacity: u64, freed: u64) -> String {
    format!(
        "Insufficient free disk space on the node's image filesystem ({used_percent}% of {} used). Failed to free \
         sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by \
         active images, logs, volumes, or other data.",
        go_size(capacity)
    )
}

/// A size as the kubelet writes it in that message.
fn go_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = usize::try_from(bytes.ilog2() / 10).unwrap_or(UNITS.len()).min(UNITS.len());
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let value = bytes as f64 / (1_u64 << (10 * power)) as f64;
    format!("{value:.1} {}", UNITS[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boottime {
        Boottime(Duration::from_secs(seconds))
    }

    fn image(id: &str) -> Candidate {
        Candidate { id: id.to_owned(), in_use: false, pinned: false, leased: false, created_at: None }
    }

    fn used(id: &str) -> Candidate {
        Candidate { in_use: true, ..image(id) }
    }

    fn ids(removals: &[Removal]) -> Vec<&str> {
        removals.iter().map(|r| r.id.as_str()).collect()
    }

    #[test]
    fn the_marks_are_the_kubelets() {
        let policy = CollectionPolicy::default();
        let excess = |capacity, available| policy.excess(Disk { capacity, available });
        assert_eq!(excess(1000, 160), None, "84 percent");
        // 15.9 percent are free: Go divides integers, so 85 percent are used.
        assert_eq!(excess(1000, 159), Some(Excess { used_percent: 85, bytes: 41 }));
        assert_eq!(excess(1000, 0), Some(Excess { used_percent: 100, bytes: 200 }));
        assert_eq!(excess(1000, 2000), None, "more is available than there is");
        assert_eq!(excess(0, 0), None);
        let huge = Disk { capacity: u64::MAX, available: 0 };
        assert_eq!(policy.excess(huge).unwrap().used_percent, 100);
    }

    #[test]
    fn what_is_kept_is_never_a_removal() {
        let all = [
            used("a"),
            Candidate { pinned: true, ..image("b") },
            Candidate { leased: true, ..image("c") },
            image("d"),
        ];
        let keeps: Vec<Option<Keep>> = all.iter().map(Candidate::kept).collect();
        assert_eq!(keeps, [Some(Keep::InUse), Some(Keep::Pinned), Some(Keep::Leased), None]);
        let mut ages = ImageAges::default();
        ages.observe(&all, at(1));
        let removals = ages.removals(&all, &CollectionPolicy::default(), at(0), at(1000));
        assert_eq!(ids(&removals), ["d"]);
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut ages = ImageAges::default();
        ages.observe(&[used("late"), used("early"), image("never-2")], at(10));
        ages.observe(&[used("late"), image("early"), image("never-2"), image("never-3")], at(20));
        let now = [image("late"), image("early"), image("never-2"), image("never-3")];
        ages.observe(&now, at(30));
        let removals = ages.removals(&now, &CollectionPolicy::default(), at(0), at(30));
        assert_eq!(ids(&removals), ["never-2", "never-3", "early", "late"]);
        // A new agent sees all at once.
        let made = |id: &str, at| Candidate { created_at: Some(Wall(at)), ..image(id) };
        let all = [made("a", 3), made("b", 1), made("c", 2)];
        let mut ages = ImageAges::default();
        ages.observe(&all, at(1));
        let removals = ages.removals(&all, &CollectionPolicy::default(), at(0), at(30));
        assert_eq!(ids(&removals), ["b", "c", "a"]);
    }

    #[test]
    fn an_image_is_young_from_its_first_sight_and_again_after_its_return() {
        let policy = CollectionPolicy::default();
        let mut ages = ImageAges::default();
        ages.observe(&[image("a")], at(10));
        assert!(ages.is_young("a", &policy, at(129)) && !ages.is_young("a", &policy, at(130)));
        ages.observe(&[], at(140));
        ages.observe(&[image("a")], at(150));
        assert!(ages.is_young("a", &policy, at(200)), "it was pulled again");
        assert!(ages.is_young("unknown", &policy, at(200)));
    }

    #[test]
    fn the_maximum_age_counts_from_the_last_use_and_from_the_agents_start() {
        let policy =
            CollectionPolicy { maximum_age: Duration::from_secs(100), ..CollectionPolicy::default() };
        let mut ages = ImageAges::default();
        ages.observe(&[used("a"), image("b")], at(50));
        let all = [image("a"), image("b")];
        ages.observe(&all, at(51));
        let old = |now| {
            let removals = ages.removals(&all, &policy, at(0), at(now));
            removals.into_iter().filter(|r| r.too_old).map(|r| r.id).collect::<Vec<_>>()
        };
        assert!(old(100).is_empty(), "the agent runs no longer than the maximum age");
        assert_eq!(old(101), ["b"]);
        assert_eq!(old(151), ["b", "a"]);
    }

    #[test]
    fn a_policy_that_contradicts_itself_is_refused() {
        let policy = CollectionPolicy::default();
        assert_eq!(policy.fault(), None);
        for (bad, part) in [
            (CollectionPolicy { high_percent: 101, ..policy }, "101 must be between 0 and 100"),
            (
                CollectionPolicy { low_percent: 85, ..policy },
                "85 must be less than imageGCHighThresholdPercent",
            ),
            (
                CollectionPolicy { maximum_age: Duration::from_secs(60), ..policy },
                "imageMaximumGCAge 1m0s must be greater than imageMinimumGCAge 2m0s",
            ),
        ] {
            assert!(bad.fault().is_some_and(|f| f.contains(part)), "{:?}", bad.fault());
        }
        assert!(CollectionPolicy { high_percent: 100, ..policy }.is_off());
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let text = insufficient(91, 3 << 30, 4096);
        assert!(text.starts_with(
            "Insufficient free disk space on the node's image filesystem (91% of 3.0 GiB used). Failed to free sufficient \
             space by deleting unused images (freed 4096 bytes). Investigate"
        ));
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (2 << 40, "2.0 TiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(go_size(bytes), text);
        }
    }
}
