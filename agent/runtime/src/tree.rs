//! The processes that one process started: found by parent and session, and ended together.
//!
//! The OCI runtime makes the first process of an exec a session leader, so a child is found even after its
//! parent's end. A process that left the session and whose ancestors have all ended is not found; it stays as
//! a process of the container.

use crate::process;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of scans while new processes appear.
const ROUNDS: usize = 8;

/// The fields of `/proc/<pid>/stat` that tell which processes belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    session: u32,
    start: u64,
}

impl Stat {
    /// `None` where the kernel's numbers are no process numbers.
    fn new(stat: &procfs::process::Stat) -> Option<Stat> {
        Some(Stat {
            pid: stat.pid.try_into().ok()?,
            parent: stat.ppid.try_into().ok()?,
            session: stat.session.try_into().ok()?,
            start: stat.starttime,
        })
    }
}

/// All processes. A process that ends during the scan is left out.
fn all() -> Vec<Stat> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    processes.filter_map(|process| Stat::new(&process.ok()?.stat().ok()?)).collect()
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
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    fn stat(pid: u32, parent: u32, session: u32) -> Stat {
        Stat { pid, parent, session, start: u64::from(pid) }
    }

    /// A command may name itself as it likes (`PR_SET_NAME`), also by bytes that are no UTF-8.
    #[test]
    fn a_process_is_found_whatever_its_name_is() {
        for name in ["plain", "(a) (b))", ") S 1 2 3", r"\377\376"] {
            let script = format!("printf '{name}' >/proc/$$/comm && echo named && read -r end");
            let mut shell = Command::new("/bin/sh");
            let mut child =
                shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let found = all().into_iter().find(|s| s.pid == child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(line, "named\n");
            assert_eq!(found.map(|s| s.parent), Some(std::process::id()), "{name}");
        }
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
