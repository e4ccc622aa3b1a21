//! Compares the values of a pod's own cgroup with recordings of the real kubelet on cgroup v2
//! (`tests/golden/v2/cgroup`, remade by `cargo xtask vm --record`). The groups of containers are made by the
//! runtime; their specs are compared in the runtime's tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test: what is missing fails it")]

use berth_core::{
    ids::NodeName,
    model::QosClass,
    resources::{CPU_PERIOD_US, cpu_weight, pod_cgroup},
    time::Wall,
};
use berth_source::manifest::{self, ManifestContext, Mode};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, path::Path};

/// Smallest number of recorded shapes.
const LEAST: usize = 20;

/// Size of a memory page on the recording machine in bytes.
const PAGE: i64 = 4096;

#[derive(Deserialize)]
struct Recording {
    parent: String,
    pod: BTreeMap<String, String>,
}

#[test]
fn a_pods_group_is_set_to_what_the_kubelet_sets_it_to() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests");
    let (mut count, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(tests.join("golden/v2/cgroup")).unwrap() {
        let path = entry.unwrap().path();
        let shape = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let recorded: Recording = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let context = ManifestContext {
            node: NodeName::new("berth-peer").unwrap(),
            mode: Mode::StaticPods,
            now: Wall(0),
            services: None,
        };
        let file = tests.join(format!("shapes/{shape}.yaml"));
        let parsed = manifest::parse_file(&file, &fs::read(&file).unwrap(), &context).unwrap();
        let pod = &parsed.pods[0].pod;
        let values = pod_cgroup(pod, None);
        let or_max = |value: Option<i64>| value.map_or_else(|| "max".to_owned(), |v| v.to_string());
        let mut ours = BTreeMap::from([
            ("cpu.weight", cpu_weight(values.cpu_shares).to_string()),
            ("cpu.max", format!("{} {CPU_PERIOD_US}", or_max(values.cpu_quota))),
            // The kernel rounds memory limits down to whole pages.
            ("memory.max", or_max(values.memory_limit.map(|bytes| bytes / PAGE * PAGE))),
            ("pids.max", or_max(values.pids_limit)),
            // Values that neither the kubelet nor Berth sets.
            ("memory.min", "0".to_owned()),
            ("memory.high", "max".to_owned()),
            ("memory.swap.max", "max".to_owned()),
            ("memory.oom.group", "0".to_owned()),
        ]);
        for (file, size) in [("hugetlb.2MB.max", "2MB"), ("hugetlb.1GB.max", "1GB")] {
            ours.insert(file, values.hugepages.get(size).copied().unwrap_or(0).to_string());
        }
        for (file, value) in ours {
            if recorded.pod.get(file) != Some(&value) {
                wrong
                    .push(format!("{shape}: {file}: {value}, the kubelet's is {:?}", recorded.pod.get(file)));
            }
        }
        let parent = match pod.qos() {
            QosClass::Guaranteed => "kubepods",
            QosClass::Burstable => "kubepods/burstable",
            QosClass::BestEffort => "kubepods/besteffort",
        };
        if recorded.parent != parent {
            wrong.push(format!("{shape}: below {parent}, the kubelet's below {}", recorded.parent));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= LEAST, "{count} recordings");
}
