//! What the builder must know of the node, as plain data: the same input gives the same spec on any machine.

use oci_spec::runtime::LinuxDevice;
use serde::{Deserialize, Serialize};

/// Facts of the node that show in a spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The capabilities that a privileged container gets and that `ALL` stands for: the runtime's own effective ones
    /// (`CapEff`), in the kernel's order, with `CAP_`.
    pub capabilities: Vec<String>,
    /// Device nodes below `/dev` that a privileged container gets, in path order without `pts`, `shm`, `fd`,
    /// `mqueue` and `console`.
    pub devices: Vec<LinuxDevice>,
    /// The `thermal_throttle` directories of the CPUs that are there; masked like the fixed paths.
    pub thermal_throttle: Vec<String>,
    /// Page sizes of the hugetlb controller (`2MB`, `1GB`), empty where the controller is missing.
    pub hugepage_sizes: Vec<String>,
    /// Whether the memory controller counts swap (`memory.memsw.limit_in_bytes`, `memory.swap.max`).
    pub swap_accounting: bool,
    /// Whether `/sys/fs/cgroup` is the unified hierarchy (cgroup v2 alone).
    pub unified_cgroups: bool,
    /// `nsdelegate` and `memory_recursiveprot` where `/sys/fs/cgroup` is mounted with them: a container in the host's
    /// cgroup namespace mounts the same superblock and would strip them.
    pub cgroup_mount_options: Vec<String>,
    /// Bytes of memory, for the OOM score of Burstable containers.
    pub memory_capacity: i64,
    /// The lowest `oom_score_adj` that the runtime may set: its own where it lacks `CAP_SYS_RESOURCE`.
    pub oom_score_floor: Option<i32>,
}
