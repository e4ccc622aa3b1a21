//! State of one certificate, for the status page and for metrics.

use berth_core::sync::lock;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};

/// Upper bounds in seconds of [`RotationAges`], as those of
/// `kubelet_certificate_manager_server_rotation_seconds`.
const AGES: [f64; 10] = [
    60.0,
    3600.0,
    14_400.0,
    86_400.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
    124_416_000.0,
];

/// State of one certificate; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct CertificateHealth(Arc<Mutex<CertificateState>>);

/// A copy of the state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CertificateState {
    /// End of the present certificate; `None` if there is none.
    pub not_after: Option<Timestamp>,
    /// The request that is not answered yet.
    pub pending: Option<PendingRequest>,
    /// Why the last try failed, on one line.
    pub problem: Option<String>,
    /// Number of tries that failed since the agent's start.
    pub renew_errors: u64,
    /// Ages of the certificates that were replaced since the agent's start.
    pub ages: RotationAges,
}

/// A CertificateSigningRequest without a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRequest {
    /// Name of the object.
    pub name: String,
    /// Time since which the agent waits.
    pub since: Timestamp,
    /// Why somebody denied the request. The node asks again once the object is deleted.
    pub denied: Option<String>,
    /// Whether the request is approved, and only the signer is awaited.
    pub approved: bool,
}

/// A histogram of ages in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RotationAges {
    counts: [u64; AGES.len()],
    /// Sum of all ages.
    pub sum: f64,
    /// Number of ages.
    pub count: u64,
}

impl RotationAges {
    /// The upper bounds, each with the number of ages up to it.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        AGES.into_iter().zip(self.counts)
    }

    fn observe(&mut self, age: f64) {
        for (bound, count) in AGES.into_iter().zip(&mut self.counts) {
            *count += u64::from(age <= bound);
        }
        self.sum += age;
        self.count += 1;
    }
}

impl CertificateState {
    /// Whole seconds until the certificate's end, negative after it; infinite without a certificate (the
    /// kubelet's `certificate_manager_*_ttl_seconds`).
    pub fn ttl_seconds(&self, now: Timestamp) -> f64 {
        self.not_after.map_or(f64::INFINITY, |end| end.duration_since(now).as_secs_f64().trunc())
    }
}

impl CertificateHealth {
    /// The present state.
    pub fn state(&self) -> CertificateState {
        lock(&self.0).clone()
    }

    pub(super) fn held(&self, not_after: Option<Timestamp>) {
        lock(&self.0).not_after = not_after;
    }

    /// Changes what is pending; `None` once the request is over.
    pub(super) fn pending(&self, pending: Option<PendingRequest>) {
        lock(&self.0).pending = pending;
    }

    /// Records a failed try. Says whether the reason is news.
    pub(super) fn failed(&self, problem: &str) -> bool {
        let mut state = lock(&self.0);
        state.renew_errors = state.renew_errors.saturating_add(1);
        let is_news = state.problem.as_deref() != Some(problem);
        state.problem = Some(problem.to_owned());
        is_news
    }

    /// Records what stands in the way without a try that failed.
    pub(super) fn stuck(&self, problem: Option<String>) {
        lock(&self.0).problem = problem;
    }

    /// Records a new certificate in the place of one that was valid from `before` on.
    pub(super) fn renewed(&self, not_after: Timestamp, before: Option<Timestamp>, now: Timestamp) {
        let mut state = lock(&self.0);
        (state.not_after, state.pending, state.problem) = (Some(not_after), None, None);
        if let Some(before) = before {
            state.ages.observe(now.duration_since(before).as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_tries_and_certificates() {
        let health = CertificateHealth::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert!(health.state().ttl_seconds(now).is_infinite());
        assert_eq!([health.failed("a"), health.failed("a"), health.failed("b")], [true, false, true]);
        assert_eq!(health.state().renew_errors, 3);
        let end = "2026-01-01T01:00:00.5Z".parse().unwrap();
        health.renewed(end, None, now);
        let state = health.state();
        assert_eq!((state.ttl_seconds(now), state.problem, state.ages.count), (3600.0, None, 0));
        health.renewed(end, Some("2025-12-31T00:00:00Z".parse().unwrap()), now);
        let ages = health.state().ages;
        let counts: Vec<u64> = ages.buckets().map(|(_, count)| count).collect();
        assert_eq!((counts, ages.sum), (vec![0, 0, 0, 1, 1, 1, 1, 1, 1, 1], 86_400.0));
        assert_eq!(health.state().ttl_seconds("2026-01-01T01:00:02Z".parse().unwrap()), -1.0);
    }
}
