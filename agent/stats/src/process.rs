//! What a process uses itself: the families `process_*` of every client of Prometheus.

use crate::text::{Exposition, Value};
use berth_core::{
    metrics::FamilyType::{Counter, Gauge},
    time::Wall,
};

/// Ticks of `/proc/<pid>/stat` a second (`USER_HZ`).
const TICKS: u64 = 100;

/// Nanoseconds of a tick.
const TICK_NS: u64 = 1_000_000_000 / TICKS;

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// CPU time in nanoseconds.
    pub cpu: u64,
    /// Bytes of virtual memory.
    pub virtual_memory: u64,
    /// Bytes of resident memory.
    pub resident_memory: u64,
    /// Start of the process in nanoseconds since boot.
    pub started: u64,
    /// Open descriptors, and the limit.
    pub descriptors: Option<(u64, u64)>,
}

/// Parses `/proc/<pid>/stat`; `page`: bytes of a page.
pub fn parse_stat(text: &str, page: u64) -> Option<ProcessUse> {
    // The name is in parentheses and may hold any character.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first field of `rest` is the third of the file.
    let number = |n: usize| fields.get(n.checked_sub(3)?)?.parse::<u64>().ok();
    Some(ProcessUse {
        cpu: number(14)?.saturating_add(number(15)?).saturating_mul(TICK_NS),
        started: number(22)?.saturating_mul(TICK_NS),
        virtual_memory: number(23)?,
        resident_memory: number(24)?.saturating_mul(page),
        descriptors: None,
    })
}

/// Bytes of a page.
fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// Reads what this process uses.
pub fn read_own() -> Option<ProcessUse> {
    let mut usage = parse_stat(&std::fs::read_to_string("/proc/self/stat").ok()?, page_size())?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usage.descriptors = std::fs::read_dir("/proc/self/fd")
        .ok()
        // The directory that is being read counts itself.
        .map(|open| (u64::try_from(open.count().saturating_sub(1)).unwrap_or(u64::MAX), limit));
    Some(usage)
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(page_size()))
}

/// Writes the families `process_*`; `booted`: when the machine booted.
pub fn render(text: &mut Exposition, usage: &ProcessUse, booted: Wall) {
    for (name, help, kind, value) in [
        ("process_cpu_seconds_total", "CPU time of the agent, in seconds.", Counter, Value::Nanos(usage.cpu)),
        (
            "process_resident_memory_bytes",
            "Resident memory of the agent.",
            Gauge,
            usage.resident_memory.into(),
        ),
        ("process_virtual_memory_bytes", "Virtual memory of the agent.", Gauge, usage.virtual_memory.into()),
    ] {
        text.family(name, help, kind);
        text.sample("", &[], value, None);
    }
    start_time(text, usage, booted);
    if let Some((open, limit)) = usage.descriptors {
        text.family("process_open_fds", "Open descriptors of the agent.", Gauge);
        text.sample("", &[], open.into(), None);
        text.family("process_max_fds", "Most descriptors of the agent.", Gauge);
        text.sample("", &[], limit.into(), None);
    }
}

/// Writes `process_start_time_seconds`; `booted`: when the machine booted.
pub fn start_time(text: &mut Exposition, usage: &ProcessUse, booted: Wall) {
    let started = u64::try_from(booted.0).unwrap_or(0).saturating_add(usage.started);
    text.family("process_start_time_seconds", "Start of the agent, in seconds since 1970.", Gauge);
    text.sample("", &[], Value::Nanos(started / TICK_NS * TICK_NS), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_any_name() {
        let text = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 150 50 9 9 20 0 1 0 300 4096 2 0";
        let want = ProcessUse {
            cpu: 2_000_000_000,
            started: 3_000_000_000,
            virtual_memory: 4096,
            resident_memory: 8192,
            descriptors: None,
        };
        assert_eq!(parse_stat(text, 4096), Some(want));
        assert_eq!(parse_stat("7 (a) S 1", 4096), None);
        assert_eq!(parse_stat("", 4096), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = read_own().unwrap();
        assert!(usage.resident_memory > 1 << 20 && usage.virtual_memory > usage.resident_memory);
        assert!(usage.descriptors.is_some_and(|(open, limit)| open > 2 && open < limit));
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
        let mut text = Exposition::default();
        render(&mut text, &usage, Wall(0));
        let text = String::from_utf8(text.finish()).unwrap();
        assert_eq!(text.matches("# TYPE process_").count(), 6);
    }
}
