//! Puts a command into a container that runs already, as `runc exec` would.
//!
//! [`enter`] forks twice. The first process joins the cgroups and namespaces and gives up everything that the command
//! shall not have, while it can still not be seen from inside: it is not in the container's PID namespace. The second
//! is born inside, has only to call execve, and is a child of the caller (`CLONE_PARENT`), which alone reaps both.
//!
//! Invariants: the caller has one thread (checked once by [`prepare_helper`]), so that a forked process may do what any
//! process may. No descriptor of the caller reaches the command but standard input (`/dev/null`) and output. Failures
//! of the two processes come back over the report pipe; that it closes without one means that the command runs.

mod child;

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

/// What to run and as what.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program, looked up by `PATH` of `env` where it holds no slash, and its arguments.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// The working directory.
    pub cwd: CString,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Capability sets, bit n for capability n.
    pub capabilities: CapabilitySets,
    /// Whether execve may add no privileges.
    pub no_new_privs: bool,
    /// Resource limits: number, soft, hard. All others are those of the container's first process, as far as the
    /// caller may set them.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `oom_score_adj`; one that is too low for the caller to set is left out.
    pub oom_score_adj: Option<i32>,
    /// Whether to set `HOME` from the container's `/etc/passwd`.
    pub find_home: bool,
}

/// The container to enter.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its first process.
    pub init: BorrowedFd<'a>,
    /// The same by number, for its resource limits.
    pub pid: Pid,
    /// The `cgroup.procs` files to write to, one a hierarchy.
    pub cgroup_procs: &'a [CString],
}

/// A command on its way into a container.
#[derive(Debug)]
pub struct Entering {
    /// The first process, ended as soon as the second is there; the caller reaps it.
    pub first: Process,
    /// Reports by [`read_report`]; closes when the command runs or nothing more will come.
    pub reports: OwnedFd,
    /// What the command writes; non-blocking.
    pub output: OwnedFd,
}

/// A child of the caller.
#[derive(Debug)]
pub struct Process {
    /// Its number, its own until it is reaped.
    pub pid: Pid,
    /// Readable when it has ended.
    pub fd: OwnedFd,
}

impl Process {
    /// Takes hold of a child that has not been reaped.
    pub fn of(pid: Pid) -> io::Result<Process> {
        Ok(Process { pid, fd: pidfd_open(pid, PidfdFlags::empty())? })
    }
}

/// What the processes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The second process was made; the caller reaps it.
    Started(Pid),
    /// A step failed and nothing runs.
    Failed(Stage, Errno),
}

/// The steps on the way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Open /dev/null and put the descriptors in their places.
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
    /// Execute the program.
    Exec,
}

impl Stage {
    const ALL: [Stage; 11] = [
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
        Stage::Exec,
    ];
}

/// Makes the calling process fit for [`enter`]: it has one thread, and nothing in a container may look into it or its
/// children.
pub fn prepare_helper() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process with {threads} threads cannot enter containers")));
    }
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Runs the calling program anew from a read-only view of its file, so that nobody who gets hold of `/proc/<pid>/exe`
/// of a process on its way into a container can write to it. Returns only on failure.
pub fn reexec_read_only(argv: &[CString], env: &[CString]) -> io::Error {
    child::reexec_read_only(argv, env)
}

/// Starts a command in a container. The caller must have one thread.
pub fn enter(container: &Container<'_>, command: &Command) -> io::Result<Entering> {
    let (reports, report_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, output_to) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&reports, OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let pointers = child::Pointers::new(command);
    // SAFETY: the caller has one thread, so that the child's copy of memory is consistent and no lock is held in it.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child::first(
            container,
            command,
            &pointers,
            &child::Descriptors {
                null: null.as_raw_fd(),
                output: output_to.as_raw_fd(),
                reports: report_to.as_raw_fd(),
            },
        ),
        pid => {
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no process"))?;
            Ok(Entering { first: Process::of(pid)?, reports, output })
        }
    }
}

/// Reads one report: `Ok(None)` where the pipe is closed, `WouldBlock` where there is none yet.
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

/// Takes over standard input as a descriptor of its own; `/dev/null` stands in its place.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: takes no pointers; standard input is owned by nobody.
    match unsafe { libc::dup2(null.as_raw_fd(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(taken),
    }
}

/// # Safety
/// `fd` must be open and owned by nobody else.
unsafe fn owned(fd: i32) -> OwnedFd {
    // SAFETY: by this function's contract.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
