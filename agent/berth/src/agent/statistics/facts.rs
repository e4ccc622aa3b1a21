//! Facts of the machine, read once, and those of the helpers.

use berth_core::{roots::Roots, time::Wall};
use berth_node::CgroupTree;
use berth_stats::{
    process,
    render::{cadvisor::Machine, summary::NodeFacts},
};
use berth_sys::clock;
use procfs::{Current as _, Meminfo};
use std::{collections::BTreeSet, fs, path::Path};

/// Facts of the machine.
pub(super) struct MachineFacts {
    node: String,
    pub(super) machine: Machine,
    pub(super) booted: Wall,
}

impl MachineFacts {
    pub(super) fn read(roots: &Roots) -> MachineFacts {
        let memory = Meminfo::current().ok();
        let line = |path: &Path| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let os = line("/etc/os-release".as_ref());
        let name = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
        let (cores, physical_cores, sockets) = processors("/sys/devices/system/cpu".as_ref());
        let machine = Machine {
            machine_id: line("/etc/machine-id".as_ref()),
            system_uuid: line("/sys/class/dmi/id/product_uuid".as_ref()),
            boot_id: line(&roots.boot_id),
            cores,
            physical_cores,
            sockets,
            memory: memory.as_ref().map_or(0, |m| m.mem_total),
            swap: memory.as_ref().map_or(0, |m| m.swap_total),
            kernel_version: line("/proc/sys/kernel/osrelease".as_ref()),
            os_version: name.trim_matches('"').to_owned(),
            read_at: clock::wall(),
        };
        MachineFacts { node: roots.node_name.to_string(), machine, booted: clock::booted() }
    }

    /// The facts of `/stats/summary`, with the number of processes now.
    pub(super) fn summary(&self) -> NodeFacts {
        NodeFacts {
            name: self.node.clone(),
            booted: self.booted,
            memory: self.machine.memory,
            swap: self.machine.swap,
            processes: processes(),
        }
    }
}

/// The most processes and threads of the machine, and how many it has.
fn processes() -> Option<(u64, u64)> {
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    // The fourth field: tasks that run, a slash, all tasks.
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let now = load.split_ascii_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((most, now))
}

/// Logical processors, cores and sockets.
fn processors(dir: &Path) -> (u64, u64, u64) {
    let (mut logical, mut cores, mut sockets) = (0, BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("cpu")).map(str::parse::<u32>);
        if !matches!(number, Some(Ok(_))) {
            continue;
        }
        logical += 1;
        let topology = |file: &str| fs::read_to_string(entry.path().join("topology").join(file)).ok();
        if let (Some(socket), Some(core)) = (topology("physical_package_id"), topology("core_id")) {
            cores.insert((socket.clone(), core));
            sockets.insert(socket);
        }
    }
    let count = |n: usize| u64::try_from(n).unwrap_or(0);
    (logical, count(cores.len()), count(sockets.len()))
}

/// The helpers that have processes, with their resident memory in bytes.
pub(super) fn helpers(cgroups: &CgroupTree) -> Vec<(&'static str, u64)> {
    let memory = |name| {
        let pids = cgroups.helper_pids(name);
        let bytes = pids.into_iter().filter_map(process::resident).fold(0, u64::saturating_add);
        (name, bytes)
    };
    ["logd", "dns", "probe-exec"].map(memory).into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}
