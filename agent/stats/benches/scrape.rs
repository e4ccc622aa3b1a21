//! Cost of a scrape of a node with 100 pods of one container: the rendering of each endpoint, and the reading of
//! as many groups. Every line is `name value unit`.
//!
//! The groups are those of this machine's root, read once for each group of the node: the same files, at the cost
//! of a shorter path.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, missing_docs, reason = "a measuring program")]

use berth_core::{ids::PodKey, time::Now};
use berth_stats::{
    cgroup::{CpuTime, Depth, GroupMounts, GroupUsage, MemoryUse},
    network::Interface,
    reading::{ContainerReading, Group, NodeReading, PodReading, SandboxReading, fill},
    render::{cadvisor, resource, summary},
};
use std::{hint::black_box, path::Path, time::Instant};

const PODS: usize = 100;
const ROUNDS: u32 = 20;

fn group(path: String) -> Group {
    let usage = GroupUsage {
        cpu: Some(CpuTime { total: 1_234_567_891, user: 1_000_000_000, system: 234_567_891 }),
        memory: Some(MemoryUse { usage: 12_345_678, max_usage: Some(23_456_789), ..MemoryUse::default() }),
        tasks: Some(3),
        ..GroupUsage::default()
    };
    Group { path: path.into(), usage, ..Group::default() }
}

fn node() -> NodeReading {
    let pod = |n: usize| {
        let uid = format!("0e6f3c1e-7a39-4b62-9a6c-{n:012}");
        let id = format!("{n:064x}");
        let path = format!("kubepods/besteffort/pod{uid}");
        PodReading {
            uid: uid.parse().unwrap(),
            key: PodKey { namespace: "default".parse().unwrap(), name: format!("web-{n}").parse().unwrap() },
            group: group(path.clone()),
            sandbox: Some(SandboxReading {
                id: id.clone(),
                group: Group { path: format!("{path}/pause").into(), ..Group::default() },
                interfaces: vec![Interface { name: "eth0".to_owned(), ..Interface::default() }],
            }),
            containers: vec![ContainerReading {
                name: "web".parse().unwrap(),
                id: id.parse().unwrap(),
                image: "docker.io/library/busybox:1".to_owned(),
                group: group(format!("{path}/{id}")),
            }],
        }
    };
    NodeReading { root: group(String::new()), pods: (0..PODS).map(pod).collect(), ..NodeReading::default() }
}

fn measure(name: &str, mut work: impl FnMut() -> usize) {
    let bytes = work();
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        black_box(work());
    }
    let took = begun.elapsed().as_secs_f64() * 1000.0 / f64::from(ROUNDS);
    println!("{name}_ms {took:.3} ms");
    println!("{name}_kb {} kB", bytes / 1000);
}

fn main() {
    let node = node();
    measure("render_resource", || resource::render(&node).len());
    measure("render_cadvisor", || cadvisor::render(&node, &cadvisor::Machine::default()).len());
    measure("render_summary", || summary::render(&node, &summary::NodeFacts::default(), None).len());
    let mount = |name: &str| Some(Path::new("/sys/fs/cgroup").join(name)).filter(|dir| dir.is_dir());
    let mounts = GroupMounts {
        unified: Some("/sys/fs/cgroup".into()).filter(|_: &std::path::PathBuf| mount("memory").is_none()),
        cpu: mount("cpu"),
        cpuacct: mount("cpuacct"),
        memory: mount("memory"),
        blkio: mount("blkio"),
        pids: mount("pids"),
    };
    for (name, depth) in [("read_resource", Depth::Basic), ("read_cadvisor", Depth::Full)] {
        let mut groups = node.clone();
        groups.root.path.clear();
        for pod in &mut groups.pods {
            pod.group.path.clear();
            pod.sandbox = None;
            for container in &mut pod.containers {
                container.group.path.clear();
            }
        }
        measure(name, || {
            fill(&mut groups, &mounts, depth, Now::default());
            0
        });
    }
}
