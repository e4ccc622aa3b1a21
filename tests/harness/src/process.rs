//! Processes, identified by pid and start time, because the kernel reuses pids.

use anyhow::{Context, Result};
use berth_sys::process::{PidFd, start_time};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process that has this pid now; `None` where no process or only a zombie has the pid.
    pub fn of(pid: u32) -> Option<Process> {
        start_time(pid).ok().flatten().map(|start| Process { pid, start })
    }

    /// Start time of the process with this pid, also of a process whose first thread has ended before the
    /// others.
    fn corpse(pid: u32) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
    }

    /// Whether the process still runs.
    pub fn alive(&self) -> bool {
        Process::of(self.pid) == Some(*self)
    }

    /// Sends a signal; does nothing where the process is gone.
    ///
    /// # Errors
    /// The kernel rejects the signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let Some(fd) = PidFd::open(self.pid).context("open a pidfd")? else { return Ok(()) };
        // The check comes after the pidfd is opened: from here on the descriptor names this very process.
        if self.alive() {
            fd.signal_number(signal).with_context(|| format!("send {signal} to {}", self.pid))?;
        }
        Ok(())
    }

    /// Sends SIGKILL and waits until the process is gone.
    ///
    /// # Errors
    /// The process cannot be ended.
    pub fn kill(&self) -> Result<()> {
        self.signal(nix::libc::SIGKILL)?;
        self.gone(Duration::from_secs(20))
    }

    /// Sends SIGTERM, and SIGKILL after `grace`.
    ///
    /// # Errors
    /// The process cannot be ended.
    pub fn terminate(&self, grace: Duration) -> Result<()> {
        self.signal(nix::libc::SIGTERM)?;
        if self.gone(grace).is_err() {
            return self.kill();
        }
        Ok(())
    }

    /// Waits until the process is gone with all threads. Until then the process keeps its files and file
    /// locks.
    ///
    /// # Errors
    /// The process still runs after `patience`.
    pub fn gone(&self, patience: Duration) -> Result<()> {
        if let Some(fd) = PidFd::open(self.pid).context("open a pidfd")?
            && (self.alive() || Process::corpse(self.pid) == Some(self.start))
        {
            let ended = fd.poll_exited(patience).context("wait for a process")?;
            anyhow::ensure!(ended, "process {} does not end within {} s", self.pid, patience.as_secs());
        }
        crate::wait::until(&format!("process {} is gone", self.pid), patience, || !self.alive())
    }

    /// Command line; empty for an ended process and for a kernel thread.
    pub fn command_line(&self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let mut words: Vec<String> =
            bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        words.pop();
        words
    }

    /// User and system CPU time of the process and its reaped children, in clock ticks (100 a second on
    /// Linux).
    pub fn cpu_ticks(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let rest = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        // utime, stime, cutime, cstime are fields 14 to 17; `rest` begins with field 3.
        rest.split_ascii_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum()
    }

    /// CPU time of the process without its children, to the nanosecond; zero for an ended process.
    pub fn cpu(&self) -> Duration {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).unwrap_or(0));
        let spent = nix::time::clock_getcpuclockid(pid).and_then(nix::time::clock_gettime);
        spent.map(Duration::from).unwrap_or_default()
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Resident memory in bytes that is no page of a file: the program's text comes and goes with its use.
    pub fn rss_anon(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default();
        line.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

/// All processes with their command lines, without kernel threads.
pub fn all() -> BTreeMap<Process, Vec<String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Some(process) = Process::of(pid) else { continue };
        let words = process.command_line();
        if !words.is_empty() {
            found.insert(process, words);
        }
    }
    found
}

/// Processes with an argument that is a path below `dir`.
pub fn with_path_below(dir: &Path) -> BTreeMap<Process, Vec<String>> {
    let me = std::process::id();
    let mut found = all();
    found.retain(|p, words| {
        p.pid != me
            && words.iter().skip(1).any(|w| {
                let path = w.split_once('=').map_or(w.as_str(), |(_, value)| value);
                let path = path.strip_prefix("unix://").unwrap_or(path);
                Path::new(path).starts_with(dir)
            })
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_time_and_memory() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.alive() && me.cpu() > Duration::ZERO && me.rss() > 0);
        assert!(!Process { start: me.start + 1, ..me }.alive());
        assert!(me.command_line().len() == std::env::args().len());
    }
}
