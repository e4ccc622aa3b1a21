//! Runs a command in a running container, as `runc exec` does.
//!
//! [`enter`] forks twice. The first process joins the cgroups and namespaces and drops every privilege that
//! the command must not have. Processes in the container cannot see it meanwhile, as it is not in the
//! container's PID namespace. The second process is born inside and only calls execve. It is a child of the
//! caller (`CLONE_PARENT`), which alone reaps both.
//!
//! Invariants: the caller has one thread (checked once by [`prepare_helper`]), so that a forked process may
//! do what any process may. The command inherits no descriptor of the caller except its three standard streams
//! ([`Streams`]). Failures of the two processes come back over the report pipe; a pipe that closes without a
//! failure means that the command runs.

mod child;
mod privileges;
mod terminal;

use berth_core::model::CapabilitySets;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open, set_dumpable_behavior},
};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// A command with its user, privileges and limits.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments. A program without a slash is looked up by `PATH` of `env`.
    pub argv: Vec<CString>,
    /// Environment, as `NAME=value`.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: CString,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Capability sets; bit n stands for capability n.
    pub capabilities: CapabilitySets,
    /// Whether execve may add no privileges (`no_new_privs`).
    pub no_new_privs: bool,
    /// Resource limits: number, soft limit, hard limit. All other limits are copied from the container's
    /// first process, as far as the caller may set them.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `oom_score_adj`; a value that is too low for the caller to set is skipped.
    pub oom_score_adj: Option<i32>,
    /// Whether `HOME` is set from the container's `/etc/passwd`.
    pub find_home: bool,
}

/// The container that the command runs in.
#[derive(Debug)]
pub struct Container<'a> {
    /// Pidfd of the container's first process.
    pub init: BorrowedFd<'a>,
    /// Pid of the container's first process, for its resource limits.
    pub pid: Pid,
    /// The `cgroup.procs` files that the command joins, one per hierarchy.
    pub cgroup_procs: &'a [CString],
}

/// Standard streams of a command.
#[derive(Debug, Clone, Copy)]
pub enum Streams<'a> {
    /// Input is `/dev/null`, and both outputs are one pipe to the caller. The command ends with the caller.
    Captured,
    /// Descriptors of the caller's: input, output, errors. The command outlives the caller.
    Given([BorrowedFd<'a>; 3]),
    /// A new terminal of the container's `/dev/pts`, which the command controls. Its other side is sent over this
    /// socket (`SCM_RIGHTS`) before the command runs. The command outlives the caller.
    Terminal(BorrowedFd<'a>),
}

/// A command that is being started in a container.
#[derive(Debug)]
pub struct Entering {
    /// The first process, which ends as soon as the second exists; the caller reaps it.
    pub first: Process,
    /// Pipe of the reports, read by [`read_report`]; closes when the command runs or no further report will
    /// come.
    pub reports: OwnedFd,
    /// Captured output of the command; non-blocking.
    pub output: Option<OwnedFd>,
}

/// Handle of a child of the caller.
#[derive(Debug)]
pub struct Process {
    /// Pid, valid until the child is reaped.
    pub pid: Pid,
    /// Pidfd, readable when the child has ended.
    pub fd: OwnedFd,
}

impl Process {
    /// Opens the handle of a child that has not been reaped.
    pub fn of(pid: Pid) -> io::Result<Process> {
        Ok(Process { pid, fd: pidfd_open(pid, PidfdFlags::empty())? })
    }
}

/// Report of one of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The second process was made; the caller reaps it.
    Started(Pid),
    /// A step failed and no command runs.
    Failed(Stage, Errno),
}

/// Steps between the fork and the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Open /dev/null and move the descriptors to their numbers.
    Descriptors = 1,
    /// Join a cgroup.
    Cgroup,
    /// Join the namespaces.
    Namespaces,
    /// Set a resource limit.
    Rlimit,
    /// Change to the working directory.
    WorkingDirectory,
    /// Drop a capability from the bounding set.
    Bounding,
    /// Set user and groups.
    Credentials,
    /// Set the capability sets.
    Capabilities,
    /// Set no_new_privs.
    NoNewPrivs,
    /// Make the second process.
    Fork,
    /// Find the program: it is not there, is a directory or may not be executed.
    Lookup,
    /// Execute the program.
    Exec,
    /// Make the terminal.
    Terminal,
}

impl Stage {
    const ALL: [Stage; 13] = [
        Stage::Descriptors,
        Stage::Cgroup,
        Stage::Namespaces,
        Stage::Rlimit,
        Stage::WorkingDirectory,
        Stage::Bounding,
        Stage::Credentials,
        Stage::Capabilities,
        Stage::NoNewPrivs,
        Stage::Fork,
        Stage::Lookup,
        Stage::Exec,
        Stage::Terminal,
    ];
}

/// Prepares the calling process for [`enter`]: checks that it has one thread, and makes it undumpable, so
/// that processes in a container cannot inspect it or its children.
pub fn prepare_helper() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process with {threads} threads cannot enter containers")));
    }
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Executes the calling program again from a read-only view of its file. A process in a container that opens
/// `/proc/<pid>/exe` of a process that is entering the container then cannot write to the file. Returns only
/// on failure.
pub fn reexec_read_only(argv: &[CString], env: &[CString]) -> io::Error {
    child::reexec_read_only(argv, env)
}

/// Starts a command in a container. The caller must have one thread.
pub fn enter(container: &Container<'_>, command: &Command, streams: Streams<'_>) -> io::Result<Entering> {
    let (reports, report_to) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&reports, OFlags::NONBLOCK)?;
    let captured = match streams {
        Streams::Captured => Some(pipe_with(PipeFlags::CLOEXEC)?),
        Streams::Given(_) | Streams::Terminal(_) => None,
    };
    if let Some((output, _)) = &captured {
        rustix::fs::fcntl_setfl(output, OFlags::NONBLOCK)?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let standard = match (streams, &captured) {
        (Streams::Given(given), _) => given.map(|fd| fd.as_raw_fd()),
        (_, Some((_, to))) => [null.as_raw_fd(), to.as_raw_fd(), to.as_raw_fd()],
        (_, None) => [null.as_raw_fd(); 3],
    };
    let console = match streams {
        Streams::Terminal(console) => Some(console.as_raw_fd()),
        Streams::Captured | Streams::Given(_) => None,
    };
    let descriptors = child::Descriptors {
        standard,
        reports: report_to.as_raw_fd(),
        console,
        ends_with_caller: captured.is_some(),
    };
    let pointers = child::Pointers::new(command);
    // SAFETY: the caller has one thread, so that the child's copy of memory is consistent and no lock is held
    // in it.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child::first(container, command, &pointers, &descriptors),
        pid => {
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no process"))?;
            Ok(Entering { first: Process::of(pid)?, reports, output: captured.map(|(output, _)| output) })
        }
    }
}

/// Reads one report: `Ok(None)` where the pipe is closed, `WouldBlock` where no report has arrived yet.
pub fn read_report(reports: &OwnedFd) -> io::Result<Option<Report>> {
    let mut record = [0u8; child::RECORD];
    let read = rustix::io::read(reports, &mut record)?;
    if read == 0 {
        return Ok(None);
    }
    let [kind, a, b, c, d] = record;
    let number = i32::from_le_bytes([a, b, c, d]);
    let report = match kind {
        0 => Pid::from_raw(number).map(Report::Started),
        kind => Stage::ALL
            .into_iter()
            .find(|s| *s as u8 == kind)
            .map(|stage| Report::Failed(stage, Errno::from_raw_os_error(number))),
    };
    match report {
        Some(report) if read == child::RECORD => Ok(Some(report)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unreadable report")),
    }
}

/// Moves standard input to a new descriptor and replaces it with `/dev/null`.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: takes no pointers; no object owns standard input.
    match unsafe { libc::dup2(null.as_raw_fd(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(taken),
    }
}

/// # Safety
/// `fd` must be open and have no other owner.
unsafe fn owned(fd: i32) -> OwnedFd {
    // SAFETY: by this function's contract.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
