//! Which pods use which objects, and since when an object is idle. Pure.

use berth_core::{ids::PodUid, model::ObjectName};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// The objects in use, and those that were in use a while ago.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pods: BTreeMap<PodUid, BTreeSet<ObjectName>>,
    /// The number of pods that use each object.
    users: BTreeMap<ObjectName, usize>,
    /// The time since which each object has no user.
    idle: BTreeMap<ObjectName, Instant>,
}

impl Usage {
    /// Takes the objects that a pod uses, none for a pod that is gone. Returns those that it did not use before.
    pub(super) fn set(&mut self, uid: &PodUid, names: BTreeSet<ObjectName>, now: Instant) -> Vec<ObjectName> {
        let before = self.pods.remove(uid).unwrap_or_default();
        for name in before.difference(&names) {
            let Some(users) = self.users.get_mut(name) else { continue };
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.users.remove(name);
                self.idle.insert(name.clone(), now);
            }
        }
        let new: Vec<ObjectName> = names.difference(&before).cloned().collect();
        for name in &new {
            let users = self.users.entry(name.clone()).or_default();
            *users = users.saturating_add(1);
            self.idle.remove(name);
        }
        if !names.is_empty() {
            self.pods.insert(uid.clone(), names);
        }
        new
    }

    /// The objects that a pod uses.
    pub(super) fn used(&self) -> impl Iterator<Item = &ObjectName> {
        self.users.keys()
    }

    /// The pods that use an object.
    pub(super) fn pods_of(&self, name: &ObjectName) -> impl Iterator<Item = &PodUid> {
        self.pods_with(move |used| used == name)
    }

    /// The pods that use an object of these.
    pub(super) fn pods_with(&self, of: impl Fn(&ObjectName) -> bool) -> impl Iterator<Item = &PodUid> {
        self.pods.iter().filter(move |(_, names)| names.iter().any(&of)).map(|(uid, _)| uid)
    }

    /// The time since which the longest idle object is idle.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle.values().min().copied()
    }

    /// Removes and returns the objects that have been idle for that time.
    pub(super) fn take_idle(&mut self, now: Instant, time: Duration) -> Vec<ObjectName> {
        let idle = self.idle.extract_if(.., |_, since| now.saturating_duration_since(*since) >= time);
        idle.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::model::ObjectKind;

    fn name(name: &str) -> ObjectName {
        (ObjectKind::ConfigMap, "default".parse().unwrap(), name.to_owned())
    }

    #[test]
    fn an_object_is_idle_a_while_after_its_last_pod() {
        let mut usage = Usage::default();
        let (a, b): (PodUid, PodUid) = ("a".parse().unwrap(), "b".parse().unwrap());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        assert_eq!(usage.set(&a, [name("1"), name("2")].into(), at(0)), [name("1"), name("2")]);
        assert_eq!(usage.set(&b, [name("2")].into(), at(1)), [name("2")], "told for each pod");
        assert_eq!(usage.set(&a, [name("1"), name("2")].into(), at(2)), [], "the same pod again");
        assert_eq!(usage.set(&a, BTreeSet::new(), at(10)), []);
        assert_eq!((usage.idle_since(), usage.used().count()), (Some(at(10)), 1));
        assert_eq!(usage.take_idle(at(69), minute), []);
        assert_eq!(usage.set(&b, [name("1"), name("2")].into(), at(70)), [name("1")], "used again in time");
        assert_eq!(usage.take_idle(at(100), minute), []);
        usage.set(&b, BTreeSet::new(), at(100));
        assert_eq!(usage.take_idle(at(160), minute), [name("1"), name("2")]);
        assert_eq!((usage.idle_since(), usage.pods.len(), usage.users.len()), (None, 0, 0));
    }
}
