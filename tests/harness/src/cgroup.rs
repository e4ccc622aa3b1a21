//! Control groups in every cgroup hierarchy of the machine.

use crate::process::Process;
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const MOUNT: &str = "/sys/fs/cgroup";

/// Root directory of each hierarchy: one on a unified (version 2) machine; one per controller and `unified`
/// on others.
pub fn hierarchies() -> BTreeSet<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut roots = BTreeSet::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        if kind.starts_with("cgroup") && point.starts_with(MOUNT) {
            roots.insert(PathBuf::from(point));
        }
    }
    roots
}

/// Root of the version 2 hierarchy; on hybrid machines that hierarchy has no controllers.
pub fn v2() -> Option<PathBuf> {
    hierarchies().into_iter().find(|root| root.join("cgroup.controllers").exists())
}

/// All groups of this name and their descendants, in every hierarchy, deepest first.
pub fn groups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in hierarchies() {
        let top = root.join(name);
        if top.is_dir() {
            walk(&top, &mut found);
        }
    }
    found
}

/// `top` and all directories below, deepest first.
fn walk(top: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), found);
        }
    }
    found.push(top.to_path_buf());
}

/// The processes of one group.
pub fn processes(group: &Path) -> BTreeSet<Process> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).filter_map(Process::of).collect()
}

/// The processes of each container below this cgroup, by path of the container group, which is
/// named by 64 hexadecimal digits.
pub fn containers(name: &str) -> BTreeMap<PathBuf, BTreeSet<Process>> {
    let mut found: BTreeMap<PathBuf, BTreeSet<Process>> = BTreeMap::new();
    let Some(root) = hierarchies()
        .into_iter()
        .find(|h| h.join(name).is_dir() && h.ends_with("pids"))
        .or_else(|| hierarchies().into_iter().find(|h| h.join(name).is_dir()))
    else {
        return found;
    };
    let mut groups = Vec::new();
    walk(&root.join(name), &mut groups);
    for group in groups {
        let is_container = group
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.len() == 64 && n.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_container {
            let processes = processes(&group);
            found.insert(group, processes);
        }
    }
    found
}

/// The pause processes of the pods below this cgroup, by pod UID. A pause process is in the pod's own group,
/// or in `pause` below it where the pod's group may hold no process (version 2).
pub fn pauses(name: &str) -> BTreeMap<String, Process> {
    let mut found = BTreeMap::new();
    for group in groups(name) {
        let pod = if group.ends_with("pause") { group.parent() } else { Some(group.as_path()) };
        let uid = pod.and_then(Path::file_name).and_then(|n| n.to_str()?.strip_prefix("pod"));
        if let Some(uid) = uid {
            found.extend(processes(&group).into_iter().map(|p| (uid.to_owned(), p)));
        }
    }
    found
}

/// Lets the children of a version 2 group have all of its controllers.
fn hand_down(group: &Path) -> Result<()> {
    let all = fs::read_to_string(group.join("cgroup.controllers")).context("read the controllers")?;
    for controller in all.split_whitespace() {
        fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("hand {controller} of {} down", group.display()))?;
    }
    Ok(())
}

/// A new version 1 `cpuset` group takes no process before it has processors and memory nodes.
fn copy_cpuset(parent: &Path, group: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(text) = fs::read_to_string(parent.join(file)) {
            fs::write(group.join(file), text)
                .with_context(|| format!("set {file} of {}", group.display()))?;
        }
    }
    Ok(())
}

/// Makes a group in every hierarchy and returns their paths. The group can hold processes at once: a `cpuset`
/// group gets the processors and memory nodes of its parent.
///
/// # Errors
/// A group cannot be made.
pub fn make(name: &str) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for root in hierarchies() {
        let mut group = root.clone();
        for part in Path::new(name) {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
            if root == Path::new(MOUNT) {
                hand_down(&parent)?;
            } else if !root.join("cgroup.controllers").exists() {
                copy_cpuset(&parent, &group)?;
            }
        }
        made.push(group);
    }
    Ok(made)
}

/// Kills the processes in the groups of this name and removes the groups.
///
/// # Errors
/// A process cannot be ended or a group cannot be removed.
pub fn remove(name: &str) -> Result<()> {
    crate::wait::ok(&format!("the cgroups {name} are removed"), Duration::from_secs(20), || {
        for group in groups(name) {
            for process in processes(&group) {
                process.signal(nix::libc::SIGKILL)?;
            }
            match fs::remove_dir(&group) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(|| format!("remove {}", group.display())),
            }
        }
        Ok(())
    })
}
