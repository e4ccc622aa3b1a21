//! `/stats/summary`: the JSON of `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.
//!
//! With `only_cpu_and_memory` the parts about disks and networks are left out, and the caller need not read them.

mod json;

use crate::{
    cgroup::{Pressure, Stall},
    disk::{Capacity, DirectoryUse},
    network::Interface,
    reading::{Group, NodeReading, PodReading},
};
use berth_core::{ids::PodUid, time::Wall};
use json::{
    Container, Cpu, Fs, Io, Memory, Network, NetworkInterface, Node, Pod, PodReference, Processes, Psi,
    PsiLine, PvcRef, Rlimit, RuntimeFs, Summary, Swap, Volume, VolumeHealth,
};
use std::collections::BTreeMap;

/// What the summary shows beside the groups.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// When the machine booted.
    pub booted: Wall,
    /// Bytes of the machine's memory.
    pub memory: u64,
    /// Bytes of the machine's swap.
    pub swap: u64,
    /// The most processes of the machine, and how many it has.
    pub processes: Option<(u64, u64)>,
}

/// Use of a file system, or of a directory on it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FsUse {
    /// The file system.
    pub capacity: Capacity,
    /// What is used by the object at hand; `None`: all that is used of the file system.
    pub used: Option<DirectoryUse>,
}

/// Disks of the node and its pods. What is not known yet is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskReading {
    /// File system of the pods' directories.
    pub node: Option<FsUse>,
    /// File system of the images, and what the images use.
    pub images: Option<FsUse>,
    /// File system of the containers' writable layers, and what those use.
    pub containers: Option<FsUse>,
    /// The pods.
    pub pods: BTreeMap<PodUid, PodDisks>,
}

/// Disks of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodDisks {
    /// Volumes by name.
    pub volumes: Vec<VolumeUse>,
    /// Containers by name.
    pub containers: BTreeMap<String, ContainerDisks>,
}

/// Use of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeUse {
    /// Name in the pod.
    pub name: String,
    /// Use of its file system or directory.
    pub fs: FsUse,
    /// Whether the volume lies on the node's disk and counts as the pod's ephemeral storage.
    pub ephemeral: bool,
    /// Namespace and name of the claim that the volume is bound to.
    pub claim: Option<(String, String)>,
    /// Whether the volume's driver says that something is wrong with it; `None` if it says nothing of that.
    pub abnormal: Option<bool>,
}

/// Disks of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerDisks {
    /// The writable layer.
    pub rootfs: Option<FsUse>,
    /// The output files.
    pub logs: Option<FsUse>,
}

/// Renders the endpoint. `disks`: `None` for `only_cpu_and_memory`.
pub fn render(reading: &NodeReading, facts: &NodeFacts, disks: Option<&DiskReading>) -> Vec<u8> {
    let at = time(reading.at.wall);
    let shared = Shared { at: &at, full: disks.is_some() };
    let root = &reading.root;
    let fs = |fs: Option<FsUse>| fs.map(|fs| shared.fs(&fs));
    let system = reading.system.iter().map(|(name, group)| shared.group(name, group, facts.memory));
    let node = Node {
        node_name: &facts.name,
        system_containers: system.collect(),
        start_time: time(facts.booted),
        cpu: shared.cpu(root),
        memory: shared.memory(root, Some(facts.memory)),
        io: shared.io(root),
        network: disks.and_then(|_| shared.network(&reading.interfaces)),
        fs: disks.and_then(|d| fs(d.node)),
        runtime: disks
            .map(|d| RuntimeFs { image_fs: fs(d.images), container_fs: fs(d.containers) })
            .filter(|r| r.image_fs.is_some() || r.container_fs.is_some()),
        rlimit: facts.processes.filter(|_| shared.full).map(|(maxpid, curproc)| Rlimit {
            time: &at,
            maxpid,
            curproc,
        }),
        swap: shared.swap(root, Some(facts.swap)),
    };
    let none = PodDisks::default();
    let pods = reading.pods.iter().map(|pod| {
        let own = disks.and_then(|d| d.pods.get(&pod.uid)).unwrap_or(&none);
        shared.pod(pod, own, disks.and_then(|d| d.node))
    });
    let summary = Summary { node, pods: pods.collect() };
    // The structures have string keys and finite numbers only, so encoding cannot fail.
    serde_json::to_vec(&summary).unwrap_or_default()
}

/// A time as `metav1.Time` writes it.
fn time(at: Wall) -> String {
    jiff::Timestamp::from_second(at.seconds()).map(|at| at.to_string()).unwrap_or_default()
}

/// What all parts of one summary share.
struct Shared<'a> {
    at: &'a str,
    full: bool,
}

impl<'a> Shared<'a> {
    fn cpu(&self, group: &Group) -> Option<Cpu<'a>> {
        group.usage.cpu.map(|cpu| Cpu {
            time: self.at,
            usage_nano_cores: group.nano_cores,
            usage_core_nano_seconds: cpu.total,
            psi: group.usage.cpu_pressure.map(psi),
        })
    }

    /// `capacity`: the limit of the group, of which the rest is available.
    fn memory(&self, group: &Group, capacity: Option<u64>) -> Option<Memory<'a>> {
        group.usage.memory.map(|memory| Memory {
            time: self.at,
            available_bytes: capacity.map(|bytes| bytes.saturating_sub(memory.working_set())),
            usage_bytes: memory.usage,
            working_set_bytes: memory.working_set(),
            rss_bytes: memory.rss,
            page_faults: memory.pgfault,
            major_page_faults: memory.pgmajfault,
            psi: group.usage.memory_pressure.map(psi),
        })
    }

    fn io(&self, group: &Group) -> Option<Io<'a>> {
        group.usage.io_pressure.map(|pressure| Io { time: self.at, psi: psi(pressure) })
    }

    /// `available`: bytes of swap that the group may use, where known.
    fn swap(&self, group: &Group, available: Option<u64>) -> Option<Swap<'a>> {
        group.usage.memory.map(|memory| Swap {
            time: self.at,
            swap_available_bytes: available.map(|bytes| bytes.saturating_sub(memory.swap)),
            swap_usage_bytes: memory.swap,
        })
    }

    fn network<'b>(&self, interfaces: &'b [Interface]) -> Option<Network<'b>>
    where
        'a: 'b,
    {
        let of = |i: &'b Interface| NetworkInterface {
            name: &i.name,
            rx_bytes: i.receive.bytes,
            rx_errors: i.receive.errors,
            tx_bytes: i.transmit.bytes,
            tx_errors: i.transmit.errors,
        };
        // The kubelet's main interface is eth0, as CNI calls a pod's.
        let main = interfaces.iter().find(|i| i.name == "eth0").or(interfaces.first())?;
        Some(Network { time: self.at, main: of(main), interfaces: interfaces.iter().map(of).collect() })
    }

    fn fs(&self, fs: &FsUse) -> Fs<'a> {
        let of = &fs.capacity;
        let inodes = of.inodes > 0;
        Fs {
            time: self.at,
            available_bytes: of.available,
            capacity_bytes: of.bytes,
            used_bytes: fs.used.map_or(of.used, |used| used.bytes),
            inodes_free: inodes.then_some(of.inodes_free),
            inodes: inodes.then_some(of.inodes),
            inodes_used: match fs.used {
                Some(used) => Some(used.inodes),
                None => inodes.then(|| of.inodes.saturating_sub(of.inodes_free)),
            },
        }
    }

    fn group<'b>(&self, name: &'b str, group: &Group, capacity: u64) -> Container<'b>
    where
        'a: 'b,
    {
        Container {
            name,
            start_time: time(group.started.unwrap_or_default()),
            cpu: self.cpu(group),
            memory: self.memory(group, group.limits.memory.or(Some(capacity).filter(|bytes| *bytes > 0))),
            io: self.io(group),
            rootfs: None,
            logs: None,
            swap: self.swap(group, None),
        }
    }

    fn pod<'b>(&self, pod: &'b PodReading, disks: &PodDisks, node: Option<FsUse>) -> Pod<'b>
    where
        'a: 'b,
    {
        let containers = pod.containers.iter().map(|c| {
            let own = disks.containers.get(c.name.as_str());
            Container {
                rootfs: own.and_then(|own| own.rootfs).map(|fs| self.fs(&fs)),
                logs: own.and_then(|own| own.logs).map(|fs| self.fs(&fs)),
                ..self.group(c.name.as_str(), &c.group, 0)
            }
        });
        let ephemeral = node.map(|node| FsUse { used: Some(ephemeral(disks)), ..node });
        let volumes = disks.volumes.iter().map(|v| Volume {
            fs: self.fs(&v.fs),
            name: v.name.clone(),
            pvc_ref: v.claim.clone().map(|(namespace, name)| PvcRef { name, namespace }),
            health: v.abnormal.map(|abnormal| VolumeHealth { abnormal }),
        });
        Pod {
            pod_ref: PodReference {
                name: pod.key.name.as_str(),
                namespace: pod.key.namespace.as_str(),
                uid: pod.uid.as_str(),
            },
            start_time: time(pod.group.started.unwrap_or_default()),
            containers: containers.collect(),
            cpu: self.cpu(&pod.group),
            memory: self.memory(&pod.group, pod.group.limits.memory),
            io: self.io(&pod.group),
            network: pod.sandbox.as_ref().filter(|_| self.full).and_then(|s| self.network(&s.interfaces)),
            volume: volumes.collect(),
            ephemeral_storage: ephemeral.map(|fs| self.fs(&fs)),
            process_stats: pod
                .group
                .usage
                .tasks
                .filter(|_| self.full)
                .map(|n| Processes { process_count: n }),
            swap: self.swap(&pod.group, None),
        }
    }
}

/// What a pod uses of the node's disk.
fn ephemeral(disks: &PodDisks) -> DirectoryUse {
    let volumes = disks.volumes.iter().filter(|v| v.ephemeral).map(|v| Some(v.fs));
    let containers = disks.containers.values().flat_map(|c| [c.rootfs, c.logs]);
    volumes.chain(containers).flatten().filter_map(|fs| fs.used).fold(DirectoryUse::default(), |sum, used| {
        DirectoryUse {
            bytes: sum.bytes.saturating_add(used.bytes),
            inodes: sum.inodes.saturating_add(used.inodes),
        }
    })
}

fn psi(pressure: Pressure) -> Psi {
    let line = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        // Upstream's type says nanoseconds, and its kubelet hands the kernel's microseconds on as they are.
        PsiLine { total: stall.total, avg10, avg60, avg300 }
    };
    Psi { full: line(pressure.full), some: line(pressure.some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing::{golden, node};

    fn facts() -> NodeFacts {
        NodeFacts {
            name: "n1".to_owned(),
            booted: Wall(1_700_000_000_000_000_000),
            memory: 1 << 30,
            swap: 0,
            processes: Some((32_768, 100)),
        }
    }

    fn disks() -> DiskReading {
        let capacity =
            Capacity { bytes: 1 << 30, available: 1 << 28, used: 1 << 29, inodes: 1000, inodes_free: 400 };
        let of = |bytes| Some(FsUse { capacity, used: Some(DirectoryUse { bytes, inodes: bytes / 1000 }) });
        let fs = |bytes| of(bytes).unwrap();
        let volume = |name: &str, bytes, ephemeral| VolumeUse {
            name: name.to_owned(),
            fs: fs(bytes),
            ephemeral,
            claim: None,
            abnormal: None,
        };
        let claim = Some(("ns".to_owned(), "pvc".to_owned()));
        let bound = VolumeUse { claim, abnormal: Some(true), ..volume("pv", 60_000, false) };
        let pod = PodDisks {
            volumes: vec![volume("data", 1000, true), volume("shm", 50_000, false), bound],
            containers: [("c".to_owned(), ContainerDisks { rootfs: of(2000), logs: of(4000) })].into(),
        };
        let whole = Some(FsUse { capacity, used: None });
        DiskReading {
            node: whole,
            images: of(9000),
            containers: whole,
            pods: [("a-b".parse().unwrap(), pod)].into(),
        }
    }

    #[test]
    fn the_summary_of_a_small_node() {
        let text = render(&node(), &facts(), Some(&disks()));
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        golden("summary.json", &format!("{value:#}\n"));
        let pod = &value["pods"][0];
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 7000);
        assert_eq!(pod["containers"][0]["memory"]["availableBytes"], (1 << 20) - 700);
    }

    #[test]
    fn cpu_and_memory_alone() {
        let text = render(&node(), &facts(), None);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&value["pods"][0]), ["containers", "cpu", "memory", "podRef", "startTime", "swap"]);
        assert_eq!(
            keys(&value["node"]),
            ["cpu", "memory", "nodeName", "startTime", "swap", "systemContainers"]
        );
    }
}
