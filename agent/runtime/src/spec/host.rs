//! The builder's facts of the node, as plain data: the same input gives the same spec on any machine.
//! [`HostFacts::read`] is the only function of this module that reads the machine.

use berth_core::{model::CAPABILITIES, resources::CgroupFacts};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Directories below `/dev` whose device nodes belong to other mounts or programs and are not passed on.
const FOREIGN_DIRECTORIES: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Facts of the node that affect a spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The capabilities of a privileged container, which `ALL` also stands for: the runtime's effective
    /// capabilities (`CapEff`), in the kernel's order, with `CAP_`.
    pub capabilities: Vec<String>,
    /// Device nodes below `/dev` of a privileged container, in path order, without `pts`, `shm`, `fd`,
    /// `mqueue` and `console`.
    pub devices: Vec<LinuxDevice>,
    /// The `thermal_throttle` directories of the present CPUs; masked like the fixed paths.
    pub thermal_throttle: Vec<String>,
    /// Page sizes of the hugetlb controller (`2MB`, `1GB`); empty where the controller is missing.
    pub hugepage_sizes: Vec<String>,
    /// Whether the memory controller counts swap (`memory.memsw.limit_in_bytes`, `memory.swap.max`).
    pub swap_accounting: bool,
    /// Whether `/sys/fs/cgroup` is the unified hierarchy (cgroup v2 alone).
    pub unified_cgroups: bool,
    /// `nsdelegate` and `memory_recursiveprot`, if `/sys/fs/cgroup` is mounted with them. A container in the
    /// host's cgroup namespace mounts the same superblock, and without the options it would remove them.
    pub cgroup_mount_options: Vec<String>,
    /// Memory of the node in bytes, for the OOM score of Burstable containers.
    pub memory_capacity: i64,
    /// The lowest `oom_score_adj` that the runtime may set: without `CAP_SYS_RESOURCE`, its own score.
    pub oom_score_floor: Option<i32>,
    /// Soft and hard limit of open files for containers, set where the agent has raised its own limit. With
    /// `None`, containers inherit the shim's limits.
    #[serde(default)]
    pub open_files: Option<(u64, u64)>,
}

/// A part of the node could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct HostFactsError {
    /// The path that was read.
    pub path: PathBuf,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostFactsError {
    let path = path.to_owned();
    |source| HostFactsError { path, source }
}

fn text(path: &Path) -> Result<String, HostFactsError> {
    fs::read_to_string(path).map_err(at(path))
}

fn malformed(path: &Path) -> HostFactsError {
    at(path)(io::ErrorKind::InvalidData.into())
}

impl HostFacts {
    /// The facts that containers' limits depend on.
    pub fn cgroup_facts(&self) -> CgroupFacts<'_> {
        CgroupFacts {
            v2: self.unified_cgroups,
            swap: self.swap_accounting,
            hugepage_sizes: &self.hugepage_sizes,
        }
    }

    /// The current devices below `dev`, which is `/dev`: devices come and go while the agent runs.
    pub fn devices(dev: &Path) -> Result<Vec<LinuxDevice>, HostFactsError> {
        let mut devices = Vec::new();
        add_devices(dev, dev, 0, &mut devices)?;
        Ok(devices)
    }

    /// Reads the node: `proc`, `sys` and `dev` are `/proc`, `/sys` and `/dev`, and `cgroup_mount` is the
    /// mount point of the hierarchies. Called at each start and whenever devices may have appeared; does not
    /// wait.
    pub fn read(
        proc: &Path,
        sys: &Path,
        dev: &Path,
        cgroup_mount: &Path,
    ) -> Result<HostFacts, HostFactsError> {
        let status = proc.join("self/status");
        let capabilities = effective(&text(&status)?).ok_or_else(|| malformed(&status))?;
        let meminfo = proc.join("meminfo");
        let memory_capacity = memory(&text(&meminfo)?).ok_or_else(|| malformed(&meminfo))?;
        let score = proc.join("self/oom_score_adj");
        let own_score = text(&score)?.trim().parse::<i32>().map_err(|_number| malformed(&score))?;
        let restricted = !capabilities.iter().any(|c| c == "CAP_SYS_RESOURCE");

        let unified_cgroups = cgroup_mount.join("cgroup.controllers").exists();
        let (hugetlb, swap_accounting) = if unified_cgroups {
            let controllers = text(&cgroup_mount.join("cgroup.controllers"))?;
            let own = text(&proc.join("self/cgroup"))?;
            let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default().to_owned();
            // The root group has no such file; any group below it shows whether the kernel counts swap.
            let counts = |dir: PathBuf| dir.join("memory.swap.max").exists();
            let below = || fs::read_dir(cgroup_mount).into_iter().flatten().flatten().map(|e| e.path());
            let swap = counts(cgroup_mount.join(own)) || below().any(counts);
            (controllers.split_whitespace().any(|c| c == "hugetlb"), swap)
        } else {
            let file = cgroup_mount.join("memory/memory.memsw.limit_in_bytes");
            (cgroup_mount.join("hugetlb").is_dir(), file.exists())
        };
        Ok(HostFacts {
            capabilities,
            devices: HostFacts::devices(dev)?,
            thermal_throttle: thermal_throttle(&sys.join("devices/system/cpu")),
            hugepage_sizes: if hugetlb { page_sizes(&sys.join("kernel/mm/hugepages")) } else { Vec::new() },
            swap_accounting,
            unified_cgroups,
            cgroup_mount_options: preserved_options(&text(&proc.join("self/mountinfo"))?, cgroup_mount),
            memory_capacity,
            oom_score_floor: restricted.then_some(own_score),
            open_files: None,
        })
    }
}

fn effective(status: &str) -> Option<Vec<String>> {
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let held = CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
    Some(held.map(|(_, name)| format!("CAP_{name}")).collect())
}

fn memory(meminfo: &str) -> Option<i64> {
    let kib = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

/// Names in a directory, sorted; empty where the directory is missing.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn thermal_throttle(cpus: &Path) -> Vec<String> {
    let mut numbers: Vec<u32> =
        names(cpus).iter().filter_map(|n| n.strip_prefix("cpu")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
        .into_iter()
        .filter(|n| cpus.join(format!("cpu{n}/thermal_throttle")).exists())
        .map(|n| format!("/sys/devices/system/cpu/cpu{n}/thermal_throttle"))
        .collect()
}

/// Page sizes in the controller's notation: `hugepages-2048kB` is `2MB`.
fn page_sizes(dir: &Path) -> Vec<String> {
    let size = |name: &String| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let (value, unit) = match kib {
            _ if kib >= 1 << 20 => (kib >> 20, "GB"),
            _ if kib >= 1 << 10 => (kib >> 10, "MB"),
            _ => (kib, "KB"),
        };
        Some(format!("{value}{unit}"))
    };
    names(dir).iter().filter_map(size).collect()
}

fn preserved_options(mountinfo: &str, cgroup_mount: &Path) -> Vec<String> {
    let line = mountinfo
        .lines()
        .rfind(|l| l.split(' ').nth(4).is_some_and(|point| Path::new(point) == cgroup_mount))
        .unwrap_or_default();
    let options = line.rsplit(' ').next().unwrap_or_default();
    options
        .split(',')
        .filter(|o| matches!(*o, "nsdelegate" | "memory_recursiveprot"))
        .map(str::to_owned)
        .collect()
}

/// Maximum depth below `/dev` that is read: `bus/usb/001/001` has depth 4.
const MAX_DEPTH: usize = 8;

fn add_devices(
    root: &Path,
    dir: &Path,
    depth: usize,
    found: &mut Vec<LinuxDevice>,
) -> Result<(), HostFactsError> {
    for name in names(dir) {
        let path = dir.join(&name);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // A device can disappear during the read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(at(&path)(e)),
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            if depth < MAX_DEPTH && !FOREIGN_DIRECTORIES.contains(&name.as_str()) {
                add_devices(root, &path, depth + 1, found)?;
            }
            continue;
        }
        let typ = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => LinuxDeviceType::C,
            (_, true) => LinuxDeviceType::B,
            _ => continue,
        };
        if name == "console" {
            continue;
        }
        let inside = path.strip_prefix(root).unwrap_or(&path);
        let device = LinuxDeviceBuilder::default()
            .path(Path::new("/dev").join(inside))
            .typ(typ)
            .major(i64::from(rustix::fs::major(meta.rdev())))
            .minor(i64::from(rustix::fs::minor(meta.rdev())))
            .file_mode(meta.mode() & 0o7777)
            .uid(meta.uid())
            .gid(meta.gid())
            .build()
            .map_err(|_incomplete| malformed(&path))?;
        found.push(device);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_small_node_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let cgroup = root.join("cgroup");
        write(root.join("proc/self/status"), "Name:\tx\nCapEff:\t0000000000000401\n");
        write(root.join("proc/meminfo"), "MemTotal:       1024 kB\nMemFree: 1 kB\n");
        write(root.join("proc/self/oom_score_adj"), "-5\n");
        write(root.join("proc/self/cgroup"), "0::/own\n");
        let mounted = format!("1 2 0:3 / {} rw - cgroup2 cgroup rw,nsdelegate,other\n", cgroup.display());
        write(root.join("proc/self/mountinfo"), &mounted);
        write(cgroup.join("cgroup.controllers"), "cpu hugetlb\n");
        write(cgroup.join("own/memory.swap.max"), "max\n");
        fs::create_dir_all(root.join("sys/kernel/mm/hugepages/hugepages-2048kB")).unwrap();
        for cpu in ["cpu10", "cpu2", "cpufreq"] {
            fs::create_dir_all(root.join("sys/devices/system/cpu").join(cpu).join("thermal_throttle"))
                .unwrap();
        }
        fs::create_dir_all(root.join("dev/pts")).unwrap();
        write(root.join("dev/plain"), "");
        let read = || HostFacts::read(&root.join("proc"), &root.join("sys"), &root.join("dev"), &cgroup);
        let facts = read().unwrap();
        assert_eq!(facts.capabilities, ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        assert_eq!((facts.memory_capacity, facts.oom_score_floor), (1 << 20, Some(-5)));
        assert!(facts.unified_cgroups && facts.swap_accounting && facts.devices.is_empty());
        assert_eq!(facts.hugepage_sizes, ["2MB"]);
        assert_eq!(facts.cgroup_mount_options, ["nsdelegate"]);
        assert_eq!(
            facts.thermal_throttle,
            ["cpu2", "cpu10"].map(|c| format!("/sys/devices/system/cpu/{c}/thermal_throttle"))
        );
        write(root.join("proc/meminfo"), "nothing\n");
        assert_eq!(read().unwrap_err().path, root.join("proc/meminfo"));
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = HostFacts::read(
            Path::new("/proc"),
            Path::new("/sys"),
            Path::new("/dev"),
            Path::new("/sys/fs/cgroup"),
        )
        .unwrap();
        assert!(facts.memory_capacity > 1 << 20);
        let null = facts.devices.iter().find(|d| d.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.major(), null.minor(), null.typ()), (1, 3, LinuxDeviceType::C));
        assert!(facts.devices.iter().all(|d| !d.path().starts_with("/dev/pts")));
    }
}
