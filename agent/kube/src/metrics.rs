//! What the client counts, by client-go's names.

use berth_core::metrics::{Counter, Histogram, ReadFamily};
use std::time::Duration;

/// Upper bounds of a request's duration in seconds, as client-go has them.
const BUCKETS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

static REQUESTS: Counter = Counter::counter(
    "rest_client_requests_total",
    "Requests to the API server by the answer's code, or <error>.",
    &["code", "host", "method"],
);
static DURATION: Histogram = Histogram::histogram(
    "rest_client_request_duration_seconds",
    "Time to the head of the API server's answer, with the wait for a connection.",
    &["host", "verb"],
    BUCKETS,
);

static CLIENT_RENEW_ERRORS: Counter = Counter::counter(
    "kubelet_certificate_manager_client_expiration_renew_errors",
    "Renewals of the client certificate that failed.",
    &[],
);
static SERVER_RENEW_ERRORS: Counter = Counter::counter(
    "kubelet_server_expiration_renew_errors",
    "Renewals of the serving certificate that failed.",
    &[],
);

/// Upper bounds of a certificate's age in seconds, as client-go has them: from a minute to four years.
const AGES: &[f64] = &[
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

static SERVER_ROTATIONS: Histogram = Histogram::histogram(
    "kubelet_certificate_manager_server_rotation_seconds",
    "Ages of the serving certificates that were replaced.",
    &[],
    AGES,
);

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 5] {
    // Alerts read their rates from the start.
    CLIENT_RENEW_ERRORS.add(&[], 0);
    SERVER_RENEW_ERRORS.add(&[], 0);
    [&REQUESTS, &DURATION, &CLIENT_RENEW_ERRORS, &SERVER_RENEW_ERRORS, &SERVER_ROTATIONS]
}

/// Counts a failed renewal of the client certificate.
pub fn count_client_renew_error() {
    CLIENT_RENEW_ERRORS.inc(&[]);
}

/// Counts a failed renewal of the serving certificate.
pub fn count_server_renew_error() {
    SERVER_RENEW_ERRORS.inc(&[]);
}

/// Counts a serving certificate of this age that was replaced.
pub fn observe_server_rotation(age: Duration) {
    SERVER_ROTATIONS.observe(&[], age);
}

/// Counts a request to the server at this URL; `code`: `None` for a request without an answer. The duration of a
/// watch is that to its first answer, as for every request.
pub(crate) fn count(url: &str, method: &str, code: Option<u16>, took: Duration) {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
    REQUESTS.inc(&[&code, host, method]);
    DURATION.observe(&[host, method], took);
}
