//! The cgroup tree of pods: `<root>[/burstable|/besteffort]/pod<uid>/<container id>` in every hierarchy.
//!
//! One type hides whether the machine has version 1, version 2 or both. The layout and the numbers are the kubelet's
//! with its `cgroupfs` driver. Runtimes make the containers' groups; everything above and the removal is ours.
//!
//! Invariants: nothing outside of the configured roots is ever written or removed. All operations but
//! [`CgroupTree::join_helper`] are idempotent, and can be taken up again after a death in the middle.

mod hierarchy;
mod limits;
mod remove;
#[cfg(test)]
mod tests;

use crate::Error;
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

/// Controllers that pods are limited or counted by.
const WANTED: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// The child of a pod's group that pause lies in, with cgroup v2 only: there, a group that hands controllers on to
/// its children may hold no process of its own.
const PAUSE_LEAF: &str = "pause";

/// The cgroups of this node.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    hierarchies: Vec<Hierarchy>,
    /// Relative to each hierarchy's mount.
    root: PathBuf,
    helpers: PathBuf,
}

impl CgroupTree {
    /// Finds the hierarchies mounted at or below `roots.cgroup_mount`. Changes nothing.
    ///
    /// # Errors
    /// None is mounted there, or a configured cgroup is no relative path.
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

    /// Makes the root of all pods, its two QoS groups and the helpers' group in every hierarchy. With cgroup v2 every
    /// group on the way hands its controllers on.
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

    /// Limits all pods together to what the node has for them, as the kubelet does (`enforceNodeAllocatable: [pods]`):
    /// their memory, and their weight against what else the machine runs. What `allocatable` does not name has no limit.
    ///
    /// # Errors
    /// The kernel refuses, version 1 also where pods use more memory than that already.
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

    /// Makes the pod's group in every hierarchy and sets its shares, quota, memory, huge pages and pids, as the
    /// kubelet computes them. `pids_limit` is the node's limit per pod.
    ///
    /// # Errors
    /// The kernel refuses; what was made stays for the next try or for [`CgroupTree::remove_pod`].
    pub fn create_pod(&self, pod: &Pod, pids_limit: Option<i64>) -> Result<(), Error> {
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

    /// Where pause belongs, one directory a hierarchy: its pid goes into their `cgroup.procs`.
    pub fn pod_procs_dirs(&self, pod: &Pod) -> Vec<PathBuf> {
        let relative = self.pod_dir(pod);
        self.hierarchies.iter().map(|h| pause_dir(h, &h.mount.join(&relative))).collect()
    }

    /// The processes that lie where pause does, by the first hierarchy: how a pause is found again whose pid was not
    /// written down. Nothing else is put there by the agent or by runtimes.
    ///
    /// # Errors
    /// The kernel refuses. A missing pod has none.
    pub fn pause_pids(&self, uid: &PodUid) -> Result<Vec<u32>, Error> {
        let Some(h) = self.hierarchies.first() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for dir in self.pod_dirs(h, uid) {
            pids.extend(procs(&pause_dir(h, &dir))?);
        }
        Ok(pids)
    }

    /// `linux.cgroupsPath` of a container for runtimes that manage cgroups by themselves (driver `cgroupfs`).
    pub fn container_cgroup(&self, pod: &Pod, id: &ContainerId) -> String {
        Path::new("/").join(self.pod_dir(pod)).join(id.as_str()).to_string_lossy().into_owned()
    }

    /// The directory of all pods in each hierarchy.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.mount.join(&self.root)).collect()
    }

    /// The directories of an OCI `cgroupsPath`, one for each hierarchy that has it.
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

    /// The pods that have a process, pause included.
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

    /// Sets the shares of the two QoS groups: what the burstable ones among `pods` (all that are not at their end)
    /// request together, and the least there is for best effort.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn update_qos(&self, pods: &[&Pod]) -> Result<(), Error> {
        let burstable = resources::burstable_shares(pods.iter().copied());
        for h in &self.hierarchies {
            limits::set_shares(h, &h.mount.join(self.class_dir(QosClass::Burstable)), burstable)?;
            limits::set_shares(h, &h.mount.join(self.class_dir(QosClass::BestEffort)), MIN_SHARES)?;
        }
        Ok(())
    }

    /// The directory of the helpers' group of that name, for what this process starts and what outlives it, in the
    /// hierarchy by which a service manager knows processes (version 2); the group is made where missing. None where this
    /// process is in no group of its own there: nothing is to be left then.
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

    /// Puts a process into the helpers' group of that name in every hierarchy; the group is made where missing.
    ///
    /// # Errors
    /// The name is no single path component, the process is gone, or the kernel refuses.
    pub fn join_helper(&self, name: &str, pid: u32) -> Result<(), Error> {
        let relative = self.helper(name)?;
        for h in &self.hierarchies {
            make(h, &relative, false)?;
            write(&h.mount.join(&relative).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
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

    /// Where the pod's group may be in that hierarchy: its class is not known any more when it is removed.
    fn pod_dirs(&self, h: &Hierarchy, uid: &PodUid) -> [PathBuf; 3] {
        [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort]
            .map(|class| h.mount.join(self.class_dir(class)).join(format!("pod{uid}")))
    }
}

fn pause_dir(h: &Hierarchy, pod_dir: &Path) -> PathBuf {
    if h.is_v2() { pod_dir.join(PAUSE_LEAF) } else { pod_dir.to_owned() }
}

/// Makes a group and those above it, so that it can hold processes; with `hand_on` its controllers go to its children.
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

/// Version 2: enables for the children of `dir` what is wanted and offered and not yet on.
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

/// Version 1: a new cpuset is empty and takes no process until it has cpus and memory nodes.
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

/// The names of the groups in `dir`; none where it is missing.
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

/// The processes in one group, not in those below; none where it is missing.
fn procs(dir: &Path) -> Result<Vec<u32>, Error> {
    let path = dir.join("cgroup.procs");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|l| l.trim().parse().ok()).filter(|pid| *pid != 0).collect()),
        // Gone, going, or a threaded group of version 2, whose processes its domain lists.
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ENODEV | EOPNOTSUPP)) => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}
