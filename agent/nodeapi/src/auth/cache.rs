//! Answers of the API server, kept until a time. At most [`ENTRIES`]; the oldest goes first. Keys are hashes, so that no
//! token is in memory and every entry has the same size.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// Most entries of a cache.
const ENTRIES: usize = 1024;

/// SHA-256 of what was asked.
pub(super) type Key = [u8; 32];

#[derive(Debug)]
pub(super) struct Answers<T> {
    entries: HashMap<Key, (T, Instant)>,
    order: VecDeque<Key>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Answers { entries: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Clone> Answers<T> {
    /// The answer, if it still counts.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<T> {
        self.entries.get(key).filter(|(_, until)| now < *until).map(|(answer, _)| answer.clone())
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, key: Key, answer: T, now: Instant, lasts: Duration) {
        if self.entries.insert(key, (answer, now + lasts)).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > ENTRIES {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_with_their_time_and_the_oldest_makes_room() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            key
        };
        answers.keep(key(0), "yes", now, Duration::from_secs(1));
        assert_eq!(answers.get(&key(0), now), Some("yes"));
        assert_eq!(answers.get(&key(0), now + Duration::from_secs(1)), None);
        answers.keep(key(0), "no", now, Duration::from_secs(1));
        for n in 1..=ENTRIES {
            answers.keep(key(n), "yes", now, Duration::from_secs(1));
        }
        assert_eq!((answers.get(&key(0), now), answers.get(&key(ENTRIES), now)), (None, Some("yes")));
        assert_eq!((answers.entries.len(), answers.order.len()), (ENTRIES, ENTRIES));
    }
}
