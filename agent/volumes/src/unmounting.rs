//! Unmounts of file systems that have a server, which may be away: each by a process of its own
//! ([`berth_sys::mount::Unmounting`]). The mount is out of sight at once. The pod counts as unmounted once the kernel has
//! stored what is unwritten, so that whoever has the volume next finds it; until then each try tells which server is
//! waited for. A restarted agent finds no mount and waits no more.

use crate::Error;
use berth_sys::mount::{Mount, Unmounting, begin_unmount_beneath, mounts, unmount_beneath};
use rustix::fd::OwnedFd;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a try waits for the servers.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether a mount is out of sight, while its unmount goes on.
const LOOK: Duration = Duration::from_millis(20);

/// Types of file systems whose last unmount asks a server, or a daemon.
const WITH_SERVER: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse", "fuseblk"];

/// The unmounts that have not ended, by the pod's directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unmountings(Arc<Mutex<HashMap<PathBuf, Vec<Begun>>>>);

/// An unmount whose mount is out of sight.
#[derive(Debug)]
struct Begun {
    unmounting: Unmounting,
    path: PathBuf,
    source: String,
}

/// Those of one pod.
#[derive(Debug)]
pub(crate) struct OfPod<'a> {
    all: &'a Unmountings,
    pod_dir: &'a Path,
}

impl Unmountings {
    /// Those of the pod with that directory.
    pub(crate) fn of<'a>(&'a self, pod_dir: &'a Path) -> OfPod<'a> {
        OfPod { all: self, pod_dir }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<Begun>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfPod<'_> {
    /// Unmounts what is mounted at `rel` below the pod's directory. What has a server may still be written to it
    /// afterwards: see [`OfPod::finish`].
    ///
    /// # Errors
    /// The kernel refuses, or has not even begun.
    pub(crate) fn unmount(&self, root: &OwnedFd, rel: &Path, mount: &Mount) -> berth_sys::Result<bool> {
        let fs_type = mount.fs_type.as_str();
        if !WITH_SERVER.contains(&fs_type) && !fs_type.starts_with("fuse.") {
            return unmount_beneath(root, rel);
        }
        let Some(unmounting) = begin_unmount_beneath(root, rel)? else { return Ok(false) };
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(unmounted) = unmounting.wait(LOOK)? {
                return Ok(unmounted);
            }
            // By its id: a look at its path may ask the server.
            let in_sight = mounts()?.iter().any(|m| m.id == mount.id);
            if !in_sight || Instant::now() > end {
                let source = mount.source.to_string_lossy().into_owned();
                let begun = Begun { unmounting, path: mount.mount_point.clone(), source };
                self.all.held().entry(self.pod_dir.to_owned()).or_default().push(begun);
                return Ok(true);
            }
        }
    }

    /// Waits for the unmounts that have not ended.
    ///
    /// # Errors
    /// One has not ended in time: [`Error::Unmounting`]; or has failed.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let end = Instant::now() + PATIENCE;
        let mut waits = self.all.held().remove(self.pod_dir).unwrap_or_default();
        while let Some(begun) = waits.pop() {
            let waited = begun.unmounting.wait(end.saturating_duration_since(Instant::now()));
            let failed = match waited {
                Ok(Some(_)) => continue,
                Ok(None) => {
                    let error =
                        Error::Unmounting { path: begun.path.clone(), source_name: begun.source.clone() };
                    waits.push(begun);
                    error
                }
                Err(e) => Error::io("unmount", begun.path)(std::io::Error::other(e)),
            };
            if !waits.is_empty() {
                self.all.held().insert(self.pod_dir.to_owned(), waits);
            }
            return Err(failed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{os, testing::Node};
    use std::fs;

    #[test]
    fn only_what_has_a_server_is_unmounted_by_a_process() {
        let node = Node::new();
        let dir = node.path().join("pod");
        let root = |name: &str| {
            fs::create_dir_all(dir.join(name)).unwrap();
            berth_sys::mount::tmpfs(&dir.join(name), None, 0o755).unwrap();
            let found = mounts().unwrap().into_iter().find(|m| m.mount_point.ends_with(name)).unwrap();
            (os::open_dir(&dir).unwrap(), found)
        };
        let unmountings = Unmountings::default();
        for fs_type in ["tmpfs", "nfs4", "fuse.sshfs"] {
            let name = format!("volume-{fs_type}");
            let (root, found) = root(&name);
            let mount = Mount { fs_type: fs_type.into(), ..found };
            let of = unmountings.of(&dir);
            assert!(of.unmount(&root, Path::new(&name), &mount).unwrap(), "{fs_type}");
            of.finish().unwrap();
            assert!(!mounts().unwrap().iter().any(|m| m.id == mount.id), "{fs_type}");
            assert!(!of.unmount(&root, Path::new(&name), &mount).unwrap(), "{fs_type}");
        }
        assert!(unmountings.held().is_empty());
    }
}
