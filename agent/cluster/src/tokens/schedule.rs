//! When tokens are requested and refreshed. Pure.

use crate::wait::backoff;
use berth_core::{
    model::{Token, TokenRef},
    time::Boottime,
    value::{Value, Why},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The longest time after which a token is refreshed (`pkg/kubelet/token/token_manager.go`).
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most by which a refresh is drawn forward, so that the tokens of many pods are not refreshed at once.
const MAX_JITTER: Duration = Duration::from_secs(10);
/// Time between two tries to refresh a token that still exists.
const REFRESH_AGAIN: Duration = Duration::from_secs(60);
/// Time after the first request within which a refusal is no failure. The API server's authorizer and admission learn
/// of a pod on a node some time after the node does.
const GRAPH_LAG: Duration = Duration::from_secs(2);
/// First and longest wait after a refusal within [`GRAPH_LAG`].
const LAG_WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// First and longest wait after any other failure.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));

/// A token that the API server made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// The token.
    pub(crate) token: Token,
    /// Its life as the API server granted it.
    pub(crate) life: Duration,
}

/// A request that brought no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// Whether the API server refused, and why; or that there was no answer.
    pub(super) why: Why,
    /// The wait that the API server asks for.
    pub(super) retry_after: Option<Duration>,
}

/// The tokens in use, with the time of the next request for each.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    entries: BTreeMap<TokenRef, Entry>,
}

#[derive(Debug)]
struct Entry {
    value: Value<Token>,
    /// The first request for the token.
    since: Boottime,
    next: Boottime,
    in_flight: bool,
    failures: u32,
}

impl Schedule {
    /// Takes the tokens that pods use now. A new one is due at once; one that is no longer used is forgotten.
    pub(super) fn want(&mut self, tokens: &BTreeSet<TokenRef>, now: Boottime) {
        self.entries.retain(|token, _| tokens.contains(token));
        for token in tokens {
            self.entries.entry(token.clone()).or_insert(Entry {
                value: Value::Unknown(Why::NotAsked),
                since: now,
                next: now,
                in_flight: false,
                failures: 0,
            });
        }
    }

    /// The time of the next request; `None` while there is none to wait for.
    pub(super) fn next(&self) -> Option<Boottime> {
        self.entries.values().filter(|e| !e.in_flight).map(|e| e.next).min()
    }

    /// At most `most` tokens that are due, those without a value first. Each counts as requested until its answer.
    pub(super) fn take_due(&mut self, now: Boottime, most: usize) -> Vec<TokenRef> {
        let due = self.entries.iter().filter(|(_, e)| !e.in_flight && e.next <= now);
        let mut due: Vec<(bool, Boottime, TokenRef)> =
            due.map(|(token, e)| (matches!(e.value, Value::Known(_)), e.next, token.clone())).collect();
        due.sort();
        due.truncate(most);
        let due: Vec<TokenRef> = due.into_iter().map(|(_, _, token)| token).collect();
        for token in &due {
            if let Some(entry) = self.entries.get_mut(token) {
                entry.in_flight = true;
            }
        }
        due
    }

    /// Takes an answer. `random`, from 0 to 1, spreads the refreshes. Returns whether the token's value has changed. An
    /// answer for a token that is no longer used is dropped.
    pub(super) fn answered(
        &mut self,
        token: &TokenRef,
        answer: Result<Issued, Failed>,
        now: Boottime,
        random: f64,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(token) else { return false };
        entry.in_flight = false;
        match answer {
            Ok(Issued { token, life }) => {
                entry.failures = 0;
                let age = life.mul_f64(0.8).min(MAX_AGE);
                entry.next =
                    now + age.saturating_sub(MAX_JITTER.mul_f64(random.clamp(0.0, 1.0))).max(WAITS.0);
                entry.put(Value::Known(token))
            }
            Err(failed) => entry.failed(failed, now),
        }
    }

    /// What is known of each token.
    pub(super) fn values(&self) -> BTreeMap<TokenRef, Value<Token>> {
        self.entries.iter().map(|(token, e)| (token.clone(), e.value.clone())).collect()
    }
}

impl Entry {
    fn put(&mut self, value: Value<Token>) -> bool {
        let changed = self.value != value;
        self.value = value;
        changed
    }

    fn failed(&mut self, failed: Failed, now: Boottime) -> bool {
        let lags = matches!(failed.why, Why::Refused(_)) && now.since(self.since) < GRAPH_LAG;
        let known = matches!(self.value, Value::Known(_));
        let (first, longest) = if lags { LAG_WAITS } else { WAITS };
        self.failures = self.failures.saturating_add(1);
        let wait = if known { REFRESH_AGAIN } else { backoff(self.failures, first, longest) };
        self.next = now + wait.max(failed.retry_after.unwrap_or_default());
        // A token that exists stays in use: the pod reads it until its end, and the kubelet keeps it too.
        if known || lags {
            return false;
        }
        self.put(Value::Unknown(failed.why))
    }
}

#[cfg(test)]
mod tests;
