//! The processes that one process started: found by parent and session, and ended together.
//!
//! The OCI runtime makes the first process of an exec a session leader, so a child is found even after its
//! parent's end. A process that left the session and whose ancestors have all ended is not found; it stays as
//! a process of the container.

use crate::process;
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Maximum number of scans while new processes appear.
const ROUNDS: usize = 8;

/// Fields of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    session: u32,
    start: u64,
}

/// Parses the fields after the last `)`: the name may contain anything, including `)` and spaces.
fn parse(pid: u32, text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    let short = |at: usize| number(at).and_then(|n| u32::try_from(n).ok());
    Some(Stat { pid, parent: short(1)?, session: short(3)?, start: number(19)? })
}

/// All processes. A process that ends during the scan is left out.
fn all() -> Vec<Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// The processes of `all` that descend from one of `of`, or belong to the session that `root` leads.
fn members(root: u32, of: &BTreeMap<u32, u64>, all: &[Stat]) -> BTreeMap<u32, u64> {
    let mut found: BTreeSet<u32> = of.keys().copied().collect();
    loop {
        let before = found.len();
        found.extend(
            all.iter()
                .filter(|s| s.session == root || found.contains(&s.parent))
                .map(|s| s.pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            break;
        }
    }
    all.iter().filter(|s| found.contains(&s.pid)).map(|s| (s.pid, s.start)).collect()
}

/// Kills the process that had `pid` since `start`, and all processes that it started. Does nothing where the
/// process is gone. Blocks for scans of `/proc`.
pub(crate) fn end(pid: u32, start: u64) {
    // Stopped before killed: a stopped process starts no new one, and its pid is not reused until it is
    // reaped.
    if pid == 0 || start == 0 || !send(pid, start, Signal::STOP) {
        return;
    }
    let mut held = BTreeMap::from([(pid, start)]);
    for _ in 0..ROUNDS {
        let found = members(pid, &held, &all());
        let new: Vec<_> = found.into_iter().filter(|(pid, start)| held.get(pid) != Some(start)).collect();
        if new.is_empty() {
            break;
        }
        for (pid, start) in new {
            send(pid, start, Signal::STOP);
            held.insert(pid, start);
        }
    }
    for (pid, start) in held {
        send(pid, start, Signal::KILL);
    }
}

/// Whether the signal reached exactly this process.
fn send(pid: u32, start: u64, signal: Signal) -> bool {
    match process::open(pid, start) {
        Ok(Some(fd)) => fd.signal_number(signal.as_raw()).unwrap_or(false),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(pid, %error, "cannot signal a process of a command");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, parent: u32, session: u32) -> Stat {
        Stat { pid, parent, session, start: u64::from(pid) }
    }

    #[test]
    fn a_name_with_brackets_is_passed_over() {
        let text = "7 (a) (b)) S 3 7 5 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4321 1000 10";
        assert_eq!(parse(7, text), Some(Stat { pid: 7, parent: 3, session: 5, start: 4321 }));
        assert_eq!(parse(7, "7 (a"), None);
        assert_eq!(parse(7, "7 (a) S 3"), None);
    }

    #[test]
    fn descendants_and_the_session_are_found_and_nobody_else() {
        let all = [
            stat(1, 0, 1),
            stat(10, 1, 10),
            // A child with a session of its own, and its child.
            stat(12, 10, 12),
            stat(13, 12, 12),
            // An orphan that is still in the command's session.
            stat(14, 1, 10),
            // A child of this orphan.
            stat(15, 14, 15),
            stat(20, 1, 20),
        ];
        let found = members(10, &BTreeMap::from([(10, 10)]), &all);
        assert_eq!(found.into_keys().collect::<Vec<_>>(), [10, 12, 13, 14, 15]);
    }
}
