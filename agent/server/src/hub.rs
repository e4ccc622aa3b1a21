//! What is known of the pods and what happened to them, and those who want to hear of changes.
//!
//! A subscription is told which pods changed, not how: whoever reads slowly finds each pod once, as it is by then. Its
//! queue holds a pod at most once and is cut at [`QUEUE`]; then it is told to begin anew.
//! A pod's JSON is written at most once per change, by the first who needs it.

use berth_api::{
    Error as ApiError,
    frame::{self, REPLY_MAX},
    view::PodView,
};
use berth_core::{
    event::{EventKind, EventRecord, Involved},
    ids::{PodKey, PodUid},
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};
use tokio::sync::Notify;

/// The most changes that a subscription keeps before it is told to begin anew: several times the pods of a node.
pub const QUEUE: usize = 4096;

/// Events kept in all.
pub const EVENTS: usize = 1000;

/// Events kept of one pod or Service.
pub const EVENTS_OF_POD: usize = 32;

/// A pod as published.
#[derive(Debug)]
pub struct Published {
    /// It.
    pub view: PodView,
    json: OnceLock<Option<Arc<[u8]>>>,
}

impl Published {
    /// The view as JSON, written once; nothing where it cannot be written, which is told once.
    pub fn json(&self) -> Option<Arc<[u8]>> {
        let write = || match serde_json::to_vec(&self.view) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                tracing::error!(pod = %self.view.key, %error, "pod cannot be shown");
                None
            }
        };
        self.json.get_or_init(write).clone()
    }

    /// The answer that shows the pod, ready to be sent.
    pub fn frame(&self) -> Option<Result<Vec<u8>, ApiError>> {
        let json = self.json()?;
        Some(frame::of_parts(&[br#"{"kind":"pod","pod":"#, &json, b"}"], REPLY_MAX))
    }
}

/// A change, as a subscription sees it.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pod is this now.
    Pod(Arc<Published>),
    /// Something happened to the pod; it is the same as before.
    Events(PodUid),
    /// Nothing of it is left.
    Removed(PodUid, PodKey),
    /// Too much changed since the last look: everything is to be read anew.
    Resync,
}

/// What a subscription hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Pods.
    Pods,
    /// Pods, and that something happened to them.
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

/// The published state. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Hub(Arc<Mutex<State>>);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another holder leaves queues and maps that are whole.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The pod is this now.
    pub fn publish(&self, view: PodView) {
        let (uid, key) = (view.uid.clone(), view.key.clone());
        let mut state = lock(&self.0);
        state.pods.insert(uid.clone(), Arc::new(Published { view, json: OnceLock::new() }));
        state.tell(&uid, &key, true);
    }

    /// Nothing of the pod is left. What happened to it is kept.
    pub fn remove(&self, uid: &PodUid) {
        let mut state = lock(&self.0);
        if let Some(gone) = state.pods.remove(uid) {
            state.tell(uid, &gone.view.key, true);
        }
    }

    /// Something happened to a pod or a Service. The same again within what is kept is counted.
    pub fn event(&self, event: EventRecord) {
        let involved = event.involved.clone();
        let mut state = lock(&self.0);
        aggregate(&mut state.events, event);
        if let Involved::Pod { key, uid } = involved
            && state.pods.contains_key(&uid)
        {
            state.tell(&uid, &key, false);
        }
    }

    /// One pod.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Published>> {
        lock(&self.0).pods.get(uid).cloned()
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Arc<Published>> {
        lock(&self.0).pods.values().cloned().collect()
    }

    /// What happened, to one pod or to all and to Services, oldest first.
    pub fn events(&self, of: Option<&PodUid>) -> Vec<EventRecord> {
        lock(&self.0).events.iter().filter(|e| of.is_none_or(|u| e.involved.is_pod(u))).cloned().collect()
    }

    /// The last events of type Warning, at most so many, oldest first.
    pub fn warnings(&self, most: usize) -> Vec<EventRecord> {
        let state = lock(&self.0);
        let warning = |e: &&EventRecord| e.event.kind == EventKind::Warning;
        let mut last: Vec<_> = state.events.iter().rev().filter(warning).take(most).cloned().collect();
        last.reverse();
        last
    }

    /// Hears of every change from now on. Subscribe first, then read what is there.
    pub fn subscribe(&self, interest: Interest) -> Subscription {
        let subscriber = Arc::new(Subscriber { interest, queue: Mutex::default(), wake: Notify::new() });
        lock(&self.0).subscribers.push(Arc::downgrade(&subscriber));
        Subscription { hub: self.clone(), subscriber }
    }
}

impl State {
    fn tell(&mut self, uid: &PodUid, key: &PodKey, pod: bool) {
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

/// Adds an event; the same event again is counted instead. The newest stands last.
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

/// Hears of changes; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// Waits until there is a change to be taken. May be dropped and called again.
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

    /// The next change, as it is by now; `None` where there is none left.
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
        Some(match self.hub.pod(&uid) {
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
    fn whoever_reads_late_finds_each_pod_once_as_it_is_now() {
        let hub = Hub::default();
        let watch = hub.subscribe(Interest::Pods);
        hub.publish(view(1));
        hub.publish(view(2));
        hub.publish(PodView { ready: true, ..view(1) });
        hub.event(event(1, "m", 1));
        hub.remove(&view(2).uid);
        hub.remove(&view(3).uid);
        assert_eq!(drain(&watch), ["d/p1 true", "removed d/p2"]);
        assert_eq!(drain(&watch), Vec::<String>::new());
        hub.publish(view(2));
        assert_eq!(drain(&watch), ["d/p2 false"]);
    }

    #[test]
    fn a_queue_has_an_end_and_then_all_is_read_anew() {
        let hub = Hub::default();
        let watch = hub.subscribe(Interest::PodsAndEvents);
        for n in 0..QUEUE {
            hub.publish(view(n));
        }
        assert_eq!(lock(&watch.subscriber.queue).order.len(), QUEUE);
        hub.event(event(1, "m", 1));
        hub.publish(view(QUEUE + 1));
        assert_eq!(drain(&watch), ["resync"]);
        hub.event(event(1, "m", 1));
        hub.publish(view(1));
        assert_eq!(drain(&watch), ["events u1", "d/p1 false"]);
    }

    #[test]
    fn equal_events_are_counted_and_what_is_kept_is_bounded() {
        let hub = Hub::default();
        for at in 0..5 {
            hub.event(event(1, "same", at));
        }
        let kept = hub.events(None);
        assert_eq!((kept.len(), kept[0].count, kept[0].first, kept[0].last), (1, 5, Wall(0), Wall(4)));
        for n in 0..100 {
            hub.event(event(1, &n.to_string(), n));
        }
        let kept = hub.events(Some(&view(1).uid));
        assert_eq!(kept.len(), EVENTS_OF_POD);
        assert_eq!(kept.last().unwrap().event.message, "99");
        for n in 0..2 * EVENTS {
            hub.event(event(n + 10, "m", 1));
        }
        assert_eq!(hub.events(None).len(), EVENTS);
        assert_eq!(hub.warnings(3).len(), 3);
        assert_eq!(hub.warnings(1)[0].involved.uid(), format!("u{}", 2 * EVENTS + 9));
    }

    #[test]
    fn the_frame_is_the_answer_that_it_stands_for() {
        let hub = Hub::default();
        hub.publish(view(7));
        let frame = hub.pod(&view(7).uid).unwrap().frame().unwrap().unwrap();
        let reply: berth_api::message::Reply = serde_json::from_slice(&frame[4..]).unwrap();
        assert_eq!(reply, berth_api::message::Reply::Pod { pod: Box::new(view(7)) });
    }

    #[test]
    fn a_subscription_that_is_gone_costs_nothing() {
        let hub = Hub::default();
        drop(hub.subscribe(Interest::Pods));
        hub.publish(view(1));
        assert!(lock(&hub.0).subscribers.is_empty());
    }

    #[test]
    fn a_services_events_are_kept_with_the_pods_and_wake_nobody_who_looks_at_pods() {
        let hub = Hub::default();
        hub.publish(view(1));
        let s = hub.subscribe(Interest::PodsAndEvents);
        for at in [1, 2] {
            // By the same UID as a pod's, even.
            let involved = Involved::Service { key: view(1).key, uid: "u1".into() };
            hub.event(EventRecord::once(involved, Event::warning("NotCarried", "m"), Wall(at)));
        }
        assert_eq!(drain(&s), Vec::<String>::new());
        assert!(hub.events(Some(&view(1).uid)).is_empty());
        let [kept] = hub.events(None).try_into().unwrap();
        assert_eq!((kept.count, kept.first, kept.last), (2, Wall(1), Wall(2)));
    }
}
