//! What the server counts about requests, by the kubelet's names. A request is in flight until its answer is sent, or
//! until the streams that it opened have ended.

use crate::{ResponseBody, path::RequestPath};
use berth_core::metrics::{Counter, DEFAULT_BUCKETS, FamilyType, Histogram, ReadFamily, SeriesValue};
use http::{Method, Request, Response};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

const LABELS: &[&str] = &["long_running", "method", "path", "server_type"];

static REQUESTS: Counter =
    Counter::counter("kubelet_http_requests_total", "Requests to the node's API.", LABELS);
static DURATION: Histogram = Histogram::histogram(
    "kubelet_http_requests_duration_seconds",
    "Time from a request to the end of its answer.",
    LABELS,
    DEFAULT_BUCKETS,
);
static IN_FLIGHT: InFlightFamily = InFlightFamily;

/// Paths that are counted by their own name; every other one is `other`.
const PATHS: &[&str] = &[
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
    "statusz",
];

/// Methods that are counted by their own name, as in the kubelet, whose list has no PATCH.
const METHODS: &[&str] = &["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];

/// Paths that the kubelet counts as long; port-forward is not among them.
const LONG: &[&str] = &["exec", "attach", "debug"];

/// The families of `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 3] {
    [&REQUESTS, &DURATION, &IN_FLIGHT]
}

/// The requests that are served now: those that were counted, and whose duration is not known yet.
struct InFlightFamily;

impl ReadFamily for InFlightFamily {
    fn name(&self) -> &'static str {
        "kubelet_http_inflight_requests"
    }

    fn help(&self) -> &'static str {
        "Requests that are served now."
    }

    fn labels(&self) -> &'static [&'static str] {
        LABELS
    }

    fn family_type(&self) -> FamilyType {
        FamilyType::Gauge
    }

    fn read(&self, each: &mut dyn FnMut(&[Box<str>], SeriesValue<'_>)) {
        let mut ended: BTreeMap<Box<[Box<str>]>, u64> = BTreeMap::new();
        // Before the requests, so that none has ended that has not begun.
        DURATION.read(&mut |labels, value| {
            if let SeriesValue::Distribution(_, buckets) = value {
                ended.insert(labels.into(), buckets.counts.iter().sum());
            }
        });
        REQUESTS.read(&mut |labels, value| {
            let SeriesValue::Count(begun) = value else { return };
            let now = begun.saturating_sub(ended.get(labels).copied().unwrap_or_default());
            let now = u32::try_from(now).unwrap_or(u32::MAX);
            each(labels, SeriesValue::Level(now.into()));
        });
    }
}

/// A request that is being served; counted as long as the value lives.
#[derive(Debug)]
pub(crate) struct InFlight {
    labels: [&'static str; 4],
    begun: Instant,
}

impl InFlight {
    /// Counts a request. `path`: `None` where it cannot be decoded.
    pub(crate) fn begin(method: &Method, path: Option<&RequestPath>) -> Arc<InFlight> {
        let labels = labels(method, path);
        REQUESTS.inc(&labels);
        Arc::new(InFlight { labels, begun: Instant::now() })
    }

    /// The value of a request that carries one.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Arc<InFlight>> {
        request.extensions().get().cloned()
    }

    /// Counts the request until the answer's body ends.
    pub(crate) fn until_sent(
        self: Arc<InFlight>,
        mut answer: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        if let ResponseBody::Parts { in_flight, .. } = answer.body_mut() {
            *in_flight = Some(Sending(self));
        }
        answer
    }
}

/// Kept by a body that is sent in parts.
#[derive(Debug)]
pub struct Sending(#[expect(dead_code, reason = "counted as long as it lives")] Arc<InFlight>);

impl Drop for InFlight {
    fn drop(&mut self) {
        DURATION.observe(&self.labels, self.begun.elapsed());
    }
}

fn labels(method: &Method, path: Option<&RequestPath>) -> [&'static str; 4] {
    let mut segments = path.into_iter().flat_map(RequestPath::segments);
    let first = segments.next().unwrap_or_default();
    let second = segments.next().filter(|_| first == "metrics");
    let is_named = |name: &str| match second {
        Some(second) => name.strip_prefix("metrics/") == Some(second),
        None => name == first,
    };
    let path = PATHS.iter().find(|name| is_named(name)).copied().unwrap_or("other");
    let method = METHODS.iter().find(|name| **name == method.as_str()).copied().unwrap_or("other");
    [if LONG.contains(&path) { "true" } else { "false" }, method, path, "readwrite"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_the_kubelets_labels() {
        let of = |method: &str, path: &str| {
            let [long, method, path, _] =
                labels(&method.parse().unwrap(), Some(&RequestPath::decode(path).unwrap()));
            format!("{method} {path} {long}")
        };
        for (method, path, want) in [
            ("GET", "/metrics", "GET metrics false"),
            ("GET", "/metrics/cadvisor", "GET metrics/cadvisor false"),
            ("GET", "/metrics/slis", "GET other false"),
            ("GET", "/healthz/ping", "GET healthz false"),
            ("POST", "/exec/ns/pod/c", "POST exec true"),
            ("POST", "/portForward/ns/pod", "POST portForward false"),
            ("PATCH", "/pods/", "other pods false"),
            ("GET", "/", "GET other false"),
            ("GET", "/nothing/of/it", "GET other false"),
        ] {
            assert_eq!(of(method, path), want);
        }
        assert_eq!(labels(&Method::GET, None)[2], "other");
    }

    #[test]
    fn a_request_is_in_flight_until_its_last_part_is_sent() {
        let level = || {
            let mut level = 0.0;
            IN_FLIGHT.read(&mut |labels, value| {
                if labels.iter().any(|label| &**label == "checkpoint") {
                    level = if let SeriesValue::Level(now) = value { now } else { f64::NAN };
                }
            });
            level
        };
        let path = RequestPath::decode("/checkpoint/x").unwrap();
        let (_parts, body) = tokio::sync::mpsc::channel(1);
        let answer = InFlight::begin(&Method::DELETE, Some(&path)).until_sent(crate::response::stream(body));
        assert!((level() - 1.0).abs() < 0.1);
        drop(answer);
        assert!(level().abs() < 0.1);
    }
}
