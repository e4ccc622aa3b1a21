//! Writes limits to cgroup files. No other module uses cgroups-rs.

use super::hierarchy::Hierarchy;
use crate::Error;
use berth_core::resources::cpu_weight;
use cgroups_rs::fs::{MaxValue, cpu::CpuController, memory::MemController, pid::PidController};
use std::{collections::BTreeMap, path::Path};

type Answer = Result<(), cgroups_rs::fs::error::Error>;

fn checked(what: &'static str, dir: &Path, value: impl ToString, answer: Answer) -> Result<(), Error> {
    answer.map_err(|e| Error::Limit { what, path: dir.into(), value: value.to_string(), source: Box::new(e) })
}

/// Sets the CPU shares; version 2 gets them converted to a weight.
pub(crate) fn set_shares(h: &Hierarchy, dir: &Path, shares: u64) -> Result<(), Error> {
    if !h.has("cpu") {
        return Ok(());
    }
    let value = if h.is_v2() { cpu_weight(shares) } else { shares };
    let cpu = CpuController::new(dir.into(), h.mount.clone(), h.is_v2());
    checked("cpu shares", dir, value, cpu.set_shares(value))
}

/// Sets the CPU quota in microseconds per period; `None` removes the limit.
pub(crate) fn set_quota(h: &Hierarchy, dir: &Path, quota: Option<i64>, period: u64) -> Result<(), Error> {
    if !h.has("cpu") {
        return Ok(());
    }
    if h.is_v2() {
        // One write sets both values; the library reads the old value first.
        let text = quota.map_or_else(|| "max".to_owned(), |q| q.to_string());
        return super::write(&dir.join("cpu.max"), &format!("{text} {period}"));
    }
    let cpu = CpuController::new(dir.into(), h.mount.clone(), false);
    checked("cpu period", dir, period, cpu.set_cfs_period(period))?;
    let quota = quota.unwrap_or(-1);
    checked("cpu quota", dir, quota, cpu.set_cfs_quota(quota))
}

/// Sets the memory limit in bytes; `None` removes the limit.
pub(crate) fn set_memory(h: &Hierarchy, dir: &Path, limit: Option<i64>) -> Result<(), Error> {
    if !h.has("memory") {
        return Ok(());
    }
    let value = limit.unwrap_or(-1);
    let memory = MemController::new(dir.into(), h.mount.clone(), h.is_v2());
    checked("memory limit", dir, value, memory.set_limit(value))
}

/// Sets the limits of huge pages in bytes by page size (`2MB`), for used and reserved pages. A size without a
/// limit in `limits` gets 0.
pub(crate) fn set_hugepages(h: &Hierarchy, dir: &Path, limits: &BTreeMap<String, i64>) -> Result<(), Error> {
    if !h.has("hugetlb") {
        return Ok(());
    }
    let ends = if h.is_v2() { [".rsvd.max", ".max"] } else { [".rsvd.limit_in_bytes", ".limit_in_bytes"] };
    let failed = |source| Error::Read { path: dir.into(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let size = name.to_str().and_then(|n| {
            let rest = n.strip_prefix("hugetlb.")?;
            ends.iter().find_map(|end| rest.strip_suffix(end))
        });
        if let Some(size) = size {
            let bytes = limits.get(size).copied().unwrap_or(0);
            super::write(&dir.join(&name), &bytes.to_string())?;
        }
    }
    Ok(())
}

/// Sets the limit of processes and threads; `None` removes the limit.
pub(crate) fn set_pids(h: &Hierarchy, dir: &Path, limit: Option<i64>) -> Result<(), Error> {
    if !h.has("pids") {
        return Ok(());
    }
    let value = limit.map_or(MaxValue::Max, MaxValue::Value);
    let pids = PidController::new(dir.into(), h.mount.clone(), h.is_v2());
    checked("pids limit", dir, value, pids.set_pid_max(value))
}
