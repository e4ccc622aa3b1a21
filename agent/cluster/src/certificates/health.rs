//! State of one certificate, for the status page and for metrics.

use berth_core::sync::lock;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};

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
        let is_news = state.problem.as_deref() != Some(problem);
        state.problem = Some(problem.to_owned());
        is_news
    }

    /// Records what stands in the way without a try that failed.
    pub(super) fn stuck(&self, problem: Option<String>) {
        lock(&self.0).problem = problem;
    }

    /// Records a new certificate.
    pub(super) fn renewed(&self, not_after: Timestamp) {
        let mut state = lock(&self.0);
        (state.not_after, state.pending, state.problem) = (Some(not_after), None, None);
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
        health.renewed("2026-01-01T01:00:00.5Z".parse().unwrap());
        let state = health.state();
        assert_eq!((state.ttl_seconds(now), state.problem), (3600.0, None));
        assert_eq!(health.state().ttl_seconds("2026-01-01T01:00:02Z".parse().unwrap()), -1.0);
    }
}
