//! The cgroup of one command: what it and all its children are found, killed and gone by.

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Groups of commands are named so in every container.
const PREFIX: &str = "berth-exec-";

/// A hierarchy is not deeper than this where pods live.
const MAX_DEPTH: u32 = 8;

/// A v1 hierarchy gives no way to kill a group at once: so often it is gone through before the next try.
const ROUNDS: u32 = 8;

pub(super) struct Group {
    dir: PathBuf,
    tries: u32,
}

/// A group and where a process must be put to be in it and in the container's in every other hierarchy.
pub(super) struct Made {
    pub(super) group: Group,
    pub(super) procs: Vec<CString>,
}

/// Makes a command's group below one of the container's: in the hierarchy that can kill a group as a whole, else that
/// can freeze it. One is enough to find its processes; in the others they are the container's own.
pub(super) fn make(container: &[PathBuf], number: u64) -> io::Result<Made> {
    let has = |dir: &&PathBuf, file: &str| dir.join(file).exists();
    let chosen = container
        .iter()
        .find(|d| has(d, "cgroup.kill"))
        .or_else(|| container.iter().find(|d| has(d, "freezer.state")))
        // A new cpuset takes no process before it is given processors.
        .or_else(|| container.iter().find(|d| !has(d, "cpuset.cpus")))
        .ok_or_else(|| io::Error::other("none of the container's cgroups can hold a command's"))?;
    let dir = chosen.join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir(&dir)?;
    let procs = container
        .iter()
        .filter(|d| *d != chosen)
        .chain([&dir])
        .filter_map(|d| CString::new(d.join("cgroup.procs").as_os_str().as_bytes()).ok())
        .collect();
    Ok(Made { group: Group { dir, tries: 0 }, procs })
}

impl Group {
    /// Kills what is in it; some of it may need more tries.
    pub(super) fn kill(&self) {
        let whole = self.dir.join("cgroup.kill");
        if whole.exists() {
            if let Err(error) = fs::write(&whole, "1") {
                tracing::warn!(group = %self.dir.display(), %error, "cannot kill a command's cgroup");
            }
            return;
        }
        for round in 0..ROUNDS {
            // What forks faster than it is killed is stopped first.
            self.freeze(round >= ROUNDS / 2);
            let found = kill_each(&self.dir, 0);
            self.freeze(false);
            if found == 0 {
                return;
            }
        }
    }

    fn freeze(&self, frozen: bool) {
        let state = self.dir.join("freezer.state");
        if state.exists() {
            // The next round tries again.
            drop(fs::write(state, if frozen { "FROZEN" } else { "THAWED" }));
        }
    }

    /// Removes it, true once it is gone; false while something in it still lives.
    pub(super) fn remove(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        remove_tree(&self.dir, 0)
    }

    /// How long to wait before the next try: 1 ms, doubling to 1 s.
    pub(super) fn backoff(&self) -> Duration {
        Duration::from_millis(1 << self.tries.min(10))
    }
}

fn remove_tree(dir: &Path, depth: u32) -> bool {
    match fs::remove_dir(dir) {
        Ok(()) => return true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    // The command may have made groups of its own.
    let mut children = subdirectories(dir).peekable();
    if children.peek().is_none() || depth >= MAX_DEPTH {
        return false;
    }
    for child in children {
        remove_tree(&child, depth + 1);
    }
    fs::remove_dir(dir).is_ok()
}

fn subdirectories(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path())
}

fn processes(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?)).collect()
}

/// Kills one process, if it has not ended by itself.
pub(super) fn kill_process(process: BorrowedFd<'_>) {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => tracing::warn!(%error, "cannot kill a process of a command"),
    }
}

/// Kills the processes of a v1 group and those below, and gives how many there were. A pid that is still listed after
/// it was taken hold of cannot meanwhile have become another's outside of the group.
fn kill_each(dir: &Path, depth: u32) -> usize {
    let held: Vec<_> = processes(dir)
        .into_iter()
        .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect();
    let still = if held.is_empty() { Vec::new() } else { processes(dir) };
    for (_, fd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
        kill_process(fd.as_fd());
    }
    if depth >= MAX_DEPTH {
        return held.len();
    }
    held.len() + subdirectories(dir).map(|child| kill_each(&child, depth + 1)).sum::<usize>()
}

/// The groups that earlier helpers left below these directories.
pub(super) fn left_below(roots: &[PathBuf]) -> Vec<Group> {
    let mut found = Vec::new();
    for root in roots {
        find_left(root, 0, &mut found);
    }
    found
}

fn find_left(dir: &Path, depth: u32, found: &mut Vec<Group>) {
    if depth >= MAX_DEPTH {
        return;
    }
    for child in subdirectories(dir) {
        let named = child.file_name().is_some_and(|n| n.as_bytes().starts_with(PREFIX.as_bytes()));
        if named {
            found.push(Group { dir: child, tries: 0 });
        } else {
            find_left(&child, depth + 1, found);
        }
    }
}
