//! Readings: what one scrape shows of the node. Plain data, from which the endpoints are rendered.
//!
//! The wiring names the groups and their facts; [`fill`] adds what the kernel counts.

use crate::{
    cgroup::{Depth, GroupMounts, GroupReader, GroupUsage},
    network::Interface,
};
use berth_core::{
    ids::{ContainerId, ContainerName, PodKey, PodUid},
    time::{Boottime, Now, Wall},
};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// A cgroup: what it is, and what it has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Path below each hierarchy's root, without a slash at the beginning; empty for the root.
    pub path: PathBuf,
    /// When the group, or its container, began.
    pub started: Option<Wall>,
    /// Limits of the group, as they were set.
    pub limits: Limits,
    /// Thousand-millionths of a core that the group used of late, once [`Rates`] knows.
    pub nano_cores: Option<u64>,
    /// What the group has used, once it was read.
    pub usage: GroupUsage,
}

/// Limits of a group. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU shares (version 1's unit).
    pub cpu_shares: Option<u64>,
    /// CPU quota in microseconds per [`berth_core::resources::CPU_PERIOD_US`].
    pub cpu_quota: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerReading {
    /// Name in the pod.
    pub name: ContainerName,
    /// containerd's id.
    pub id: ContainerId,
    /// Image, as in the pod's spec.
    pub image: String,
    /// Its group.
    pub group: Group,
}

/// The sandbox of a pod with a network of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxReading {
    /// Id of the sandbox, which CNI plugins know.
    pub id: String,
    /// Group of the pause process. On version 1 that process is in the pod's group, so the usage is unknown.
    pub group: Group,
    /// The interfaces of the network namespace, without `lo`.
    pub interfaces: Vec<Interface>,
}

/// A pod with a worker on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct PodReading {
    /// UID.
    pub uid: PodUid,
    /// Namespace and name.
    pub key: PodKey,
    /// Its group.
    pub group: Group,
    /// Its sandbox; `None` for a pod in the host's network.
    pub sandbox: Option<SandboxReading>,
    /// The containers that run.
    pub containers: Vec<ContainerReading>,
}

/// What one scrape shows of the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeReading {
    /// When the groups were read.
    pub at: Now,
    /// The root of all groups: the whole machine.
    pub root: Group,
    /// The groups above the pods': all pods together, and the classes of quality of service.
    pub above: Vec<Group>,
    /// The agent's own helpers and containerd, by the name that `/stats/summary` gives them.
    pub system: Vec<(&'static str, Group)>,
    /// The pods.
    pub pods: Vec<PodReading>,
    /// The host's interfaces, without `lo` and the pods' own.
    pub interfaces: Vec<Interface>,
    /// Names of the block devices that occur in the groups.
    pub devices: Vec<((u32, u32), String)>,
}

impl NodeReading {
    fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        let pods = self.pods.iter_mut().flat_map(|pod| {
            let containers = pod.containers.iter_mut().map(|c| &mut c.group);
            std::iter::once(&mut pod.group)
                .chain(pod.sandbox.as_mut().map(|s| &mut s.group))
                .chain(containers)
        });
        let system = self.system.iter_mut().map(|(_, group)| group);
        std::iter::once(&mut self.root).chain(&mut self.above).chain(system).chain(pods)
    }

    /// Name of a block device, such as `/dev/sda`; its numbers where the name is unknown.
    pub fn device(&self, numbers: (u32, u32)) -> &str {
        self.devices.iter().find(|(own, _)| *own == numbers).map_or("", |(_, name)| name)
    }
}

/// Reads every group. `at` is the time of the reading.
pub fn fill(reading: &mut NodeReading, mounts: &GroupMounts, depth: Depth, at: Now) {
    let mut reader = GroupReader::new(mounts);
    reading.at = at;
    for group in reading.groups_mut() {
        let limited = group.limits.cpu_quota.is_some();
        // On version 1 the pause process has no group of its own, and an empty usage stays.
        group.usage = reader.read(&group.path, depth, limited);
    }
    let mut devices: Vec<(u32, u32)> =
        reading.groups_mut().flat_map(|g| g.usage.io.iter().map(|io| io.device)).collect();
    devices.sort_unstable();
    devices.dedup();
    reading.devices = devices.into_iter().map(|numbers| (numbers, device_name(numbers))).collect();
}

/// Path of a block device by its numbers; `major:minor` where the kernel knows no name.
fn device_name((major, minor): (u32, u32)) -> String {
    let event = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = event.as_deref().unwrap_or_default().lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

/// The shortest time between the two readings of a rate.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// CPU rates between readings. The kernel counts CPU time alone; a rate is the difference to an earlier reading,
/// whoever asked for that.
#[derive(Debug, Default)]
pub struct Rates {
    last: BTreeMap<PathBuf, LastReading>,
}

#[derive(Debug, Clone, Copy)]
struct LastReading {
    at: Boottime,
    cpu: u64,
    nano_cores: Option<u64>,
    /// Number of the reading that saw the group last.
    seen: Boottime,
}

impl Rates {
    /// Adds the rates to a reading and remembers it. Groups that the reading does not have are forgotten.
    pub fn apply(&mut self, reading: &mut NodeReading) {
        let now = reading.at.boottime;
        for group in reading.groups_mut() {
            let Some(cpu) = group.usage.cpu.map(|cpu| cpu.total) else { continue };
            let fresh = LastReading { at: now, cpu, nano_cores: None, seen: now };
            let last = match self.last.get_mut(&group.path) {
                Some(last) => last,
                None => self.last.entry(group.path.clone()).or_insert(fresh),
            };
            let elapsed = now.since(last.at);
            if elapsed >= MIN_INTERVAL || cpu < last.cpu {
                let rate = cpu
                    .checked_sub(last.cpu)
                    .map(|used| u128::from(used).saturating_mul(1_000_000_000) / elapsed.as_nanos().max(1));
                *last = LastReading { nano_cores: rate.and_then(|rate| rate.try_into().ok()), ..fresh };
            }
            last.seen = now;
            group.nano_cores = last.nano_cores;
        }
        self.last.retain(|_, last| last.seen == now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::CpuTime;

    fn rate_of(rates: &mut Rates, second: f64, cpu: Option<u64>) -> Option<u64> {
        let mut reading = NodeReading::default();
        reading.at.boottime = Boottime(Duration::from_secs_f64(second));
        reading.root.usage.cpu = cpu.map(|total| CpuTime { total, ..CpuTime::default() });
        rates.apply(&mut reading);
        reading.root.nano_cores
    }

    #[test]
    fn a_rate_needs_two_readings_a_second_apart() {
        let mut rates = Rates::default();
        assert_eq!(rate_of(&mut rates, 1.0, Some(1000)), None);
        assert_eq!(rate_of(&mut rates, 1.5, Some(2000)), None);
        assert_eq!(rate_of(&mut rates, 3.0, Some(5000)), Some(2000));
        // Too soon for another rate: the last one stays.
        assert_eq!(rate_of(&mut rates, 3.1, Some(9000)), Some(2000));
        assert_eq!(rate_of(&mut rates, 5.0, Some(9000)), Some(2000));
        // Another group of the same path begins anew.
        assert_eq!(rate_of(&mut rates, 9.0, Some(10)), None);
        assert_eq!(rate_of(&mut rates, 10.0, Some(20)), Some(10));
        assert_eq!(rate_of(&mut rates, 11.0, None), None);
        assert!(rates.last.is_empty());
    }
}
