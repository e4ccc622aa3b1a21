//! Removes groups, children first, and kills the processes left in them.

use super::{CgroupTree, children, hierarchy::Hierarchy, pause_dir, procs, write};
use crate::Error;
use berth_core::{ids::PodUid, time::Boottime};
use berth_sys::{
    clock::boottime,
    process::{PidFd, Signal},
};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Total time that the removal of a pod's groups waits for dying processes to leave them.
pub(super) const REMOVE_WAIT: Duration = Duration::from_millis(500);
/// First pause between two tries of that wait; each further pause is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// Rounds of killing. Version 1 freezes a process that forks as fast as it is killed; further rounds are for
/// stragglers.
const KILL_ROUNDS: u32 = 5;
/// Time that one round waits for the killed processes to end.
const KILL_WAIT: Duration = Duration::from_millis(500);

impl CgroupTree {
    /// Removes the pod's groups and those of its containers from every hierarchy and every QoS class. Missing
    /// groups are no error. Kills no process: [`CgroupTree::kill_pod`] does. Waits at most half a second.
    ///
    /// # Errors
    /// [`Error::Busy`] where processes are left in a group.
    pub fn remove_pod(&self, uid: &PodUid) -> Result<(), Error> {
        let mut first = None;
        let until = boottime() + REMOVE_WAIT;
        for h in &self.hierarchies {
            for dir in self.pod_dirs(h, uid) {
                // The other groups are removed even if this one cannot be.
                if let Err(e) = remove_tree(&dir, until) {
                    first.get_or_insert(e);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Removes the groups that the agent made for the pod (the pod's own, and pause's) where they are unused.
    /// The runtime removes the groups of containers; while one of those exists the pod's own group stays,
    /// which is no error.
    ///
    /// # Errors
    /// The kernel refuses for another reason than use.
    pub fn remove_pod_if_unused(&self, uid: &PodUid) -> Result<(), Error> {
        for h in &self.hierarchies {
            for dir in self.pod_dirs(h, uid) {
                for group in [pause_dir(h, &dir), dir] {
                    remove_one(&group).or_else(in_use_is_fine)?;
                }
            }
        }
        Ok(())
    }

    /// Kills all processes left in the pod's groups with SIGKILL and waits until they are gone. Called at the
    /// end of a pod, after its containers were stopped in order. Blocks for at most 2.5 s.
    ///
    /// # Errors
    /// [`Error::Busy`] where a process does not die, or the kernel refuses.
    pub fn kill_pod(&self, uid: &PodUid) -> Result<(), Error> {
        for _ in 0..KILL_ROUNDS {
            if self.kill_round(uid)? == 0 {
                return Ok(());
            }
        }
        let left = self.pod_processes(uid)?;
        match left.into_iter().next() {
            None => Ok(()),
            Some((path, pids)) => Err(Error::Busy { path, pids: pids.into_iter().take(8).collect() }),
        }
    }

    /// Kills the processes that the pod's groups hold now; returns their number.
    fn kill_round(&self, uid: &PodUid) -> Result<usize, Error> {
        let dirs: Vec<(&Hierarchy, PathBuf)> = self
            .hierarchies
            .iter()
            .flat_map(|h| self.pod_dirs(h, uid).map(|dir| (h, dir)))
            .filter(|(_, dir)| dir.is_dir())
            .collect();
        for (_, dir) in dirs.iter().filter(|(h, _)| h.is_cgroup2()) {
            // Kernels before 5.14 do not have the file; the loop below kills the same processes one by one.
            let _at_once = write(&dir.join("cgroup.kill"), "1");
        }
        let frozen = Frozen::new(dirs.iter().filter(|(h, _)| h.has("freezer") && !h.is_v2()).map(|(_, d)| d));
        let mut waiting = Vec::new();
        let pids: BTreeSet<u32> = self.pod_processes(uid)?.into_iter().flat_map(|(_, pids)| pids).collect();
        for pid in &pids {
            let failed = |source| Error::Kill { pid: *pid, source };
            let Some(process) = PidFd::open(*pid).map_err(failed)? else { continue };
            // The kernel may have reused the pid between the listing and the open of the pidfd.
            if self.pod_processes(uid)?.iter().any(|(_, pids)| pids.contains(pid)) {
                process.signal(Signal::KILL).map_err(failed)?;
                waiting.push(process);
            }
        }
        // Frozen processes die when they thaw.
        drop(frozen);
        let end = boottime() + KILL_WAIT;
        for process in waiting {
            let left = end.since(boottime());
            process.poll_exited(left).map_err(|source| Error::Kill { pid: process.pid(), source })?;
        }
        Ok(pids.len())
    }

    /// All processes in the pod's groups and below, by group.
    fn pod_processes(&self, uid: &PodUid) -> Result<Vec<(PathBuf, Vec<u32>)>, Error> {
        let mut found = Vec::new();
        for h in &self.hierarchies {
            for dir in self.pod_dirs(h, uid) {
                for group in descendants(&dir)? {
                    let pids = procs(&group)?;
                    if !pids.is_empty() {
                        found.push((group, pids));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Removes all groups of this node that hold no process, from the bottom up: the pods' groups, the QoS
    /// groups, the root, the helpers' groups, and the group above the two roots that both share, if any.
    /// Groups in use stay.
    ///
    /// # Errors
    /// The kernel refuses for another reason than use.
    pub fn remove_all(&self) -> Result<(), Error> {
        let common: PathBuf = self
            .root
            .components()
            .zip(self.helpers.components())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a)
            .collect();
        let mut first = None;
        for h in &self.hierarchies {
            for dir in [&self.root, &self.helpers] {
                let mut dir = h.mount.join(dir);
                let stop = h.mount.join(&common);
                if let Err(e) = remove_unused(&dir) {
                    first.get_or_insert(e);
                }
                // Only this node makes groups between the shared one and this root.
                while !common.as_os_str().is_empty() && dir.pop() && dir.starts_with(&stop) {
                    if let Err(e) = remove_one(&dir).or_else(in_use_is_fine) {
                        first.get_or_insert(e);
                    }
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// Version 1 groups whose processes are frozen; the drop thaws them.
struct Frozen(Vec<PathBuf>);

impl Frozen {
    fn new<'a>(dirs: impl Iterator<Item = &'a PathBuf>) -> Frozen {
        // A group that cannot be frozen is killed too, perhaps in more rounds.
        Frozen(dirs.map(|d| d.join("freezer.state")).filter(|f| write(f, "FROZEN").is_ok()).collect())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for file in &self.0 {
            // The group may be gone by now.
            let _gone = write(file, "THAWED");
        }
    }
}

/// A group and all groups below it, parents first. Groups that disappear meanwhile are left out.
pub(super) fn descendants(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(group) = all.get(next).cloned() {
        all.extend(children(&group)?.into_iter().map(|name| group.join(name)));
        next += 1;
    }
    Ok(all)
}

/// Removes a group and all groups below it; waits until `until` for dying processes to leave.
pub(super) fn remove_tree(dir: &Path, until: Boottime) -> Result<(), Error> {
    for group in descendants(dir)?.iter().rev() {
        let mut wait = FIRST_WAIT;
        loop {
            let left = until.since(boottime());
            match remove_one(group) {
                Ok(()) => break,
                Err(Error::Remove { source, .. }) if busy(&source) && !left.is_zero() => {
                    thread::sleep(wait.min(left));
                    wait *= 2;
                }
                Err(Error::Remove { source, path }) if busy(&source) => {
                    let pids = procs(&path)?;
                    // A new group appeared below; no process is in this one.
                    return Err(if pids.is_empty() {
                        Error::Remove { path, source }
                    } else {
                        Error::Busy { path, pids: pids.into_iter().take(8).collect() }
                    });
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Removes every unused group at or below `dir`.
fn remove_unused(dir: &Path) -> Result<(), Error> {
    for group in descendants(dir)?.iter().rev() {
        remove_one(group).or_else(in_use_is_fine)?;
    }
    Ok(())
}

fn remove_one(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove { path: dir.into(), source }),
    }
}

fn in_use_is_fine(e: Error) -> Result<(), Error> {
    match e {
        Error::Remove { source, .. } if busy(&source) => Ok(()),
        e => Err(e),
    }
}

fn busy(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}
