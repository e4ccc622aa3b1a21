//! The cgroup tree of pods: `<root>[/burstable|/besteffort]/pod<uid>/<container id>` in every hierarchy.
//!
//! [`CgroupTree`] hides whether the machine has cgroup version 1, version 2 or both. Layout and limits are
//! those of the kubelet with its `cgroupfs` driver. The runtime makes the groups of containers; the agent
//! makes every group above them and removes all of them.
//!
//! Invariants: no operation writes or removes anything outside the configured roots. All operations but
//! [`CgroupTree::join_helper`] are idempotent, so a restarted agent can repeat an interrupted call.

mod hierarchy;
mod limits;
mod remove;
mod resize;
#[cfg(test)]
mod tests;

use crate::{Error, metrics::timed};
use berth_core::{
    ids::{ContainerId, PodUid},
    model::{Pod, QosClass, ResourceList},
    resources::{self, Amounts, CPU_PERIOD_US, MIN_SHARES},
    roots::Roots,
};
use hierarchy::{Hierarchy, Kind, discover};
use std::{
    collections::BTreeSet,
    io,
    path::{Component, Path, PathBuf},
};

/// Controllers that limit pods or count what pods use.
const WANTED: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// Child of a pod's group that holds the pause process, with cgroup v2 only: a v2 group that enables
/// controllers for its children may hold no process of its own.
const PAUSE_LEAF: &str = "pause";

/// The cgroups of this node.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    hierarchies: Vec<Hierarchy>,
    /// Path of the pods' root, relative to each hierarchy's mount.
    root: PathBuf,
    helpers: PathBuf,
}

impl CgroupTree {
    /// Finds the hierarchies mounted at or below `roots.cgroup_mount`. Changes nothing.
    ///
    /// # Errors
    /// No hierarchy is mounted there, or a configured cgroup is not a relative path.
    pub fn open(roots: &Roots) -> Result<Self, Error> {
        let mounts = berth_sys::mount::mounts().map_err(|source| Error::Discover { source })?;
        let v2 = mounts
            .iter()
            .filter(|m| m.fs_type == "cgroup2" && m.mount_point.starts_with(&roots.cgroup_mount))
            .find_map(|m| std::fs::read_to_string(m.mount_point.join("cgroup.controllers")).ok());
        let offered: BTreeSet<String> =
            v2.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
        let hierarchies = discover(&mounts, &roots.cgroup_mount, &offered);
        if hierarchies.is_empty() {
            return Err(Error::NoHierarchy { path: roots.cgroup_mount.clone() });
        }
        Self::with(hierarchies, roots)
    }

    fn with(hierarchies: Vec<Hierarchy>, roots: &Roots) -> Result<Self, Error> {
        let relative = |path: &Path| {
            let path: PathBuf = path.components().filter(|c| !matches!(c, Component::CurDir)).collect();
            if path.as_os_str().is_empty() || path.components().any(|c| !matches!(c, Component::Normal(_))) {
                return Err(Error::BadRoot { path });
            }
            Ok(path)
        };
        Ok(CgroupTree {
            hierarchies,
            root: relative(&roots.cgroup_root)?,
            helpers: relative(&roots.cgroup_helpers)?,
        })
    }

    /// Makes the root of all pods, its two QoS groups and the helpers' group in every hierarchy. With cgroup
    /// v2 every group on the path enables its controllers for its children.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn prepare(&self) -> Result<(), Error> {
        for h in &self.hierarchies {
            for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                make(h, &self.class_dir(class), true)?;
            }
            make(h, &self.helpers, false)?;
            limits::set_shares(h, &h.mount.join(self.class_dir(QosClass::BestEffort)), MIN_SHARES)?;
        }
        Ok(())
    }

    /// Limits all pods together to the node's allocatable resources, as the kubelet does
    /// (`enforceNodeAllocatable: [pods]`): their memory, and their CPU weight against the machine's other
    /// processes. A resource that `allocatable` does not name has no limit.
    ///
    /// # Errors
    /// The kernel refuses. Version 1 also refuses a memory limit below what pods use already.
    pub fn limit_all(&self, allocatable: &ResourceList) -> Result<(), Error> {
        let node = Amounts::of(allocatable);
        for h in &self.hierarchies {
            let dir = h.mount.join(&self.root);
            if node.cpu_millis > 0 {
                limits::set_shares(h, &dir, resources::cpu_shares(node.cpu_millis))?;
            }
            limits::set_memory(h, &dir, Some(node.memory_bytes).filter(|bytes| *bytes > 0))?;
        }
        Ok(())
    }

    /// Makes the pod's group in every hierarchy and sets its shares, quota, memory, huge pages and pids, as
    /// the kubelet computes them. `pids_limit` is the node's limit per pod.
    ///
    /// # Errors
    /// The kernel refuses; the groups made so far stay for the next try or for [`CgroupTree::remove_pod`].
    pub fn create_pod(&self, pod: &Pod, pids_limit: Option<i64>) -> Result<(), Error> {
        timed("create", || self.make_pod(pod, pids_limit))
    }

    fn make_pod(&self, pod: &Pod, pids_limit: Option<i64>) -> Result<(), Error> {
        let values = resources::pod_cgroup(pod, pids_limit);
        let relative = self.pod_dir(pod);
        for h in &self.hierarchies {
            make(h, &relative, true)?;
            let dir = h.mount.join(&relative);
            limits::set_shares(h, &dir, values.cpu_shares)?;
            limits::set_quota(h, &dir, values.cpu_quota, CPU_PERIOD_US)?;
            limits::set_memory(h, &dir, values.memory_limit)?;
            limits::set_hugepages(h, &dir, &values.hugepages)?;
            limits::set_pids(h, &dir, values.pids_limit)?;
            if h.is_v2() {
                make(h, &relative.join(PAUSE_LEAF), false)?;
            }
        }
        Ok(())
    }

    /// Directories of the pause process, one per hierarchy: its pid is written to their `cgroup.procs`.
    pub fn pod_procs_dirs(&self, pod: &Pod) -> Vec<PathBuf> {
        let relative = self.pod_dir(pod);
        self.hierarchies.iter().map(|h| pause_dir(h, &h.mount.join(&relative))).collect()
    }

    /// The processes in the pause process' group, read from the first hierarchy. The executor finds a
    /// pause process this way when its pid was not stored. Neither the agent nor a runtime puts another
    /// process there.
    ///
    /// # Errors
    /// The kernel refuses. A pod without a group has no processes, which is no error.
    pub fn pause_pids(&self, uid: &PodUid) -> Result<Vec<u32>, Error> {
        let Some(h) = self.hierarchies.first() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for dir in self.pod_dirs(h, uid) {
            pids.extend(procs(&pause_dir(h, &dir))?);
        }
        Ok(pids)
    }

    /// `linux.cgroupsPath` of a container, for runtimes that manage cgroups themselves (driver `cgroupfs`).
    pub fn container_cgroup(&self, pod: &Pod, id: &ContainerId) -> String {
        Path::new("/").join(self.pod_dir(pod)).join(id.as_str()).to_string_lossy().into_owned()
    }

    /// The path of a pod's group, relative to each hierarchy's mount.
    pub fn pod_path(&self, pod: &Pod) -> PathBuf {
        self.pod_dir(pod)
    }

    /// The path of the group that holds the pause process, relative to each hierarchy's mount. Only version 2 has
    /// that group.
    pub fn pause_path(&self, pod: &Pod) -> PathBuf {
        self.pod_dir(pod).join(PAUSE_LEAF)
    }

    /// The paths of the groups above those of pods: of all pods, and of the two lower classes.
    pub fn paths_above(&self) -> [PathBuf; 3] {
        [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort].map(|class| self.class_dir(class))
    }

    /// Mount point of the hierarchy with that controller, and whether it is of version 2.
    pub fn mount_of(&self, controller: &str) -> Option<(&Path, bool)> {
        let h = self.hierarchies.iter().find(|h| h.has(controller))?;
        Some((&h.mount, h.is_v2()))
    }

    /// The directory of all pods in each hierarchy.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.mount.join(&self.root)).collect()
    }

    /// The directories of an OCI `cgroupsPath`, one for each hierarchy in which the group exists.
    pub fn dirs_of(&self, cgroups_path: &str) -> Vec<PathBuf> {
        let relative = cgroups_path.trim_start_matches('/');
        self.hierarchies.iter().map(|h| h.mount.join(relative)).filter(|d| d.is_dir()).collect()
    }

    /// The pods that have a group in any hierarchy.
    ///
    /// # Errors
    /// A group cannot be listed.
    pub fn pods(&self) -> Result<Vec<PodUid>, Error> {
        let mut found = BTreeSet::new();
        for h in &self.hierarchies {
            for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                for name in children(&h.mount.join(self.class_dir(class)))? {
                    let uid = name.to_str().and_then(|n| n.strip_prefix("pod"));
                    if let Some(Ok(uid)) = uid.map(PodUid::new) {
                        found.insert(uid);
                    }
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The pods that have a process; the pause process counts.
    ///
    /// # Errors
    /// A group cannot be read.
    pub fn pods_with_processes(&self) -> Result<Vec<PodUid>, Error> {
        let Some(h) = self.hierarchies.first() else { return Ok(Vec::new()) };
        let mut busy = Vec::new();
        for uid in self.pods()? {
            let mut dirs = self.pod_dirs(h, &uid).to_vec();
            while let Some(dir) = dirs.pop() {
                if !procs(&dir)?.is_empty() {
                    busy.push(uid);
                    break;
                }
                dirs.extend(children(&dir)?.into_iter().map(|name| dir.join(name)));
            }
        }
        Ok(busy)
    }

    /// Sets the shares of the two QoS groups: for burstable the sum of what the burstable pods among `pods`
    /// request, for best effort the minimum. `pods` holds all pods that have not ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn update_qos(&self, pods: &[&Pod]) -> Result<(), Error> {
        let burstable = resources::burstable_shares(pods.iter().copied());
        timed("update", || {
            for h in &self.hierarchies {
                limits::set_shares(h, &h.mount.join(self.class_dir(QosClass::Burstable)), burstable)?;
                limits::set_shares(h, &h.mount.join(self.class_dir(QosClass::BestEffort)), MIN_SHARES)?;
            }
            Ok(())
        })
    }

    /// Directory of the helpers' group `name` in the hierarchy that a service manager uses to track processes
    /// (version 2). The group holds helpers that this process starts and that outlive it; a missing group is
    /// made. `None` where this process itself is in no group of its own in that hierarchy: no group may be
    /// left behind there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn helper_group(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let own = read(Path::new("/proc/self/cgroup"))?;
        let root = own.lines().find_map(|l| l.strip_prefix("0::")).is_none_or(|path| path == "/");
        let Some(h) = self.hierarchies.iter().find(|h| h.is_cgroup2()).filter(|_| !root) else {
            return Ok(None);
        };
        let relative = self.helper(name)?;
        make(h, &relative, false)?;
        Ok(Some(h.mount.join(relative)))
    }

    /// Puts a process into the helpers' group `name` in every hierarchy; a missing group is made.
    ///
    /// # Errors
    /// The name is not a single path component, the process is gone, or the kernel refuses.
    pub fn join_helper(&self, name: &str, pid: u32) -> Result<(), Error> {
        let relative = self.helper(name)?;
        for h in &self.hierarchies {
            make(h, &relative, false)?;
            write(&h.mount.join(&relative).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// The processes of the helpers' group `name`; none where the group cannot be read.
    pub fn helper_pids(&self, name: &str) -> Vec<u32> {
        let relative = self.helpers.join(name);
        let in_group = |h: &Hierarchy| procs(&h.mount.join(&relative)).unwrap_or_default();
        self.hierarchies.iter().map(in_group).find(|pids| !pids.is_empty()).unwrap_or_default()
    }

    fn helper(&self, name: &str) -> Result<PathBuf, Error> {
        let relative = self.helpers.join(name);
        let plain = Path::new(name).components().collect::<Vec<_>>();
        if !matches!(plain.as_slice(), [Component::Normal(_)]) || name.contains('/') {
            return Err(Error::BadRoot { path: relative });
        }
        Ok(relative)
    }

    /// `<root>`, `<root>/burstable` or `<root>/besteffort`.
    fn class_dir(&self, class: QosClass) -> PathBuf {
        match class {
            QosClass::Guaranteed => self.root.clone(),
            QosClass::Burstable => self.root.join("burstable"),
            QosClass::BestEffort => self.root.join("besteffort"),
        }
    }

    fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.class_dir(pod.qos()).join(format!("pod{}", pod.uid))
    }

    /// The directories that the pod's group may have in that hierarchy. All QoS classes are listed, because
    /// the class of a pod is no longer known when its group is removed.
    fn pod_dirs(&self, h: &Hierarchy, uid: &PodUid) -> [PathBuf; 3] {
        [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort]
            .map(|class| h.mount.join(self.class_dir(class)).join(format!("pod{uid}")))
    }
}

fn pause_dir(h: &Hierarchy, pod_dir: &Path) -> PathBuf {
    if h.is_v2() { pod_dir.join(PAUSE_LEAF) } else { pod_dir.to_owned() }
}

/// Makes a group and its missing parents, ready to hold processes. With `hand_on` the group enables its
/// controllers for its children.
fn make(h: &Hierarchy, relative: &Path, hand_on: bool) -> Result<(), Error> {
    let mut dir = h.mount.clone();
    let mut parts = relative.components().peekable();
    while let Some(part) = parts.next() {
        if let Kind::V2(offered) = &h.kind {
            hand_controllers_on(&dir, offered)?;
        }
        let parent = dir.clone();
        dir.push(part);
        match std::fs::create_dir(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Create { path: dir, source }),
        }
        if h.has("cpuset") && !h.is_v2() {
            inherit_cpuset(&parent, &dir)?;
        }
        if let (None, true, Kind::V2(offered)) = (parts.peek(), hand_on, &h.kind) {
            hand_controllers_on(&dir, offered)?;
        }
    }
    Ok(())
}

/// Version 2: enables for the children of `dir` each wanted controller that is offered and not yet enabled.
fn hand_controllers_on(dir: &Path, offered: &BTreeSet<String>) -> Result<(), Error> {
    let file = dir.join("cgroup.subtree_control");
    let on = read(&file)?;
    let on: BTreeSet<&str> = on.split_ascii_whitespace().collect();
    let missing: Vec<String> = WANTED
        .iter()
        .filter(|c| offered.contains(**c) && !on.contains(**c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    write(&file, &missing.join(" "))
}

/// Version 1: copies the parent's cpus and memory nodes. A new cpuset has none, and takes no process until
/// both are set.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(&dir.join(file))?.trim().is_empty() {
            write(&dir.join(file), read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// Writes a cgroup file; the file must be there.
fn write(path: &Path, value: &str) -> Result<(), Error> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut f| f.write_all(value.as_bytes()))
        .map_err(|source| Error::Write { path: path.into(), value: value.into(), source })
}

/// The names of the groups in `dir`; empty where `dir` is missing.
fn children(dir: &Path) -> Result<Vec<std::ffi::OsString>, Error> {
    let failed = |source: io::Error| Error::Read { path: dir.into(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|t| t.is_dir()) => names.push(entry.file_name()),
            Ok(_) => {}
            // The directory was removed while it was read.
            Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ENODEV)) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(names)
}

const ENOENT: i32 = 2;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;

/// The processes in one group, without those of its children; empty where the group is missing.
fn procs(dir: &Path) -> Result<Vec<u32>, Error> {
    let path = dir.join("cgroup.procs");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|l| l.trim().parse().ok()).filter(|pid| *pid != 0).collect()),
        // The group is gone, is being removed, or is a threaded group of version 2, whose processes its
        // domain lists.
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ENODEV | EOPNOTSUPP)) => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}
