//! The cgroup hierarchies of this machine, derived from its mounts by a pure function.

use berth_sys::mount::Mount;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Mount point of the hierarchy's root.
    pub(crate) mount: PathBuf,
    /// Version and controllers of the hierarchy.
    pub(crate) kind: Kind,
}

/// Version and controllers of a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Version 1 with these controllers; the set is empty for a named hierarchy (`name=systemd`).
    V1(BTreeSet<String>),
    /// Version 2 as the only version, with the controllers that it offers; limits are set here.
    V2(BTreeSet<String>),
    /// Version 2 beside version 1: no limits are set here, but runtimes make their groups in it too.
    Hybrid,
}

impl Hierarchy {
    /// Whether limits of that controller are set in this hierarchy.
    pub(crate) fn has(&self, controller: &str) -> bool {
        match &self.kind {
            Kind::V1(c) | Kind::V2(c) => c.contains(controller),
            Kind::Hybrid => false,
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.kind, Kind::V2(_))
    }

    /// Whether the hierarchy has the files of version 2.
    pub(crate) fn is_cgroup2(&self) -> bool {
        matches!(self.kind, Kind::V2(_) | Kind::Hybrid)
    }
}

/// Options of a cgroup v1 mount that name no controller.
const NO_CONTROLLER: [&str; 9] = [
    "rw",
    "ro",
    "none",
    "noprefix",
    "clone_children",
    "xattr",
    "cpuset_v2_mode",
    "favordynmods",
    "nofavordynmods",
];

/// The hierarchies mounted at or below `below`. A hierarchy that is mounted twice counts once.
/// `v2_controllers` are the controllers that version 2 offers; they count only where no version 1 is mounted.
pub(crate) fn discover(mounts: &[Mount], below: &Path, v2_controllers: &BTreeSet<String>) -> Vec<Hierarchy> {
    let mut seen = BTreeSet::new();
    let ours: Vec<&Mount> = mounts
        .iter()
        .filter(|m| m.mount_point.starts_with(below) && matches!(m.fs_type.as_str(), "cgroup" | "cgroup2"))
        .filter(|m| seen.insert(m.device))
        .collect();
    let v1 = ours.iter().any(|m| m.fs_type == "cgroup" && !controllers(m).is_empty());
    ours.into_iter()
        .map(|m| Hierarchy {
            mount: m.mount_point.clone(),
            kind: match (m.fs_type.as_str(), v1) {
                ("cgroup", _) => Kind::V1(controllers(m)),
                (_, true) => Kind::Hybrid,
                (_, false) => Kind::V2(v2_controllers.clone()),
            },
        })
        .collect()
}

fn controllers(m: &Mount) -> BTreeSet<String> {
    m.super_options
        .split(',')
        .filter(|o| !NO_CONTROLLER.contains(o) && !o.contains('='))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, fs_type: &str, options: &str, minor: u32) -> Mount {
        Mount {
            id: 1,
            parent: 0,
            device: (0, minor),
            root: "/".into(),
            mount_point: point.into(),
            options: "rw".into(),
            shared: None,
            master: None,
            fs_type: fs_type.into(),
            source: "cgroup".into(),
            super_options: options.into(),
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn hybrid_has_v1_controllers_a_named_one_and_v2_without_limits() {
        let mounts = [
            mount("/sys/fs/cgroup", "tmpfs", "rw", 1),
            mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct", 2),
            mount("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,release_agent=/x,name=systemd", 3),
            mount("/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate", 4),
            mount("/elsewhere/memory", "cgroup", "rw,memory", 5),
            mount("/sys/fs/cgroup/again", "cgroup", "rw,cpu,cpuacct", 2),
        ];
        let found = discover(&mounts, Path::new("/sys/fs/cgroup"), &set(&["cpu"]));
        let kinds: Vec<Kind> = found.iter().map(|h| h.kind.clone()).collect();
        assert_eq!(kinds, [Kind::V1(set(&["cpu", "cpuacct"])), Kind::V1(set(&[])), Kind::Hybrid]);
        assert!(found[0].has("cpu") && !found[2].has("cpu"));
        assert!(found[2].is_cgroup2() && !found[2].is_v2() && !found[0].is_cgroup2());
    }

    #[test]
    fn v2_alone_carries_the_limits() {
        let mounts = [mount("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate,memory_recursiveprot", 1)];
        let found = discover(&mounts, Path::new("/sys/fs/cgroup"), &set(&["cpu", "memory"]));
        assert_eq!(found.len(), 1);
        assert!(found[0].is_v2() && found[0].has("memory") && !found[0].has("pids"));
        assert_eq!(discover(&mounts, Path::new("/other"), &set(&[])), []);
    }

    #[test]
    fn v2_beside_a_named_hierarchy_only_is_v2() {
        let mounts = [
            mount("/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd", 1),
            mount("/sys/fs/cgroup/unified", "cgroup2", "rw", 2),
        ];
        let found = discover(&mounts, Path::new("/sys/fs/cgroup"), &set(&["cpu"]));
        assert!(found[1].is_v2());
    }
}
