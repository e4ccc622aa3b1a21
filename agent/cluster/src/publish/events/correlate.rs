//! Correlation of events, by the rules of client-go (`tools/record/events_cache.go`). Pure.
//!
//! An event that happens again is counted in the first one's object. Events that differ in their message alone are
//! combined into one from the tenth message within ten minutes on. An object has 25 events at once and one each five
//! minutes after that; more are counted and not sent.

use super::recent::Recent;
use berth_core::{
    event::Event,
    time::{Boottime, Wall},
};
use berth_kube::rate_limit::TokenBucket;
use berth_source::event::{ApiEvent, InvolvedObject, event_name};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Most entries of each memory.
const MOST: usize = 4096;

/// The number of different messages from which similar events are combined.
const SIMILAR: usize = 10;

/// The time after which similar events count as new ones.
const SIMILAR_FOR: Duration = Duration::from_secs(600);

/// Events of one type about one object at once, and the rate by which more are allowed.
const BURST: u32 = 25;
const PER_SECOND: f64 = 1.0 / 300.0;

/// What the message of combined events begins with.
const COMBINED: &str = "(combined from similar events): ";

/// What an event is known by: events of one key share an object in the API.
pub(super) type Key = u64;

/// An event that happened.
#[derive(Debug, Clone)]
pub(super) struct Occurrence {
    /// The object that the event is about.
    pub(super) involved: InvolvedObject,
    /// The version of that object, if it is known.
    pub(super) version: Option<String>,
    /// The event.
    pub(super) event: Event,
    /// When it happened.
    pub(super) at: Wall,
}

/// The memory of the events so far.
#[derive(Debug)]
pub(super) struct Correlator {
    logged: Recent<Logged>,
    similar: Recent<Similar>,
    allowed: Recent<TokenBucket>,
}

/// An event that happened before.
#[derive(Debug, Default)]
struct Logged {
    name: String,
    first: Wall,
    count: u32,
}

/// The messages of similar events.
#[derive(Debug)]
struct Similar {
    messages: BTreeSet<u64>,
    last: Boottime,
}

impl Default for Correlator {
    fn default() -> Correlator {
        Correlator { logged: Recent::new(MOST), similar: Recent::new(MOST), allowed: Recent::new(MOST) }
    }
}

impl Correlator {
    /// Takes an event. Returns it as the API shall have it, with its key; `None` where the object has too many events.
    pub(super) fn observe(&mut self, happened: Occurrence, now: Boottime) -> Option<(Key, ApiEvent)> {
        let Occurrence { involved, version, mut event, at } = happened;
        let group = hash((&involved, event.kind, &event.reason));
        let key = if self.is_combined(group, &event, now) {
            event.message.insert_str(0, COMBINED);
            group
        } else {
            key_of(&involved, &event)
        };
        let allowed = hash((&involved, event.kind));
        let logged =
            self.logged.entry(key, || Logged { name: event_name(&involved.name, at), first: at, count: 0 });
        logged.count = logged.count.saturating_add(1);
        let (name, first, count) = (logged.name.clone(), logged.first, logged.count);
        let bucket = self.allowed.entry(allowed, || TokenBucket::new(PER_SECOND, BURST));
        bucket
            .try_take(now.0)
            .then_some((key, ApiEvent { name, involved, version, event, first, last: at, count }))
    }

    /// Takes an event that an earlier agent of this node has reported.
    pub(super) fn remember(&mut self, known: &ApiEvent) {
        let key = key_of(&known.involved, &known.event);
        *self.logged.entry(key, Logged::default) =
            Logged { name: known.name.clone(), first: known.first, count: known.count };
    }

    /// Takes that the API has the event of this key under another name.
    pub(super) fn rename(&mut self, key: Key, name: &str) {
        if let Some(logged) = self.logged.get_mut(key) {
            logged.name = name.to_owned();
        }
    }

    /// Whether so many similar events happened lately that this one is combined with others.
    fn is_combined(&mut self, group: Key, event: &Event, now: Boottime) -> bool {
        let similar = self.similar.entry(group, || Similar { messages: BTreeSet::new(), last: now });
        if now.since(similar.last) > SIMILAR_FOR {
            similar.messages.clear();
        }
        similar.last = now;
        let message = hash(&event.message);
        if similar.messages.contains(&message) {
            return false;
        }
        let full = similar.messages.len() + 1 >= SIMILAR;
        if !full {
            similar.messages.insert(message);
        }
        full
    }
}

/// The key of an event that is not combined with others.
fn key_of(involved: &InvolvedObject, event: &Event) -> Key {
    hash((involved, event))
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
