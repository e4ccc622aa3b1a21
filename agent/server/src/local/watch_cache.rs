//! Watch cache: the published pods and their events, with subscriptions to changes.
//!
//! A subscription queues which pods changed, not how, so that a slow reader finds each pod once, in
//! its latest state. Its queue holds each pod at most once, and at most [`QUEUE`] in all; beyond
//! that the reader gets [`Change::Resync`]. A pod's JSON is encoded once per change, and its object is kept as JSON
//! alone: as a tree of values it takes eight times the memory.

use berth_api::{
    Error,
    frame::{self, REPLY_MAX},
    view::PodView,
};
use berth_core::{
    event::{EventKind, EventRecord, Involved},
    ids::{PodKey, PodUid},
    sync::lock,
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, Weak},
};
use tokio::sync::Notify;

/// Most changes in a subscription's queue: several times the pods of a node.
pub const QUEUE: usize = 4096;

/// Most events that are kept in all.
pub const EVENTS: usize = 1000;

/// Most events that are kept of one pod or Service.
pub const EVENTS_OF_POD: usize = 32;

/// A published pod.
#[derive(Debug)]
pub struct Published {
    /// Its view, without the object.
    pub view: PodView,
    json: Option<Arc<[u8]>>,
}

impl Published {
    fn of(mut view: PodView) -> Published {
        let json = match serde_json::to_vec(&view) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                tracing::error!(pod = %view.key, %error, "cannot encode the pod's view");
                None
            }
        };
        view.object = serde_json::Value::Null;
        Published { view, json }
    }

    /// The whole view as JSON; `None` where it cannot be encoded, which is logged once.
    pub fn json(&self) -> Option<Arc<[u8]>> {
        self.json.clone()
    }

    /// The `v1.Pod` with its status, decoded for this call; `None` where the view cannot be encoded.
    pub fn object(&self) -> Option<serde_json::Value> {
        let mut whole: serde_json::Value = serde_json::from_slice(self.json.as_deref()?).ok()?;
        whole.get_mut("object").map(serde_json::Value::take)
    }

    /// The frame of a `pod` reply, ready to be sent.
    pub fn frame(&self) -> Option<Result<Vec<u8>, Error>> {
        let json = self.json()?;
        Some(frame::of_parts(&[br#"{"kind":"pod","pod":"#, &json, b"}"], REPLY_MAX))
    }
}

/// A change that a subscription delivers.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pod changed to this state.
    Pod(Arc<Published>),
    /// The pod has a new event; its state is unchanged.
    Events(PodUid),
    /// The pod was removed.
    Removed(PodUid, PodKey),
    /// The queue was full: the reader must list all pods again.
    Resync,
}

/// The changes that a subscription delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Changes of pods.
    Pods,
    /// Changes of pods, and their events.
    PodsAndEvents,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<(PodUid, PodKey, bool)>,
    queued: HashSet<PodUid>,
    events: HashSet<PodUid>,
    resync: bool,
}

#[derive(Debug)]
struct Subscriber {
    interest: Interest,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<PodUid, Arc<Published>>,
    events: VecDeque<EventRecord>,
    subscribers: Vec<Weak<Subscriber>>,
}

/// Cache of published pods and events, filled by the status manager. Clones share one cache.
#[derive(Debug, Clone, Default)]
pub struct WatchCache(Arc<Mutex<State>>);

impl WatchCache {
    /// Publishes the state of a pod.
    pub fn publish(&self, view: PodView) {
        let (uid, key) = (view.uid.clone(), view.key.clone());
        let mut state = lock(&self.0);
        state.pods.insert(uid.clone(), Arc::new(Published::of(view)));
        state.notify(&uid, &key, true);
    }

    /// Removes a pod. Its events are kept.
    pub fn remove(&self, uid: &PodUid) {
        let mut state = lock(&self.0);
        if let Some(gone) = state.pods.remove(uid) {
            state.notify(uid, &gone.view.key, true);
        }
    }

    /// Adds an event of a pod or a Service. An equal event that is kept already is counted instead.
    pub fn event(&self, event: EventRecord) {
        let involved = event.involved.clone();
        let mut state = lock(&self.0);
        aggregate(&mut state.events, event);
        if let Involved::Pod { key, uid } = involved
            && state.pods.contains_key(&uid)
        {
            state.notify(&uid, &key, false);
        }
    }

    /// The published state of one pod.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Published>> {
        lock(&self.0).pods.get(uid).cloned()
    }

    /// The published states of all pods.
    pub fn pods(&self) -> Vec<Arc<Published>> {
        lock(&self.0).pods.values().cloned().collect()
    }

    /// The events of one pod, or all events, oldest first.
    pub fn events(&self, of: Option<&PodUid>) -> Vec<EventRecord> {
        lock(&self.0).events.iter().filter(|e| of.is_none_or(|u| e.involved.is_pod(u))).cloned().collect()
    }

    /// The last events of type Warning, at most `most`, oldest first.
    pub fn warnings(&self, most: usize) -> Vec<EventRecord> {
        let state = lock(&self.0);
        let warning = |e: &&EventRecord| e.event.kind == EventKind::Warning;
        let mut last: Vec<_> = state.events.iter().rev().filter(warning).take(most).cloned().collect();
        last.reverse();
        last
    }

    /// Subscribes to changes from now on. Subscribe first and read the state after that, so that no
    /// change is missed.
    pub fn subscribe(&self, interest: Interest) -> Subscription {
        let subscriber = Arc::new(Subscriber { interest, queue: Mutex::default(), wake: Notify::new() });
        lock(&self.0).subscribers.push(Arc::downgrade(&subscriber));
        Subscription { cache: self.clone(), subscriber }
    }
}

impl State {
    fn notify(&mut self, uid: &PodUid, key: &PodKey, pod: bool) {
        self.subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            if pod || subscriber.interest == Interest::PodsAndEvents {
                lock(&subscriber.queue).put(uid, key, pod);
                subscriber.wake.notify_one();
            }
            true
        });
    }
}

impl Queue {
    fn put(&mut self, uid: &PodUid, key: &PodKey, pod: bool) {
        let known = if pod { &mut self.queued } else { &mut self.events };
        if self.resync || !known.insert(uid.clone()) {
            return;
        }
        if self.order.len() >= QUEUE {
            *self = Queue { resync: true, ..Queue::default() };
            return;
        }
        self.order.push_back((uid.clone(), key.clone(), pod));
    }
}

/// Adds an event, or counts it where an equal one is kept. The newest is last.
fn aggregate(events: &mut VecDeque<EventRecord>, mut event: EventRecord) {
    let of = |e: &EventRecord| e.involved.uid() == event.involved.uid();
    let same = |e: &EventRecord| of(e) && e.event == event.event;
    if let Some(at) = events.iter().rposition(same)
        && let Some(before) = events.remove(at)
    {
        event.first = before.first;
        event.count = before.count.saturating_add(event.count);
    } else if events.iter().filter(|e| of(e)).count() >= EVENTS_OF_POD {
        if let Some(oldest) = events.iter().position(of) {
            events.remove(oldest);
        }
    } else if events.len() >= EVENTS {
        events.pop_front();
    }
    events.push_back(event);
}

/// A subscription to changes; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    cache: WatchCache,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// Waits until a change is queued. May be dropped and called again.
    pub async fn changed(&self) {
        loop {
            {
                let queue = lock(&self.subscriber.queue);
                if queue.resync || !queue.order.is_empty() {
                    return;
                }
            }
            self.subscriber.wake.notified().await;
        }
    }

    /// Takes the next change, with the pod's latest state; `None` where the queue is empty.
    pub fn take(&self) -> Option<Change> {
        let (uid, key, pod) = {
            let mut queue = lock(&self.subscriber.queue);
            if queue.resync {
                *queue = Queue::default();
                return Some(Change::Resync);
            }
            let (uid, key, pod) = queue.order.pop_front()?;
            if pod {
                queue.queued.remove(&uid)
            } else {
                queue.events.remove(&uid)
            };
            (uid, key, pod)
        };
        if !pod {
            return Some(Change::Events(uid));
        }
        Some(match self.cache.pod(&uid) {
            Some(published) => Change::Pod(published),
            None => Change::Removed(uid, key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{event::Event, time::Wall};

    fn view(n: usize) -> PodView {
        let text = format!(
            r#"{{"uid":"u{n}","key":{{"namespace":"d","name":"p{n}"}},"object":{{"metadata":{{}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn event(n: usize, message: &str, at: i64) -> EventRecord {
        let v = view(n);
        let event = Event::warning("Unhealthy", message);
        EventRecord::once(Involved::Pod { key: v.key, uid: v.uid }, event, Wall(at))
    }

    fn drain(s: &Subscription) -> Vec<String> {
        std::iter::from_fn(|| s.take())
            .map(|c| match c {
                Change::Pod(p) => format!("{} {}", p.view.key, p.view.ready),
                Change::Events(u) => format!("events {u}"),
                Change::Removed(_, k) => format!("removed {k}"),
                Change::Resync => "resync".to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_object_of_a_pod_is_there_when_it_is_asked_for() {
        let published = Published::of(view(1));
        assert_eq!(published.object(), Some(serde_json::json!({ "metadata": {} })));
    }

    #[test]
    fn a_slow_reader_finds_each_pod_once_in_its_latest_state() {
        let cache = WatchCache::default();
        let watch = cache.subscribe(Interest::Pods);
        cache.publish(view(1));
        cache.publish(view(2));
        cache.publish(PodView { ready: true, ..view(1) });
        cache.event(event(1, "m", 1));
        cache.remove(&view(2).uid);
        cache.remove(&view(3).uid);
        assert_eq!(drain(&watch), ["d/p1 true", "removed d/p2"]);
        assert_eq!(drain(&watch), Vec::<String>::new());
        cache.publish(view(2));
        assert_eq!(drain(&watch), ["d/p2 false"]);
    }

    #[test]
    fn a_full_queue_becomes_one_resync() {
        let cache = WatchCache::default();
        let watch = cache.subscribe(Interest::PodsAndEvents);
        for n in 0..QUEUE {
            cache.publish(view(n));
        }
        assert_eq!(lock(&watch.subscriber.queue).order.len(), QUEUE);
        cache.event(event(1, "m", 1));
        cache.publish(view(QUEUE + 1));
        assert_eq!(drain(&watch), ["resync"]);
        cache.event(event(1, "m", 1));
        cache.publish(view(1));
        assert_eq!(drain(&watch), ["events u1", "d/p1 false"]);
    }

    #[test]
    fn equal_events_are_counted_and_kept_events_are_bounded() {
        let cache = WatchCache::default();
        for at in 0..5 {
            cache.event(event(1, "same", at));
        }
        let kept = cache.events(None);
        assert_eq!((kept.len(), kept[0].count, kept[0].first, kept[0].last), (1, 5, Wall(0), Wall(4)));
        for n in 0..100 {
            cache.event(event(1, &n.to_string(), n));
        }
        let kept = cache.events(Some(&view(1).uid));
        assert_eq!(kept.len(), EVENTS_OF_POD);
        assert_eq!(kept.last().unwrap().event.message, "99");
        for n in 0..2 * EVENTS {
            cache.event(event(n + 10, "m", 1));
        }
        assert_eq!(cache.events(None).len(), EVENTS);
        assert_eq!(cache.warnings(3).len(), 3);
        assert_eq!(cache.warnings(1)[0].involved.uid(), format!("u{}", 2 * EVENTS + 9));
    }

    #[test]
    fn a_published_pods_frame_decodes_to_its_reply() {
        let cache = WatchCache::default();
        cache.publish(view(7));
        let frame = cache.pod(&view(7).uid).unwrap().frame().unwrap().unwrap();
        let reply: berth_api::message::Reply = serde_json::from_slice(&frame[4..]).unwrap();
        assert_eq!(reply, berth_api::message::Reply::Pod { pod: Box::new(view(7)) });
    }

    #[test]
    fn a_dropped_subscription_is_forgotten() {
        let cache = WatchCache::default();
        drop(cache.subscribe(Interest::Pods));
        cache.publish(view(1));
        assert!(lock(&cache.0).subscribers.is_empty());
    }

    #[test]
    fn a_services_events_are_kept_and_wake_no_subscriber_of_pods() {
        let cache = WatchCache::default();
        cache.publish(view(1));
        let s = cache.subscribe(Interest::PodsAndEvents);
        for at in [1, 2] {
            // The Service has a pod's UID, and still its events are not the pod's.
            let involved = Involved::Service { key: view(1).key, uid: "u1".into() };
            cache.event(EventRecord::once(involved, Event::warning("NotCarried", "m"), Wall(at)));
        }
        assert_eq!(drain(&s), Vec::<String>::new());
        assert!(cache.events(Some(&view(1).uid)).is_empty());
        let [kept] = cache.events(None).try_into().unwrap();
        assert_eq!((kept.count, kept.first, kept.last), (2, Wall(1), Wall(2)));
    }
}
