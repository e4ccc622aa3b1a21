//! Cache of upstream answers, kept for their TTL. Pure: the caller passes the time.
//!
//! The cache is bounded in entries and bytes. When it is full, the answer that expires first is
//! evicted. Answers are kept as bytes, which take a fraction of the memory of parsed records.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest lifetime of an answer, whatever its TTL. A wrong answer should not stay long in a
/// node's cache.
const LONGEST: Duration = Duration::from_secs(300);

/// The longest lifetime of a negative answer.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(30);

/// The largest cached answer in bytes.
const ENTRY_MAX: usize = 4096;

/// Key of a cached answer: everything that the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name, compared without regard to case.
    pub name: Name,
    /// The record type.
    pub kind: RecordType,
    /// Whether the question asked for DNSSEC signatures (DO).
    pub dnssec: bool,
    /// Whether the question disabled validation (CD).
    pub checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    wire: Box<[u8]>,
    since: Instant,
    slot: (Instant, u64),
}

/// Cache of upstream answers, bounded in entries and bytes.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    /// Keys by expiry.
    ends: BTreeMap<(Instant, u64), Arc<Key>>,
    next: u64,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

impl Cache {
    /// Returns an empty cache with these bounds.
    pub fn new(max_entries: usize, max_bytes: usize) -> Cache {
        let (entries, ends) = (HashMap::new(), BTreeMap::new());
        Cache { entries, ends, next: 0, bytes: 0, max_entries, max_bytes }
    }

    /// Number of cached answers.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no answer is cached.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes all answers, because the upstreams have changed.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.ends.clear();
        self.bytes = 0;
    }

    /// The cached answer, with its TTLs reduced by its age.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.entries.get(key)?;
        if entry.slot.0 <= now {
            return None;
        }
        let mut message = Message::from_vec(&entry.wire).ok()?;
        sane_ttls(&mut message);
        let age = u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut message;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.decrement_ttl(age);
        }
        Some(message)
    }

    /// Caches an answer for the lifetime that it allows, if it allows any.
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

/// How long an answer may be cached; None if it must not be.
pub fn lifetime(message: &Message) -> Option<Duration> {
    let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl));
    let soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    let life = match message.metadata.response_code {
        _ if message.metadata.truncation => None,
        // RFC 2308 5: a negative answer is cached for the time in its SOA record, and not without
        // one.
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

/// Treats a TTL with the highest bit set as 0 (RFC 2181 8).
pub(crate) fn sane_ttls(message: &mut Message) {
    let Message { answers, authorities, additionals, .. } = message;
    for record in answers.iter_mut().chain(authorities).chain(additionals) {
        if record.ttl > i32::MAX.unsigned_abs() {
            record.ttl = 0;
        }
    }
}
