//! Answers of upstreams, kept as long as they may be. Pure: the time is handed in.
//!
//! Bounded in number and bytes; where it is full, the answer that ends soonest goes. Answers are kept as bytes, a
//! fraction of what the parsed records take.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// No answer is kept longer than this, whatever it says: a node's cache is not where a wrong answer should stay.
const LONGEST: Duration = Duration::from_secs(300);

/// The same for answers that say that there is nothing.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(30);

/// A larger answer is not kept, in bytes.
const ENTRY_MAX: usize = 4096;

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name; cases do not matter.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// Whether signatures were asked for.
    pub dnssec: bool,
    /// Whether validation was declined.
    pub checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    wire: Box<[u8]>,
    since: Instant,
    slot: (Instant, u64),
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    /// By their end.
    ends: BTreeMap<(Instant, u64), Arc<Key>>,
    next: u64,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

impl Cache {
    /// An empty one of these bounds.
    pub fn new(max_entries: usize, max_bytes: usize) -> Cache {
        let (entries, ends) = (HashMap::new(), BTreeMap::new());
        Cache { entries, ends, next: 0, bytes: 0, max_entries, max_bytes }
    }

    /// How many answers it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all: the upstreams have changed.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.ends.clear();
        self.bytes = 0;
    }

    /// The answer, its TTLs less the time that it has been here.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.entries.get(key)?;
        if entry.slot.0 <= now {
            return None;
        }
        let mut message = Message::from_vec(&entry.wire).ok()?;
        crate::forward::sane_ttls(&mut message);
        let age = u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut message;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.decrement_ttl(age);
        }
        Some(message)
    }

    /// Keeps an answer as long as it says, if it says so.
    pub fn put(&mut self, key: Key, message: &Message, wire: &[u8], now: Instant) {
        let Some(until) = lifetime(message).and_then(|life| now.checked_add(life)) else { return };
        if wire.len() > ENTRY_MAX || self.max_entries == 0 {
            return;
        }
        let key = Arc::new(key);
        self.remove(&key);
        while self.entries.len() >= self.max_entries || self.bytes.saturating_add(wire.len()) > self.max_bytes
        {
            let Some((_, soonest)) = self.ends.pop_first() else { return };
            self.remove(&soonest);
        }
        self.next = self.next.wrapping_add(1);
        let slot = (until, self.next);
        self.bytes = self.bytes.saturating_add(wire.len());
        self.ends.insert(slot, Arc::clone(&key));
        self.entries.insert(key, Entry { wire: wire.into(), since: now, slot });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.ends.remove(&entry.slot);
            self.bytes = self.bytes.saturating_sub(entry.wire.len());
        }
    }
}

/// How long an answer may be kept; nothing where it must not be.
pub fn lifetime(message: &Message) -> Option<Duration> {
    let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl));
    let soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    let life = match message.metadata.response_code {
        _ if message.metadata.truncation => None,
        // RFC 2308 5: a negative answer is kept by its SOA record, not at all without one.
        ResponseCode::NXDomain => soa.map(|ttl| seconds(ttl).min(LONGEST_NEGATIVE)),
        ResponseCode::NoError if soa.is_some() => {
            let ttl = message.answers.iter().map(|r| r.ttl).chain(soa).min()?;
            Some(seconds(ttl).min(LONGEST_NEGATIVE))
        }
        ResponseCode::NoError => {
            let ttl = message.answers.iter().map(|r| r.ttl).min()?;
            Some(seconds(ttl).min(LONGEST))
        }
        _ => None,
    };
    life.filter(|life| !life.is_zero())
}
