//! Facts of the node that show in container specs.

use berth_runtime::spec::HostFacts;
use std::{fs, path::Path};

/// Capability names by number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn effective() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(i, _)| mask >> i & 1 == 1)
        .map(|(_, n)| (*n).to_owned())
        .collect()
}

fn memory_bytes() -> i64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Page sizes as the hugetlb controller spells them.
fn hugepage_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut sizes: Vec<u64> = entries
        .filter_map(|e| {
            e.ok()?.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes
        .into_iter()
        .map(|kib| match kib {
            k if k >= 1 << 20 => format!("{}GB", k >> 20),
            k if k >= 1 << 10 => format!("{}MB", k >> 10),
            k => format!("{k}KB"),
        })
        .collect()
}

fn thermal_throttle() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let mut paths: Vec<String> = entries
        .filter_map(|e| {
            let path = e.ok()?.path().join("thermal_throttle");
            path.exists().then(|| path.to_string_lossy().into_owned())
        })
        .collect();
    paths.sort();
    paths
}

/// Reads the facts. `hugetlb` says whether the hugetlb controller is there, `swap` whether memory cgroups count swap,
/// `unified` whether the hierarchy is cgroup v2 alone.
pub fn host_facts(cgroup_mount: &Path, swap: bool, unified: bool) -> HostFacts {
    let hugetlb = cgroup_mount.join("hugetlb").exists()
        || fs::read_to_string(cgroup_mount.join("cgroup.controllers")).is_ok_and(|c| c.contains("hugetlb"));
    let capabilities = effective();
    let free = capabilities.iter().any(|c| c == "CAP_SYS_RESOURCE");
    let own_score = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|s| s.trim().parse().ok());
    HostFacts {
        capabilities,
        devices: Vec::new(),
        thermal_throttle: thermal_throttle(),
        hugepage_sizes: if hugetlb { hugepage_sizes() } else { Vec::new() },
        swap_accounting: swap,
        unified_cgroups: unified,
        cgroup_mount_options: Vec::new(),
        memory_capacity: memory_bytes(),
        oom_score_floor: if free { None } else { own_score },
    }
}
