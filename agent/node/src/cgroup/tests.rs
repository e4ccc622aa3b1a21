//! Tests of the cgroup tree on this machine's hierarchies, and of version 2 on a directory that imitates it.
//! Need root.

use super::*;
use crate::testing::{container, pod, resources};
use berth_core::{ids::NodeName, resize::PodLimits};
use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

fn roots_named(group: &str) -> Roots {
    let mut roots = Roots::defaults(NodeName::new("node").unwrap());
    roots.cgroup_root = Path::new(group).join("kubepods");
    roots.cgroup_helpers = Path::new(group).join("helpers");
    roots
}

/// A test's own tree on the real hierarchies; the drop removes it and kills the processes in it.
struct Real {
    tree: CgroupTree,
    group: String,
    children: Vec<Child>,
}

impl Real {
    fn new() -> Real {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let group =
            format!("berth-node-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let tree = CgroupTree::open(&roots_named(&group)).unwrap();
        tree.prepare().unwrap();
        Real { tree, group, children: Vec::new() }
    }

    /// Starts a process in these groups.
    fn process_in(&mut self, dirs: &[PathBuf], program: &str) -> u32 {
        let child = Command::new("sh").args(["-c", program]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        for dir in dirs {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        pid
    }

    fn dirs(&self, below: &str) -> Vec<PathBuf> {
        self.tree.hierarchies.iter().map(|h| h.mount.join(&self.group).join(below)).collect()
    }

    fn value(&self, controller: &str, file: &str) -> Option<String> {
        let h = self.tree.hierarchies.iter().find(|h| h.has(controller))?;
        Some(fs::read_to_string(h.mount.join(&self.group).join(file)).unwrap().trim().to_owned())
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _gone = child.kill();
            let _gone = child.wait();
        }
        for h in &self.tree.hierarchies {
            for group in remove::descendants(&h.mount.join(&self.group)).unwrap_or_default().iter().rev() {
                for pid in procs(group).unwrap_or_default() {
                    if let Ok(Some(process)) = berth_sys::process::PidFd::open(pid) {
                        let _gone = process.signal(berth_sys::process::Signal::KILL);
                        let _gone = process.poll_exited(std::time::Duration::from_secs(5));
                    }
                }
                let _gone = remove::remove_tree(group, berth_sys::clock::boottime() + remove::REMOVE_WAIT);
            }
        }
    }
}

fn burstable(uid: &str) -> Pod {
    pod(uid, vec![], vec![container("cpu=250m", "cpu=500m,memory=64Mi")])
}

#[test]
fn a_pod_gets_its_numbers_in_every_hierarchy_and_leaves_nothing() {
    let real = Real::new();
    let p = burstable("u-1");
    let begun = Instant::now();
    real.tree.create_pod(&p, Some(77)).unwrap();
    println!("create_pod: {:?}", begun.elapsed());
    real.tree.create_pod(&p, Some(77)).unwrap();
    let pod = "kubepods/burstable/podu-1";
    assert!(real.dirs(pod).iter().all(|d| d.is_dir()));
    let v1 = real.tree.hierarchies.iter().any(|h| matches!(&h.kind, Kind::V1(c) if c.contains("cpu")));
    assert!(v1, "this test expects the hybrid layout; version 2 has its own");
    for (controller, file, want) in [
        ("cpu", "cpu.shares", "256"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("pids", "pids.max", "77"),
    ] {
        assert_eq!(real.value(controller, &format!("{pod}/{file}")).as_deref(), Some(want), "{file}");
    }
    assert_ne!(real.value("cpuset", &format!("{pod}/cpuset.cpus")).as_deref(), Some(""));
    assert_eq!(real.value("cpu", "kubepods/besteffort/cpu.shares").as_deref(), Some("2"));
    assert_eq!(real.tree.pods().unwrap(), std::slice::from_ref(&p.uid));
    // The pod's new limits drop a limit that was set before.
    let freed = crate::testing::pod("u-1", vec![], vec![container("cpu=1", "")]);
    real.tree.create_pod(&freed, None).unwrap();
    assert_eq!(real.value("cpu", &format!("{pod}/cpu.cfs_quota_us")).as_deref(), Some("-1"));
    assert_eq!(real.value("pids", &format!("{pod}/pids.max")).as_deref(), Some("max"));

    real.tree.update_qos(&[&p, &p]).unwrap();
    assert_eq!(real.value("cpu", "kubepods/burstable/cpu.shares").as_deref(), Some("512"));
    real.tree.update_qos(&[]).unwrap();
    assert_eq!(real.value("cpu", "kubepods/burstable/cpu.shares").as_deref(), Some("2"));

    real.tree.remove_pod(&p.uid).unwrap();
    real.tree.remove_pod(&p.uid).unwrap();
    assert!(real.dirs(pod).iter().all(|d| !d.exists()));
    assert_eq!(real.tree.pods().unwrap(), []);
    real.tree.remove_all().unwrap();
    assert!(real.dirs("").iter().all(|d| !d.exists()), "the common group goes too");
    real.tree.remove_all().unwrap();
}

#[test]
fn a_pods_limits_are_read_and_changed_while_it_runs() {
    let real = Real::new();
    let p = burstable("u-1");
    real.tree.create_pod(&p, None).unwrap();
    let limits =
        |shares, quota, memory| PodLimits { cpu_shares: shares, cpu_quota: quota, memory_limit: memory };
    assert_eq!(real.tree.pod_limits(&p, 0).unwrap(), limits(256, Some(50_000), Some(64 << 20)));
    real.tree.set_pod_memory(&p, 128 << 20).unwrap();
    real.tree.set_pod_quota(&p, 70_000).unwrap();
    real.tree.set_pod_shares(&p, 512).unwrap();
    assert_eq!(real.tree.pod_limits(&p, 0).unwrap(), limits(512, Some(70_000), Some(128 << 20)));
    assert!(real.tree.memory_usage(&real.tree.pod_cgroup(&p)).is_some_and(|bytes| bytes < 128 << 20));
    assert_eq!(real.tree.memory_usage("/kubepods/nothing"), None);
    let free = crate::testing::pod("u-2", vec![], vec![container("cpu=1", "")]);
    real.tree.create_pod(&free, None).unwrap();
    assert_eq!(real.tree.pod_limits(&free, 0).unwrap(), limits(1024, None, None));
    real.tree.remove_all().unwrap();
    assert!(real.tree.pod_limits(&p, 0).is_err());

    let dir = tempfile::tempdir().unwrap();
    let (tree, at) = fake_v2(dir.path(), &["cpu", "memory"]);
    tree.create_pod(&p, None).unwrap();
    assert_eq!(tree.pod_limits(&p, 256).unwrap(), limits(256, Some(50_000), Some(64 << 20)));
    tree.set_pod_shares(&p, 1024).unwrap();
    fs::write(at["pod"].join("memory.max"), "max\n").unwrap();
    fs::write(at["pod"].join("cpu.max"), "max 100000\n").unwrap();
    let found = tree.pod_limits(&p, 256).unwrap();
    assert!(found.cpu_shares > 256 && found.cpu_quota.is_none() && found.memory_limit.is_none(), "{found:?}");
    fs::write(at["pod"].join("memory.current"), "4096\n").unwrap();
    assert_eq!(tree.memory_usage(&tree.pod_cgroup(&p)), Some(4096));
}

#[test]
fn each_class_has_its_place() {
    let real = Real::new();
    let id = ContainerId::new("a".repeat(64)).unwrap();
    for (uid, p, dir) in [
        ("g", pod("g", vec![], vec![container("", "cpu=1,memory=8Mi")]), "kubepods/podg"),
        ("b", burstable("b"), "kubepods/burstable/podb"),
        ("e", pod("e", vec![], vec![container("", "")]), "kubepods/besteffort/pode"),
    ] {
        real.tree.create_pod(&p, None).unwrap();
        let want = format!("/{}/{dir}/{}", real.group, "a".repeat(64));
        assert_eq!(real.tree.container_cgroup(&p, &id), want);
        assert_eq!(real.tree.pod_procs_dirs(&p), real.dirs(dir), "{uid}");
    }
    let uids: Vec<String> = real.tree.pods().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(uids, ["b", "e", "g"]);
}

#[test]
fn removing_ends_nobody_and_killing_ends_all() {
    let mut real = Real::new();
    let p = burstable("u-2");
    real.tree.create_pod(&p, None).unwrap();
    let pod_dirs = real.tree.pod_procs_dirs(&p);
    // A container made a nested group for itself inside the group that the runtime made.
    let inner: Vec<PathBuf> = real.dirs("kubepods/burstable/podu-2/abc/nested");
    for dir in &inner {
        let parent = dir.parent().unwrap();
        for dir in [parent, dir] {
            fs::create_dir(dir).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if dir.join(file).exists() {
                    let above = dir.parent().unwrap().join(file);
                    fs::write(dir.join(file), fs::read_to_string(above).unwrap().trim()).unwrap();
                }
            }
        }
    }
    let pause = real.process_in(&pod_dirs, "exec sleep 600");
    let deep = real.process_in(&inner, "trap '' TERM; while :; do sleep 0.01; done");
    assert_eq!(real.tree.pause_pids(&p.uid).unwrap(), [pause]);
    let other = burstable("u-3");
    real.tree.create_pod(&other, None).unwrap();
    let bystander = real.process_in(&real.tree.pod_procs_dirs(&other), "exec sleep 600");
    for uid in [&p.uid, &other.uid] {
        real.tree.remove_pod_if_unused(uid).unwrap();
    }
    assert!(pod_dirs.iter().all(|d| d.is_dir()) && inner.iter().all(|d| d.is_dir()), "what is in use stays");

    let refused = real.tree.remove_pod(&p.uid).unwrap_err();
    assert!(matches!(&refused, Error::Busy { pids, .. } if pids.contains(&deep)), "{refused}");
    assert!(berth_sys::process::start_time(deep).unwrap().is_some());
    real.tree.remove_all().unwrap();
    assert!(pod_dirs.iter().all(|d| d.is_dir()), "what is in use stays");

    real.tree.kill_pod(&p.uid).unwrap();
    for pid in [pause, deep] {
        assert_eq!(berth_sys::process::start_time(pid).unwrap(), None, "{pid}");
    }
    real.tree.kill_pod(&p.uid).unwrap();
    real.tree.remove_pod_if_unused(&p.uid).unwrap();
    assert!(inner.iter().all(|d| d.is_dir()), "groups of containers are the runtime's to remove");
    real.tree.remove_pod(&p.uid).unwrap();
    assert!(pod_dirs.iter().all(|d| !d.exists()));
    real.tree.create_pod(&p, None).unwrap();
    real.tree.remove_pod_if_unused(&p.uid).unwrap();
    real.tree.remove_pod_if_unused(&p.uid).unwrap();
    assert!(pod_dirs.iter().all(|d| !d.exists()));
    assert!(berth_sys::process::start_time(bystander).unwrap().is_some());
    real.tree.kill_pod(&other.uid).unwrap();
    real.tree.remove_pod(&other.uid).unwrap();
}

#[test]
fn what_lies_in_one_hierarchy_only_is_found_and_removed() {
    let real = Real::new();
    for dir in real
        .dirs("kubepods/besteffort/podlost/x")
        .iter()
        .filter(|d| d.to_string_lossy().contains("unified") || d.to_string_lossy().contains("systemd"))
    {
        fs::create_dir_all(dir).unwrap();
    }
    let uid = PodUid::new("lost").unwrap();
    assert_eq!(real.tree.pods().unwrap(), std::slice::from_ref(&uid));
    real.tree.remove_pod(&uid).unwrap();
    assert_eq!(real.tree.pods().unwrap(), []);
}

#[test]
fn helpers_have_a_group_each() {
    let mut real = Real::new();
    let pid = real.process_in(&[], "exec sleep 600");
    for _ in 0..2 {
        real.tree.join_helper("logd", pid).unwrap();
    }
    let shown = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let want = format!(":/{}/helpers/logd", real.group);
    assert!(shown.lines().all(|l| l.ends_with(&want)), "{shown}");
    for bad in ["", "..", "a/b", "/a", ".", "a/"] {
        assert!(matches!(real.tree.join_helper(bad, pid), Err(Error::BadRoot { .. })), "{bad}");
    }
    assert!(matches!(real.tree.join_helper("logd", 4_194_305), Err(Error::Write { .. })));
}

#[test]
fn roots_stay_below_the_mount() {
    for bad in ["", "/", "/kubepods", "../kubepods", "a/../..", "."] {
        let mut roots = roots_named("x");
        roots.cgroup_root = bad.into();
        assert!(matches!(CgroupTree::open(&roots), Err(Error::BadRoot { .. })), "{bad}");
    }
    let mut roots = roots_named("x");
    roots.cgroup_mount = "/proc/self".into();
    assert!(matches!(CgroupTree::open(&roots), Err(Error::NoHierarchy { .. })));
}

/// Files of the hugetlb controller.
const HUGETLB: [&str; 3] = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max"];

/// Version 2 as far as a directory can imitate it: its files are made beforehand, and written values stay in
/// them.
fn fake_v2(dir: &Path, offered: &[&str]) -> (CgroupTree, BTreeMap<&'static str, PathBuf>) {
    let group = |relative: &str| {
        let path = dir.join(relative);
        fs::create_dir_all(&path).unwrap();
        let files =
            ["cgroup.subtree_control", "cgroup.procs", "cpu.weight", "cpu.max", "memory.max", "pids.max"];
        for file in files.into_iter().chain(HUGETLB) {
            fs::write(path.join(file), "").unwrap();
        }
        path
    };
    let mut at = BTreeMap::new();
    for (name, relative) in [
        ("mount", ""),
        ("above", "t"),
        ("root", "t/kubepods"),
        ("burstable", "t/kubepods/burstable"),
        ("besteffort", "t/kubepods/besteffort"),
        ("pod", "t/kubepods/burstable/podu-1"),
        ("helpers", "t/helpers"),
    ] {
        at.insert(name, group(relative));
    }
    let kind = Kind::V2(offered.iter().map(|c| (*c).to_owned()).collect());
    let tree = CgroupTree::with(vec![Hierarchy { mount: dir.into(), kind }], &roots_named("t")).unwrap();
    (tree, at)
}

#[test]
fn version_2_writes_weight_max_and_hands_controllers_on() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, at) = fake_v2(dir.path(), &["cpu", "memory", "pids", "hugetlb", "misc"]);
    tree.prepare().unwrap();
    let p = pod("u-1", vec![], vec![container("cpu=250m", "cpu=500m,memory=64Mi,hugepages-2Mi=2Mi")]);
    tree.create_pod(&p, Some(77)).unwrap();
    let value = |group: &str, file: &str| fs::read_to_string(at[group].join(file)).unwrap();
    for group in ["mount", "above", "root", "burstable", "besteffort", "pod"] {
        assert_eq!(value(group, "cgroup.subtree_control"), "+cpu +memory +pids +hugetlb", "{group}");
    }
    assert_eq!(value("helpers", "cgroup.subtree_control"), "");
    assert_eq!(value("pod", "cpu.weight"), "10");
    assert_eq!(value("pod", "cpu.max"), "50000 100000");
    assert_eq!(value("pod", "memory.max"), "67108864");
    assert_eq!(value("pod", "pids.max"), "77");
    assert_eq!(value("besteffort", "cpu.weight"), "1");
    tree.update_qos(&[&p]).unwrap();
    assert_eq!(value("burstable", "cpu.weight"), "10");
    assert_eq!(tree.pod_procs_dirs(&p), [at["pod"].join("pause")]);
    for (file, want) in HUGETLB.into_iter().zip(["2097152", "2097152", "0"]) {
        assert_eq!(value("pod", file), want, "{file}");
    }
    fs::write(at["burstable"].join("cpu.weight"), "").unwrap();
    let free = pod("u-1", vec![], vec![container("cpu=250m", "")]);
    tree.create_pod(&free, None).unwrap();
    assert_eq!((value("pod", "cpu.max"), value("pod", "memory.max")), ("max 100000".into(), "max".into()));
    assert_eq!(value("pod", "pids.max"), "max");
}

#[test]
fn all_pods_together_have_what_the_node_has_for_them() {
    let real = Real::new();
    let node = resources("cpu=2,memory=4Gi,ephemeral-storage=1Gi", "").requests;
    real.tree.limit_all(&node).unwrap();
    assert_eq!(real.value("cpu", "kubepods/cpu.shares").as_deref(), Some("2048"));
    assert_eq!(real.value("memory", "kubepods/memory.limit_in_bytes").as_deref(), Some("4294967296"));
    real.tree.limit_all(&ResourceList::default()).unwrap();
    assert_ne!(real.value("memory", "kubepods/memory.limit_in_bytes").as_deref(), Some("4294967296"));

    let dir = tempfile::tempdir().unwrap();
    let (tree, at) = fake_v2(dir.path(), &["cpu", "memory"]);
    tree.limit_all(&node).unwrap();
    let value = |file: &str| fs::read_to_string(at["root"].join(file)).unwrap();
    assert_eq!((value("cpu.weight"), value("memory.max")), ("79".into(), "4294967296".into()));
}

#[test]
fn version_2_without_a_controller_sets_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, at) = fake_v2(dir.path(), &["pids"]);
    tree.prepare().unwrap();
    tree.create_pod(&burstable("u-1"), Some(5)).unwrap();
    assert_eq!(fs::read_to_string(at["pod"].join("cpu.max")).unwrap(), "");
    assert_eq!(fs::read_to_string(at["pod"].join("pids.max")).unwrap(), "5");
}

/// The layout of version 2 on the kernel's own hierarchy, without controllers: the test may not enable the
/// machine's.
#[test]
fn version_2_holds_pause_beside_containers() {
    let mut real = Real::new();
    let h = real.tree.hierarchies.iter().find(|h| h.is_cgroup2()).expect("version 2 is mounted somewhere");
    let mount = h.mount.clone();
    let v2 = Hierarchy { mount: mount.clone(), kind: Kind::V2(BTreeSet::new()) };
    let tree = CgroupTree::with(vec![v2], &roots_named(&real.group)).unwrap();
    tree.prepare().unwrap();
    let p = burstable("u-4");
    tree.create_pod(&p, None).unwrap();
    let pod_dir = mount.join(&real.group).join("kubepods/burstable/podu-4");
    let pause = real.process_in(&tree.pod_procs_dirs(&p), "exec sleep 600");
    assert_eq!(tree.pause_pids(&p.uid).unwrap(), [pause]);
    assert_eq!(fs::read_to_string(pod_dir.join("cgroup.procs")).unwrap(), "");
    let container = pod_dir.join("abc");
    fs::create_dir(&container).unwrap();
    let app = real.process_in(&[container], "while :; do sleep 0.01; done");
    tree.kill_pod(&p.uid).unwrap();
    assert_eq!(berth_sys::process::start_time(app).unwrap(), None);
    tree.remove_pod(&p.uid).unwrap();
    tree.remove_all().unwrap();
    assert!(!mount.join(&real.group).exists());
}
