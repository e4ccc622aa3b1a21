//! The limits of a pod's group as they are, and their change while the pod runs.

use super::{CgroupTree, Hierarchy, limits, read};
use crate::{Error, metrics::timed};
use berth_core::{
    model::Pod,
    resize::PodLimits,
    resources::{CPU_PERIOD_US, cpu_weight},
};
use std::path::Path;

/// Values of version 1 from here on mean no limit: the kernel rounds the largest number to pages.
const UNLIMITED: i64 = i64::MAX - (1 << 20);

impl CgroupTree {
    /// CPU shares, CPU quota and memory limit of the pod's group. With version 2, `wanted_shares` are returned where the
    /// group has their weight: many shares have one weight.
    ///
    /// # Errors
    /// A file of the group cannot be read.
    pub fn pod_limits(&self, pod: &Pod, wanted_shares: u64) -> Result<PodLimits, Error> {
        let mut found = PodLimits { cpu_shares: wanted_shares, cpu_quota: None, memory_limit: None };
        for h in &self.hierarchies {
            let dir = h.mount.join(self.pod_dir(pod));
            if h.has("cpu") {
                (found.cpu_shares, found.cpu_quota) = cpu(h, &dir, wanted_shares)?;
            }
            if h.has("memory") {
                let file = if h.is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
                found.memory_limit = limit(&read(&dir.join(file))?);
            }
        }
        Ok(found)
    }

    /// The memory in use by a group, given by its `cgroupsPath`; `None` where it cannot be read.
    pub fn memory_usage(&self, cgroups_path: &str) -> Option<u64> {
        let h = self.hierarchies.iter().find(|h| h.has("memory"))?;
        let file = if h.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
        let path = h.mount.join(cgroups_path.trim_start_matches('/')).join(file);
        read(&path).ok()?.trim().parse().ok()
    }

    /// `cgroupsPath` of the pod's own group.
    pub fn pod_cgroup(&self, pod: &Pod) -> String {
        Path::new("/").join(self.pod_dir(pod)).to_string_lossy().into_owned()
    }

    /// Sets the CPU shares of the pod's group.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_pod_shares(&self, pod: &Pod, shares: u64) -> Result<(), Error> {
        self.each(pod, |h, dir| limits::set_shares(h, dir, shares))
    }

    /// Sets the CPU quota of the pod's group, in microseconds per period.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_pod_quota(&self, pod: &Pod, quota: i64) -> Result<(), Error> {
        self.each(pod, |h, dir| limits::set_quota(h, dir, Some(quota), CPU_PERIOD_US))
    }

    /// Sets the memory limit of the pod's group, in bytes.
    ///
    /// # Errors
    /// The kernel refuses. Version 1 also refuses a limit below what is in use.
    pub fn set_pod_memory(&self, pod: &Pod, bytes: i64) -> Result<(), Error> {
        self.each(pod, |h, dir| limits::set_memory(h, dir, Some(bytes)))
    }

    fn each(&self, pod: &Pod, set: impl Fn(&Hierarchy, &Path) -> Result<(), Error>) -> Result<(), Error> {
        timed("update", || self.hierarchies.iter().try_for_each(|h| set(h, &h.mount.join(self.pod_dir(pod)))))
    }
}

fn cpu(h: &Hierarchy, dir: &Path, wanted_shares: u64) -> Result<(u64, Option<i64>), Error> {
    if !h.is_v2() {
        let shares = read(&dir.join("cpu.shares"))?.trim().parse().unwrap_or(0);
        return Ok((shares, limit(&read(&dir.join("cpu.cfs_quota_us"))?)));
    }
    let weight: u64 = read(&dir.join("cpu.weight"))?.trim().parse().unwrap_or(0);
    // The formula's inverse, rounded up to the least shares of that weight.
    let shares = 2 + (weight.saturating_sub(1) * 262_142).div_ceil(9999);
    let shares = if weight == cpu_weight(wanted_shares) { wanted_shares } else { shares };
    let max = read(&dir.join("cpu.max"))?;
    Ok((shares, limit(max.split_ascii_whitespace().next().unwrap_or_default())))
}

/// A limit; `None` for `max`, for a negative number and for one that is beyond every memory.
fn limit(text: &str) -> Option<i64> {
    text.trim().parse::<i64>().ok().filter(|value| (0..UNLIMITED).contains(value))
}
