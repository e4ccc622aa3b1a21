//! Events of pods, Services and the node to the API server.
//!
//! [`Events`] takes them from any task and never waits: it correlates them and queues what is to be sent. One task
//! sends them one after the other, in a rate of its own, so that no status waits for an event. The object of an event is
//! what the kubelet's recorder writes (`client-go/tools/record`).
//!
//! On failure: the oldest event is tried again after 0.2 s to 10 s, and those behind it wait; beyond the queue's bound
//! the oldest are lost, which is logged. An event that the API server refuses is dropped. What an earlier agent has
//! reported is counted on, and not reported anew.

mod correlate;
mod queue;
mod recent;
mod write;

use crate::{ApiPods, Task, publish::RateLimit, wait::jittered};
use berth_core::{
    error::Chain,
    event::{Event, EventRecord, Involved},
    ids::NodeName,
    sync::lock,
};
use berth_kube::pool::Pool;
use berth_source::event::{ApiEvent, InvolvedObject};
use berth_sys::clock;
use correlate::{Correlator, Key, Occurrence};
use queue::Queue;
use std::sync::{Arc, Mutex};
use tokio::{sync::Notify, time::sleep};
use write::{Answer, Next, Write};

/// Share by which a wait varies, so that the nodes of a cluster do not come back together.
const JITTER: f64 = 0.2;

/// Where events are reported. Clones report to one queue.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: NodeName,
    api: ApiPods,
    state: Mutex<State>,
    /// Notified when an event is queued.
    queued: Notify,
}

#[derive(Debug, Default)]
struct State {
    correlator: Correlator,
    queue: Queue,
}

impl Events {
    /// A queue for events of this node. `api` tells the versions of its pods.
    pub fn new(node: NodeName, api: ApiPods) -> Events {
        Events(Arc::new(Shared { node, api, state: Mutex::default(), queued: Notify::new() }))
    }

    /// Reports an event of a pod or a Service that is in the API, which has happened just now.
    pub fn report(&self, record: &EventRecord) {
        let version = match &record.involved {
            Involved::Pod { uid, .. } => self.0.api.get(uid).and_then(|pod| pod.version().map(str::to_owned)),
            Involved::Service { .. } => None,
        };
        let involved = (&record.involved).into();
        self.take(Occurrence { involved, version, event: record.event.clone(), at: record.last });
    }

    /// Reports an event of this node.
    pub fn report_of_node(&self, event: Event) {
        let involved = InvolvedObject::node(&self.0.node);
        self.take(Occurrence { involved, version: None, event, at: clock::wall() });
    }

    /// Reports an event of a PersistentVolumeClaim.
    pub fn report_of_claim(&self, namespace: &str, name: &str, uid: &str, event: Event) {
        let involved = InvolvedObject::claim(namespace, name, uid);
        self.take(Occurrence { involved, version: None, event, at: clock::wall() });
    }

    /// Takes an event that an earlier agent of this node has reported.
    pub fn remember(&self, record: &EventRecord) {
        lock(&self.0.state).correlator.remember(&ApiEvent::of_record(record));
    }

    fn take(&self, happened: Occurrence) {
        let mut state = lock(&self.0.state);
        let Some((key, event)) = state.correlator.observe(happened, clock::boottime()) else { return };
        if state.queue.put(key, event) {
            tracing::warn!("too many events wait for the API server; the oldest are lost");
        }
        drop(state);
        self.0.queued.notify_one();
    }

    /// The oldest event, as soon as there is one.
    async fn next(&self) -> Write {
        loop {
            let queued = self.0.queued.notified();
            let write = {
                let mut state = lock(&self.0.state);
                let lost = state.queue.take_lost();
                if lost > 0 {
                    tracing::warn!(lost, "the API server takes events again; some were lost");
                }
                state.queue.take()
            };
            match write {
                Some(write) => return write,
                None => queued.await,
            }
        }
    }

    fn put_back(&self, write: Write) {
        lock(&self.0.state).queue.put_back(write);
    }

    fn rename(&self, key: Key, name: &str) {
        lock(&self.0.state).correlator.rename(key, name);
    }
}

/// Starts to send the events that are reported to `events`. What waits is lost with the task.
pub fn start(pool: Pool, limit: RateLimit, events: Events) -> Task {
    Task::spawn(run(pool, limit, events))
}

async fn run(pool: Pool, limit: RateLimit, events: Events) {
    let mut failing = false;
    // The status of the last odd refusal: events that all are refused for one reason are told once.
    let mut told = None;
    loop {
        let mut write = events.next().await;
        limit.wait().await;
        let name = write.event.name.clone();
        let result = pool.send(&write.request(&events.0.node)).await;
        let answer = result.as_ref().map_or_else(Answer::of_error, |_| Answer::Done);
        let next = write.answered(answer);
        if write.event.name != name {
            events.rename(write.key, &write.event.name);
        }
        let failed = matches!(next, Next::After(_));
        match (result, failed && !failing) {
            (Err(error), true) => tracing::warn!("cannot report events: {}", Chain(&error)),
            (Err(error), false) => {
                let code = error.refusal().map(|refusal| refusal.code);
                if next == (Next::Drop { odd: true }) && told != code {
                    tracing::warn!("cannot report an event: {}", Chain(&error));
                    told = code;
                }
                tracing::debug!(event = name, "cannot report an event: {}", Chain(&error));
            }
            (Ok(_), _) => {
                if failing {
                    tracing::info!("events are reported again");
                }
                told = None;
            }
        }
        failing = failed;
        match next {
            Next::Sent | Next::Drop { .. } => {}
            Next::Again => events.put_back(write),
            Next::After(wait) => {
                events.put_back(write);
                sleep(jittered(wait, JITTER, rand::random())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
