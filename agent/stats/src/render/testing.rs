//! A small node for tests, and a parser of the text format.

use super::cadvisor::Machine;
use crate::{
    cgroup::{CpuTime, DeviceIo, GroupUsage, MemoryUse, Pressure, Stall, Throttling},
    network::{Interface, Traffic},
    reading::{ContainerReading, Group, Limits, NodeReading, PodReading, SandboxReading},
};
use berth_core::{
    ids::PodKey,
    time::{Boottime, Now, Wall},
};
use std::collections::{BTreeMap, BTreeSet};

fn group(path: &str, n: u64) -> Group {
    Group {
        path: path.into(),
        started: Some(Wall(1_700_000_000_500_000_000)),
        limits: Limits::default(),
        nano_cores: None,
        usage: GroupUsage {
            cpu: Some(CpuTime { total: n * 1_500_000_000, user: n * 1_000_000_000, system: n * 500_000_000 }),
            memory: Some(MemoryUse {
                usage: n * 1000,
                max_usage: Some(n * 2000),
                failcnt: Some(0),
                cache: n * 400,
                rss: n * 500,
                inactive_file: n * 300,
                pgfault: n * 7,
                oom_kills: Some(0),
                ..MemoryUse::default()
            }),
            ..GroupUsage::default()
        },
    }
}

/// A node with one pod of one container.
pub(crate) fn node() -> NodeReading {
    let traffic = |n| Traffic { bytes: n * 1000, packets: n, errors: 0, dropped: 1 };
    let eth0 = |n| Interface { name: "eth0".to_owned(), receive: traffic(n), transmit: traffic(n + 1) };
    let pod_path = "kubepods/burstable/poda-b";
    let mut container = group(&format!("{pod_path}/c1"), 1);
    container.limits =
        Limits { cpu_shares: Some(102), cpu_quota: Some(50_000), memory: Some(1 << 20), tasks: None };
    let usage = &mut container.usage;
    usage.throttling =
        Some(Throttling { periods: 10, throttled_periods: 2, throttled: 30_000_000, ..Default::default() });
    usage.io = vec![DeviceIo { device: (8, 0), read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 }];
    usage.tasks = Some(3);
    let some = Stall { total: 1500, averages: [0.5, 0.25, 0.0] };
    usage.cpu_pressure = Some(Pressure { some, full: Stall::default() });
    NodeReading {
        at: Now {
            wall: Wall(1_700_000_100_123_000_000),
            boottime: Boottime(std::time::Duration::from_secs(1000)),
        },
        root: group("", 100),
        above: vec![group("kubepods", 3)],
        system: vec![("kubelet", group("system.slice/berth.service", 5))],
        pods: vec![PodReading {
            uid: "a-b".parse().unwrap(),
            key: PodKey { namespace: "ns".parse().unwrap(), name: "web".parse().unwrap() },
            group: group(pod_path, 2),
            sandbox: Some(SandboxReading {
                id: "a-b-0".to_owned(),
                group: Group { usage: GroupUsage::default(), ..group(&format!("{pod_path}/pause"), 0) },
                interfaces: vec![eth0(5)],
            }),
            containers: vec![ContainerReading {
                name: "c".parse().unwrap(),
                id: "c1".repeat(32).parse().unwrap(),
                image: "docker.io/library/busybox:1".to_owned(),
                group: container,
            }],
        }],
        interfaces: vec![eth0(50)],
        devices: vec![((8, 0), "/dev/sda".to_owned())],
    }
}

/// The machine of that node.
pub(crate) fn machine() -> Machine {
    Machine {
        machine_id: "m".to_owned(),
        boot_id: "b".to_owned(),
        cores: 4,
        physical_cores: 2,
        sockets: 1,
        memory: 1 << 30,
        kernel_version: "6.1.0".to_owned(),
        os_version: "Some \"OS\"".to_owned(),
        read_at: Wall(1_700_000_000_000_000_000),
        ..Machine::default()
    }
}

/// Compares a text with the recorded one. With `BERTH_RECORD` set the text is recorded.
pub(crate) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/render/testdata").join(name);
    if std::env::var_os("BERTH_RECORD").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    assert!(recorded == text, "{} differs from:\n{text}", path.display());
}

/// A family that was read back: its type, and the labels of its samples.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ParsedFamily {
    pub(crate) kind: String,
    pub(crate) samples: BTreeSet<(String, BTreeMap<String, String>)>,
}

/// Reads a text back. Panics unless each family has one help, one type, samples in one block, and no series
/// twice.
pub(crate) fn parsed(text: &str) -> BTreeMap<String, ParsedFamily> {
    let mut families: BTreeMap<String, ParsedFamily> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!families.contains_key(name) && !help.is_empty(), "{line}");
            families.insert(name.to_owned(), ParsedFamily::default());
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            kind.clone_into(&mut family.kind);
        } else {
            let (name, labels) = sample(line);
            let family = families.get_mut(&current).unwrap();
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} is not of {current}"));
            let histogram = family.kind == "histogram";
            assert!(
                ["", "_bucket", "_sum", "_count"].contains(&suffix) && histogram != suffix.is_empty(),
                "{line}"
            );
            assert!(family.samples.insert((name, labels)), "twice: {line}");
        }
    }
    assert!(text.ends_with('\n') && families.values().all(|f| !f.samples.is_empty() && !f.kind.is_empty()));
    families
}

fn sample(line: &str) -> (String, BTreeMap<String, String>) {
    let at = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(at);
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap();
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next().unwrap() {
                    (n, '"') => break n,
                    (_, '\\') => text.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("escape {c} in {line}"),
                    }),
                    (_, c) => text.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), text).is_none(), "{line}");
            rest = &value[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let mut words = rest.split_ascii_whitespace();
    words.next().unwrap().parse::<f64>().unwrap();
    if let Some(at) = words.next() {
        at.parse::<i64>().unwrap();
    }
    assert_eq!(words.next(), None, "{line}");
    (name.to_owned(), labels)
}
