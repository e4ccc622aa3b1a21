//! What the agent and its node hold at a moment.

use crate::cluster::{AGENT, Cluster};
use anyhow::{Context, Result, ensure};
use std::{fmt, fs};

/// Growth of the memory that is none: what allocators and caches keep.
const SLACK_MIB: u64 = 24;

/// Counts, and the agent itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    agent: u32,
    panics: usize,
    pub(super) descriptors: usize,
    threads: usize,
    memory_mib: u64,
    /// Processes of the cluster.
    processes: usize,
    /// FIFOs of commands.
    fifos: usize,
    cgroups: usize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { descriptors, threads, memory_mib, processes, fifos, cgroups, .. } = self;
        write!(
            f,
            "{memory_mib} MiB, {descriptors} descriptors, {threads} threads, {processes} processes, {fifos} FIFOs, {cgroups} cgroups"
        )
    }
}

impl Count {
    /// What there is now.
    ///
    /// # Errors
    /// The agent does not run.
    pub(super) fn now(cluster: &Cluster) -> Result<Count> {
        let agent = cluster.daemon(AGENT).context("the agent does not run any more")?;
        let of = |what: &str| format!("/proc/{}/{what}", agent.pid);
        let entries = |what| fs::read_dir(of(what)).with_context(|| format!("cannot read {}", of(what)));
        let number = |command: &str| -> Result<usize> {
            let said = cluster.run(&["sh", "-c", &format!("{command} 2>/dev/null | wc -l")])?;
            said.trim().parse().with_context(|| format!("cannot count: {said}"))
        };
        let log =
            fs::read_to_string(cluster.file(&format!("logs/{AGENT}.log"))).context("cannot read the log")?;
        Ok(Count {
            agent: agent.pid,
            panics: log.matches("panicked at").count(),
            descriptors: entries("fd")?.count(),
            threads: entries("task")?.count(),
            memory_mib: agent.rss() / (1 << 20),
            processes: number("ls -d /proc/[0-9]*")?,
            fifos: number("find /run/berth -type p")?,
            cgroups: cluster.cgroups(),
        })
    }

    /// Whether there is no more than this.
    ///
    /// # Errors
    /// There is more, or the agent is another one.
    pub(super) fn is_reached(&self, cluster: &Cluster) -> Result<()> {
        let now = Count::now(cluster)?;
        ensure!(now.agent == self.agent, "the agent was started again");
        ensure!(now.panics == self.panics, "the agent panicked");
        let pairs = [
            (now.descriptors, self.descriptors),
            (now.processes, self.processes),
            (now.fifos, self.fifos),
            (now.cgroups, self.cgroups),
        ];
        ensure!(pairs.iter().all(|(now, before)| now <= before), "{now} instead of {self}");
        ensure!(now.memory_mib <= self.memory_mib + SLACK_MIB, "{now} instead of {self}");
        Ok(())
    }
}
