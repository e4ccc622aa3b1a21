//! Kernel values of requests and limits, by the kubelet's arithmetic. Pure.
//!
//! This module: CPU shares, weights and quotas (`pkg/kubelet/cm/helpers_linux.go`). Its submodules: a pod's
//! cgroup ([`pod_cgroup`]), a container's cgroup ([`ContainerResources`]), and the order of OOM kills
//! ([`oom_score_adj`]).

mod container;
mod oom;
mod pod;
#[cfg(test)]
mod testing;
mod total;

pub use container::{CgroupFacts, ContainerResources};
pub use oom::{OOM_AGENT, OOM_BEST_EFFORT, OOM_GUARANTEED, OOM_SANDBOX, oom_score_adj};
pub use pod::{Amounts, PodCgroup, burstable_shares, pod_cgroup, pod_limits, pod_requests};

/// The least number of CPU shares; also the shares of all best-effort pods together.
pub const MIN_SHARES: u64 = 2;
/// The largest number of CPU shares.
pub const MAX_SHARES: u64 = 262_144;
/// The period of a CPU quota, in microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota that the kernel accepts, in microseconds.
pub const MIN_QUOTA_US: i64 = 1000;

/// The CPU shares (cgroup v1 `cpu.shares`) for a request in thousandths of a core.
pub fn cpu_shares(millis: i64) -> u64 {
    let shares = u64::try_from(millis).unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

/// The CPU weight (cgroup v2 `cpu.weight`, 1 to 10000) for shares, by the formula for pods and QoS classes.
/// Container runtimes use another formula for containers.
pub fn cpu_weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// The CPU quota in microseconds per `period_us` for a limit in thousandths of a core; `None` means no limit.
pub fn cpu_quota(limit_millis: Option<i64>, period_us: u64) -> Option<i64> {
    let millis = limit_millis.filter(|m| *m > 0)?;
    let period = i64::try_from(period_us).unwrap_or(i64::MAX);
    Some((millis.saturating_mul(period) / 1000).max(MIN_QUOTA_US))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_weights_and_quotas() {
        for (millis, shares, weight) in [
            (-1, 2, 1),
            (0, 2, 1),
            (1, 2, 1),
            (2, 2, 1),
            (100, 102, 4),
            (250, 256, 10),
            (1000, 1024, 39),
            (4000, 4096, 157),
            (256_000, 262_144, 10_000),
            (i64::MAX, 262_144, 10_000),
        ] {
            assert_eq!((cpu_shares(millis), cpu_weight(cpu_shares(millis))), (shares, weight), "{millis}");
        }
        for (limit, period, quota) in [
            (None, 100_000, None),
            (Some(0), 100_000, None),
            (Some(1), 100_000, Some(1000)),
            (Some(10), 100_000, Some(1000)),
            (Some(11), 100_000, Some(1100)),
            (Some(1000), 100_000, Some(100_000)),
            (Some(2500), 5000, Some(12_500)),
        ] {
            assert_eq!(cpu_quota(limit, period), quota, "{limit:?} {period}");
        }
        assert!(cpu_quota(Some(i64::MAX), u64::MAX).is_some_and(|q| q > 0));
    }
}
