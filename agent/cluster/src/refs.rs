//! The ConfigMaps, Secrets and objects of storage that pods use, followed one by one.
//!
//! The API server lets a node read an object only if a pod of the node names it, and only by its name: each object has
//! a reflector of its own. The reflector starts with the first pod that uses the object and ends [`IDLE`] after the
//! last one, or when the object says that it never changes. Owns a task for each followed object.
//!
//! An object is unknown until the API server has answered. An answer without the object says that there is none.

mod object;
mod storage;
mod usage;

use crate::Task;
use berth_core::{
    ids::PodUid,
    model::{KeyedData, ObjectKind, ObjectName, Objects, StorageObject},
    refs::refs_with,
    value::{Value, Why},
};
use berth_kube::pool::Pool;
use berth_source::DesiredPod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use usage::Usage;

/// The time for which an object stays followed that no pod uses: a pod that is replaced finds its objects at hand.
const IDLE: Duration = Duration::from_secs(60);

/// What the reflector of an object tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The object.
    Known {
        /// Its data.
        data: Arc<KeyedData>,
        /// Whether it never changes. The reflector has ended then.
        immutable: bool,
    },
    /// An object of storage.
    Storage(StorageObject),
    /// The object does not exist.
    Absent,
    /// The object may be behind, or is not known yet. What was known of it stays.
    Behind(Why),
    /// The object is current again.
    Current,
}

/// The followed objects.
pub(crate) struct References {
    pool: Pool,
    answers: mpsc::Sender<(ObjectName, Answer)>,
    usage: Usage,
    followed: BTreeMap<ObjectName, Followed>,
    /// Objects of storage that changed: what the pods that use them name may have changed too.
    led: BTreeSet<ObjectName>,
}

#[derive(Debug)]
struct Followed {
    _task: Task,
    /// Whether the reflector has an answer and is not behind.
    current: bool,
}

impl References {
    /// The reflectors send their answers to `answers`.
    pub(crate) fn new(pool: Pool, answers: mpsc::Sender<(ObjectName, Answer)>) -> References {
        References { pool, answers, usage: Usage::default(), followed: BTreeMap::new(), led: BTreeSet::new() }
    }

    /// Takes a pod that is new or has changed, or is gone.
    pub(crate) fn pod(&mut self, uid: &PodUid, pod: Option<&DesiredPod>, objects: &mut Arc<Objects>) {
        // A pod that has ended reads nothing any more.
        let names = pod.filter(|pod| !pod.is_over()).map(|pod| names(pod, objects)).unwrap_or_default();
        for name in self.usage.set(uid, names, Instant::now()) {
            // A claim, a volume or an attachment may have been made anew under its name since it was asked for: a pod is
            // not mounted by an old answer. While another pod uses the claim it cannot go, so its answer stays meanwhile.
            let asked_anew = name.0.is_storage();
            if asked_anew && self.usage.pods_of(&name).all(|user| user == uid) {
                forget(&name, objects);
            }
            // A reflector that waits after a refusal starts anew: what refused the object to an earlier pod need not
            // refuse it to this one.
            if asked_anew || self.followed.get(&name).is_none_or(|followed| !followed.current) {
                let (pool, answers) = (self.pool.clone(), self.answers.clone());
                let task = if name.0.is_storage() {
                    Task::spawn(storage::run(name.clone(), pool, answers))
                } else {
                    Task::spawn(object::run(name.clone(), pool, answers))
                };
                forget_refusal(&name, objects);
                self.followed.insert(name, Followed { _task: task, current: false });
            }
        }
    }

    /// Takes what the reflector of an object tells.
    pub(crate) fn answered(&mut self, name: &ObjectName, answer: Answer, objects: &mut Arc<Objects>) {
        // The last words of a reflector that was stopped.
        let Some(followed) = self.followed.get_mut(name) else { return };
        let (kind, namespace, text) = name.clone();
        followed.current = !matches!(answer, Answer::Behind(_));
        if kind.is_storage() {
            return self.storage_answered(name, answer, objects);
        }
        let known = objects.get(kind, &namespace, &text);
        match (answer, known) {
            (Answer::Known { data, immutable }, known) => {
                if immutable {
                    tracing::debug!(%kind, %namespace, name = text, "an immutable object is followed no more");
                }
                if known != Value::Known(&data) {
                    Arc::make_mut(objects).put(kind, data);
                }
            }
            (Answer::Absent, Value::Absent) | (Answer::Current | Answer::Storage(_), _) => {}
            (Answer::Absent, _) => Arc::make_mut(objects).put_absent(kind, namespace, text),
            (Answer::Behind(why), Value::Unknown(known)) if why != known => {
                Arc::make_mut(objects).put_unknown(kind, namespace, text, why);
            }
            (Answer::Behind(_), _) => {}
        }
    }

    fn storage_answered(&mut self, name: &ObjectName, answer: Answer, objects: &mut Arc<Objects>) {
        let (kind, namespace, text) = name.clone();
        let known = objects.storage(name);
        match (answer, known) {
            (Answer::Storage(object), known) if known != Value::Known(&object) => {
                Arc::make_mut(objects).put_storage(name.clone(), object);
            }
            (Answer::Absent, known) if known != Value::Absent => {
                Arc::make_mut(objects).put_absent(kind, namespace, text);
            }
            (Answer::Behind(why), Value::Unknown(known)) if why != known => {
                Arc::make_mut(objects).put_unknown(kind, namespace, text, why);
            }
            _ => return,
        }
        self.led.insert(name.clone());
    }

    /// The pods that use an object of storage that has changed since the last call.
    pub(crate) fn take_led(&mut self) -> BTreeSet<PodUid> {
        let led = std::mem::take(&mut self.led);
        led.iter().flat_map(|name| self.usage.pods_of(name)).cloned().collect()
    }

    /// The pods with objects of storage, for a change of the drivers.
    pub(crate) fn with_storage(&self) -> BTreeSet<PodUid> {
        self.usage.pods_with(|name| name.0.is_storage()).cloned().collect()
    }

    /// The time of the next [`References::stop_idle`] that stops something.
    pub(crate) fn next_stop(&self) -> Option<Instant> {
        self.usage.idle_since().map(|since| since + IDLE)
    }

    /// Stops and forgets the objects that no pod has used for a minute.
    pub(crate) fn stop_idle(&mut self, objects: &mut Arc<Objects>) {
        for name in self.usage.take_idle(Instant::now(), IDLE) {
            self.followed.remove(&name);
            let (kind, namespace, name) = name;
            Arc::make_mut(objects).forget(kind, &namespace, &name);
        }
    }

    /// Forgets the objects of which no reflector has told yet: those that an earlier agent kept. A pod that starts once the
    /// API server is there must not start with what an object was before.
    pub(crate) fn forget_kept(&self, objects: &mut Arc<Objects>) {
        forget_others(objects, |name| self.followed.get(name).is_some_and(|followed| followed.current));
    }

    /// The objects in use of which nothing is known yet.
    pub(crate) fn unread(&self, objects: &Objects) -> BTreeMap<ObjectName, Why> {
        let why = |name: &ObjectName| match name.0.is_storage() {
            true => objects.storage(name).why(),
            false => objects.get(name.0, &name.1, &name.2).why(),
        };
        let unread = self.usage.used().filter_map(|name| Some((name.clone(), why(name)?)));
        unread.collect()
    }
}

/// Forgets what is known of an object.
fn forget(name: &ObjectName, objects: &mut Arc<Objects>) {
    if objects.storage(name) != Value::Unknown(Why::NotAsked) {
        let (kind, namespace, name) = name;
        Arc::make_mut(objects).forget(*kind, namespace, name);
    }
}

/// Forgets the objects that are not current.
fn forget_others(objects: &mut Arc<Objects>, current: impl Fn(&ObjectName) -> bool) {
    let others: Vec<ObjectName> = objects.names().filter(|name| !current(name)).cloned().collect();
    for (kind, namespace, name) in others {
        Arc::make_mut(objects).forget(kind, &namespace, &name);
    }
}

/// Forgets that an object was refused, so that its new pod meets no refusal that was for an earlier one.
fn forget_refusal((kind, namespace, name): &ObjectName, objects: &mut Arc<Objects>) {
    let why = match kind.is_storage() {
        true => objects.storage(&(*kind, namespace.clone(), name.clone())).why(),
        false => objects.get(*kind, namespace, name).why(),
    };
    if let Some(Why::Refused(_)) = why {
        Arc::make_mut(objects).put_unknown(*kind, namespace.clone(), name.clone(), Why::NotAsked);
    }
}

/// The objects that the volumes and variables of a pod are made of, and those with credentials for its images. The drivers
/// are followed as a set.
fn names(desired: &DesiredPod, objects: &Objects) -> BTreeSet<ObjectName> {
    let all = refs_with(&desired.pod, objects).into_iter();
    let data = all.filter(|r| r.used_for.is_object() && r.kind != ObjectKind::CsiDriver);
    data.map(|r| (r.kind, r.namespace, r.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pod_waits_anew_for_an_object_that_was_refused_to_another() {
        let name = (ObjectKind::Secret, "default".parse().unwrap(), "s".to_owned());
        let mut objects = Arc::new(Objects::default());
        let mut with = |why: Why| {
            let (kind, namespace, text) = name.clone();
            Arc::make_mut(&mut objects).put_unknown(kind, namespace, text, why);
            forget_refusal(&name, &mut objects);
            objects.get(name.0, &name.1, &name.2).why()
        };
        assert_eq!(with(Why::Refused("no relationship found".into())), Some(Why::NotAsked));
        let away = Why::Unreachable("connection refused".into());
        assert_eq!(with(away.clone()), Some(away));
    }

    #[test]
    fn a_kept_object_counts_no_more_once_the_api_server_is_there_until_its_reflector_tells() {
        let namespace: berth_core::ids::Namespace = "default".parse().unwrap();
        let name = |text: &str| (ObjectKind::ConfigMap, namespace.clone(), text.to_owned());
        let mut objects = Objects::default();
        for text in ["followed", "kept"] {
            let (namespace, name) = (namespace.clone(), text.to_owned());
            let (data, binary_data) = (BTreeMap::new(), BTreeMap::new());
            objects.put_config_map(KeyedData {
                namespace,
                name,
                kind: None,
                uid: String::new(),
                data,
                binary_data,
            });
        }
        objects.put_absent(ObjectKind::ConfigMap, namespace.clone(), "absent".to_owned());
        let mut objects = Arc::new(objects);
        forget_others(&mut objects, |known| *known == name("followed"));
        let why = |text: &str| objects.get(ObjectKind::ConfigMap, &namespace, text).why();
        assert_eq!(why("followed"), None);
        assert_eq!([why("kept"), why("absent")], [Some(Why::NotAsked), Some(Why::NotAsked)]);
    }
}
