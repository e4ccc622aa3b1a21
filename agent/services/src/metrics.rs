//! What the data plane counts about itself, by kube-proxy's names (`pkg/proxy/metrics/metrics.go`).
//!
//! A sync is counted for each address family whose tables it has changed. What is special to a mode of kube-proxy (rules of
//! iptables, nftables' failures, connection tracking) has no counterpart.

use crate::{Outcome, WantedPort};
use berth_core::{
    metrics::{Counter, Gauge, Histogram, ReadFamily},
    time::Wall,
};
use berth_ebpf_abi::frontend;
use std::time::Duration;

const FAMILY: &[&str] = &["ip_family"];

/// kube-proxy's buckets begin at 1 ms, which is longer than most syncs here.
const SYNC_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024,
    2.048, 4.096, 8.192, 16.384,
];

/// kube-proxy's buckets, without half of the long ones and with shorter ones.
const PROGRAMMING_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0,
];

static SYNC: Histogram = Histogram::histogram(
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "Time to bring the tables of an address family to the wanted state.",
    FAMILY,
    SYNC_BUCKETS,
);
static LAST_SYNC: Gauge = Gauge::gauge(
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "Time of the last change of an address family's tables, in seconds since 1970.",
    FAMILY,
);
static PROGRAMMING: Histogram = Histogram::histogram(
    "kubeproxy_network_programming_duration_seconds",
    "Time from the change of a pod or a Service, as the EndpointSlice tells it, to the tables that follow it.",
    FAMILY,
    PROGRAMMING_BUCKETS,
);
static SERVICE_CHANGES: Counter =
    Counter::counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services.", &[]);
static ENDPOINT_CHANGES: Counter =
    Counter::counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices.", &[]);
static SERVICES_PENDING: Gauge = Gauge::gauge(
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "Services, or their endpoints, that have changed and are not in the tables yet.",
    &[],
);
static NO_LOCAL_ENDPOINTS: Gauge = Gauge::gauge(
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "Service ports with a Local traffic policy that have endpoints, but none on this node.",
    &["ip_family", "traffic_policy"],
);

/// The families of kube-proxy's `/metrics`.
pub fn families() -> [&'static dyn ReadFamily; 7] {
    [
        &PROGRAMMING,
        &SYNC,
        &LAST_SYNC,
        &SERVICE_CHANGES,
        &ENDPOINT_CHANGES,
        &SERVICES_PENDING,
        &NO_LOCAL_ENDPOINTS,
    ]
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// Counts a sync that took this long and ended now.
pub(crate) fn count_sync(outcome: &Outcome, took: Duration, now: Wall) {
    for (v6, changed) in [false, true].into_iter().zip(outcome.changed) {
        if changed {
            SYNC.observe(&[family(v6)], took);
            LAST_SYNC.set(&[family(v6)], now.0 as f64 / 1e9);
        }
    }
    for (v6, triggered) in &outcome.programmed {
        // A clock that was set back, or another machine's that is ahead, says nothing.
        if let Ok(nanoseconds) = u64::try_from(now.0.saturating_sub(triggered.0)) {
            PROGRAMMING.observe(&[family(*v6)], Duration::from_nanos(nanoseconds));
        }
    }
    for (v6, sum) in [false, true].into_iter().zip(outcome.no_local) {
        NO_LOCAL_ENDPOINTS.set(&[family(v6), "internal"], sum.internal as f64);
        NO_LOCAL_ENDPOINTS.set(&[family(v6), "external"], sum.external as f64);
    }
}

/// Counts changed Services and slices.
pub(crate) fn count_changes(services: usize, slices: usize) {
    SERVICE_CHANGES.add(&[], services as u64);
    ENDPOINT_CHANGES.add(&[], slices as u64);
}

/// Takes the number of Services that are not in the tables yet.
pub(crate) fn set_pending(services: usize) {
    SERVICES_PENDING.set(&[], services as f64);
}

/// Ports that have endpoints, but none on this node, where a Local policy asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy`.
    internal: usize,
    /// By `externalTrafficPolicy`.
    external: usize,
}

impl NoLocalEndpoints {
    /// Counts the ports of one Service in one family.
    pub(crate) fn of<A>(ports: &[WantedPort<A>]) -> NoLocalEndpoints {
        let without = || ports.iter().filter(|port| port.has_endpoints && port.local.is_empty());
        let asks =
            |port: &WantedPort<A>, flag: u32| port.frontends.iter().any(|(_, flags)| flags & flag != 0);
        NoLocalEndpoints {
            internal: without().filter(|port| asks(port, frontend::INSIDE_LOCAL)).count(),
            external: without().filter(|port| asks(port, frontend::OUTSIDE_LOCAL)).count(),
        }
    }

    /// Replaces a Service's part of this sum.
    pub(crate) fn replace(&mut self, before: NoLocalEndpoints, now: NoLocalEndpoints) {
        let moved = |sum: usize, before, now| sum.saturating_sub(before).saturating_add(now);
        self.internal = moved(self.internal, before.internal, now.internal);
        self.external = moved(self.external, before.external, now.external);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_changes_counts_once() {
        let mut sum = NoLocalEndpoints::default();
        let one = NoLocalEndpoints { internal: 1, external: 2 };
        sum.replace(NoLocalEndpoints::default(), one);
        sum.replace(NoLocalEndpoints::default(), one);
        sum.replace(one, NoLocalEndpoints { internal: 3, external: 0 });
        assert_eq!(sum, NoLocalEndpoints { internal: 4, external: 2 });
    }
}
