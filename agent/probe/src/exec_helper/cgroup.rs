//! The cgroup of one command, by which the command and all its children are found and killed.

use rustix::{
    fs::{XattrFlags, getxattr, setxattr},
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

/// Prefix of the names of commands' cgroups.
const PREFIX: &str = "berth-exec-";

/// Prefix of the names of sessions' cgroups.
const SESSION_PREFIX: &str = "berth-session-";

/// Attribute of a session's cgroup whose command has ended by itself: what the command left running stays, as
/// processes of the container. The attribute lasts as long as the cgroup, so that a later helper knows it.
const STAYS: &str = "trusted.berth.stays";

/// The deepest level of pods' cgroups in a hierarchy.
const MAX_DEPTH: u32 = 8;

/// Rounds of killing before the next try. A v1 hierarchy cannot kill a cgroup at once.
const ROUNDS: u32 = 8;

pub(super) struct CommandCgroup {
    dir: PathBuf,
    tries: u32,
    /// What is left in it after the command's end stays until it ends by itself.
    keeps: bool,
    /// Whether the cgroup says so to later helpers.
    marked: bool,
}

/// A new cgroup, and the `cgroup.procs` files that put a process into it and into the container's
/// cgroup in every other hierarchy.
pub(super) struct Created {
    pub(super) cgroup: CommandCgroup,
    pub(super) procs: Vec<CString>,
}

/// Creates a command's cgroup below one of the container's: in the hierarchy that can kill a cgroup
/// as a whole, or else in one that can freeze it. One hierarchy is enough to find the processes; in
/// the others they are in the container's own cgroup.
pub(super) fn create(container: &[PathBuf], number: u64, session: bool) -> io::Result<Created> {
    let has = |dir: &&PathBuf, file: &str| dir.join(file).exists();
    let chosen = container
        .iter()
        .find(|d| has(d, "cgroup.kill"))
        .or_else(|| container.iter().find(|d| has(d, "freezer.state")))
        // A new cpuset accepts no process before it has processors.
        .or_else(|| container.iter().find(|d| !has(d, "cpuset.cpus")))
        .ok_or_else(|| io::Error::other("none of the container's cgroups can hold a command's"))?;
    let prefix = if session { SESSION_PREFIX } else { PREFIX };
    let dir = chosen.join(format!("{prefix}{}-{number}", std::process::id()));
    fs::create_dir(&dir)?;
    let procs = container
        .iter()
        .filter(|d| *d != chosen)
        .chain([&dir])
        .filter_map(|d| CString::new(d.join("cgroup.procs").as_os_str().as_bytes()).ok())
        .collect();
    Ok(Created { cgroup: CommandCgroup { dir, tries: 0, keeps: session, marked: false }, procs })
}

impl CommandCgroup {
    /// Whether what is left in the cgroup stays, until [`CommandCgroup::doom`].
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Nothing in the cgroup is to stay.
    pub(super) fn doom(&mut self) {
        self.keeps = false;
    }

    /// The command has ended by itself: tells later helpers that what is left in the cgroup stays.
    fn mark(&mut self) {
        if !self.keeps || self.marked {
            return;
        }
        self.marked = true;
        if let Err(error) = setxattr(&self.dir, STAYS, b"1", XattrFlags::empty()) {
            tracing::warn!(group = %self.dir.display(), %error,
                "cannot mark the cgroup of a command; what the command left running ends with the exec helper");
        }
    }

    /// Kills the processes of the cgroup. Some may need more tries.
    pub(super) fn kill(&self) {
        let whole = self.dir.join("cgroup.kill");
        if whole.exists() {
            if let Err(error) = fs::write(&whole, "1") {
                tracing::warn!(group = %self.dir.display(), %error, "cannot kill a command's cgroup");
            }
            return;
        }
        for round in 0..ROUNDS {
            // Processes that fork faster than they are killed are frozen first.
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

    /// Removes the cgroup after the command's end. False while a process in it still lives.
    pub(super) fn remove(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        let removed = remove_tree(&self.dir, 0);
        if !removed {
            self.mark();
        }
        removed
    }

    /// Pause before the next try: 1 ms, doubling to 1 s, or to a minute where what is left stays.
    pub(super) fn backoff(&self) -> Duration {
        Duration::from_millis(1 << self.tries.min(if self.keeps { 16 } else { 10 }))
    }
}

fn remove_tree(dir: &Path, depth: u32) -> bool {
    match fs::remove_dir(dir) {
        Ok(()) => return true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    // The command may have created cgroups of its own.
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

/// Kills the processes of a v1 cgroup and those below, and returns how many there were. A pid that
/// is still listed after its pidfd was opened cannot have been reused outside of the cgroup
/// meanwhile.
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

/// The cgroups that earlier helpers left below these directories.
pub(super) fn leftovers_below(roots: &[PathBuf]) -> Vec<CommandCgroup> {
    let mut found = Vec::new();
    for root in roots {
        find_leftovers(root, 0, &mut found);
    }
    found
}

fn find_leftovers(dir: &Path, depth: u32, found: &mut Vec<CommandCgroup>) {
    if depth >= MAX_DEPTH {
        return;
    }
    for child in subdirectories(dir) {
        let named = |prefix: &str| {
            child.file_name().is_some_and(|name| name.as_bytes().starts_with(prefix.as_bytes()))
        };
        let session = named(SESSION_PREFIX);
        if session || named(PREFIX) {
            let keeps = session && getxattr(&child, STAYS, &mut [0; 1]).is_ok();
            found.push(CommandCgroup { dir: child, tries: 0, keeps, marked: keeps });
        } else {
            find_leftovers(&child, depth + 1, found);
        }
    }
}
