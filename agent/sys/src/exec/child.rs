//! The two processes between fork and execve. No function of them returns to the caller's code.

use super::{Command, Container, Stage, owned, privileges::become_user, terminal};
use rustix::{io::Errno, process::Pid};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_long},
    io,
    os::fd::AsRawFd,
    ptr,
};

/// Bytes of a report: a kind and a number.
pub(super) const RECORD: usize = 5;

/// Numbers of the report pipe, of the container's pidfd and of the terminal's socket in the first process, which
/// has no other descriptor above standard error.
const REPORTS: c_int = 3;
const INIT: c_int = 4;
const CONSOLE: c_int = 5;

/// Bytes of `/etc/passwd` that are read at most.
const MAX_PASSWD: u64 = 1024 * 1024;

/// Descriptors that the caller made, by the caller's numbers.
pub(super) struct Descriptors {
    /// Standard input, output and errors.
    pub(super) standard: [c_int; 3],
    pub(super) reports: c_int,
    /// Socket for the other side of a terminal, which then takes the place of the standard streams.
    pub(super) console: Option<c_int>,
    /// Whether the command ends with the caller.
    pub(super) ends_with_caller: bool,
}

/// Argument list in the form that execve takes.
pub(super) struct Pointers {
    argv: Vec<*const c_char>,
}

impl Pointers {
    pub(super) fn new(command: &Command) -> Pointers {
        Pointers { argv: pointers(&command.argv) }
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|t| t.as_ptr()).chain([ptr::null()]).collect()
}

pub(super) type Step<T> = Result<T, (Stage, Errno)>;

/// Converts the result of a system call that returns -1 on failure.
pub(super) fn check(stage: Stage, result: c_long) -> Step<c_long> {
    if result == -1 { Err((stage, last_error())) } else { Ok(result) }
}

pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn report(kind: u8, number: i32) {
    let [a, b, c, d] = number.to_le_bytes();
    let record = [kind, a, b, c, d];
    // SAFETY: the buffer is as long as stated. A failed write is ignored: the caller is gone then.
    unsafe { libc::write(REPORTS, record.as_ptr().cast(), RECORD) };
}

fn leave(code: c_int) -> ! {
    // SAFETY: ends the process without running exit code of the caller's copy.
    unsafe { libc::_exit(code) }
}

/// Exits on a panic: the panic must not unwind into the caller's code, of which this process has a copy.
struct LeaveOnUnwind;

impl Drop for LeaveOnUnwind {
    fn drop(&mut self) {
        leave(1);
    }
}

/// Main function of the first process.
pub(super) fn first(
    container: &Container<'_>,
    command: &Command,
    pointers: &Pointers,
    descriptors: &Descriptors,
) -> ! {
    let _guard = LeaveOnUnwind;
    match go_inside(container, command, descriptors) {
        Ok(env) => second(command, pointers, env, descriptors),
        Err((stage, errno)) => {
            report(stage as u8, errno.raw_os_error());
            leave(1)
        }
    }
}

/// All steps before the second process; returns the command's environment.
fn go_inside(container: &Container<'_>, command: &Command, descriptors: &Descriptors) -> Step<Vec<CString>> {
    place_descriptors(container, descriptors)?;
    default_signals();
    if let Some(score) = command.oom_score_adj {
        // A lower value requires CAP_SYS_RESOURCE. A failure is ignored: a command that is killed a little
        // earlier is better than no command.
        drop(std::fs::write("/proc/self/oom_score_adj", score.to_string()));
    }
    for procs in container.cgroup_procs {
        join(procs)?;
    }
    inherit_rlimits(container.pid);
    enter_namespaces()?;
    if descriptors.console.is_some() {
        // SAFETY: the descriptor was placed here and has no other owner in this process.
        terminal::make(unsafe { owned(CONSOLE) })?;
    }
    for (resource, soft, hard) in &command.rlimits {
        let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: the structure lives across the call.
        let set = unsafe { libc::prlimit64(0, *resource as _, &raw const limit, ptr::null_mut()) };
        check(Stage::Rlimit, c_long::from(set))?;
    }
    // SAFETY: takes no pointers.
    unsafe { libc::umask(command.umask) };
    let mut env = command.env.clone();
    if command.find_home {
        env.extend(CString::new([b"HOME=".as_slice(), &home(command.uid)].concat()));
    }
    become_user(command)?;
    Ok(env)
}

/// Moves the standard streams, the reports, the container's pidfd and the terminal's socket to their numbers and
/// closes all other descriptors.
fn place_descriptors(container: &Container<'_>, from: &Descriptors) -> Step<()> {
    let [input, output, errors] = from.standard;
    let placed = [
        (Some(input), 0, 0),
        (Some(output), 1, 0),
        (Some(errors), 2, 0),
        (Some(from.reports), REPORTS, libc::O_CLOEXEC),
        (Some(container.init.as_raw_fd()), INIT, libc::O_CLOEXEC),
        (from.console, CONSOLE, libc::O_CLOEXEC),
    ];
    let placed = placed.into_iter().filter_map(|(fd, to, flags)| fd.map(|fd| (fd, to, flags)));
    // First to numbers above all final ones, so that no descriptor is overwritten before its move.
    let mut above = Vec::new();
    for (fd, to, flags) in placed {
        // SAFETY: takes no pointers.
        let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16) };
        check(Stage::Descriptors, c_long::from(moved))?;
        above.push((moved, to, flags));
    }
    let mut end: libc::c_uint = 0;
    for (fd, to, flags) in above {
        // SAFETY: takes no pointers; the replaced descriptor belonged to the caller's copy.
        check(Stage::Descriptors, c_long::from(unsafe { libc::dup3(fd, to, flags) }))?;
        end = end.max(to.unsigned_abs() + 1);
    }
    // SAFETY: takes no pointers; no code that owns one of these descriptors runs in this process any more.
    let closed = unsafe { libc::close_range(end, libc::c_uint::MAX, 0) };
    check(Stage::Descriptors, c_long::from(closed))?;
    Ok(())
}

/// Resets all signals: a command starts with no ignored and no blocked signal. Rust ignores SIGPIPE, and the
/// agent's parent may have ignored more. The function makes raw system calls, because the C library withholds
/// two signals from its callers.
fn default_signals() {
    /// `struct sigaction` of the kernel: handler, flags, restorer, mask; all zero is SIG_DFL.
    static DEFAULT: [u64; 4] = [0; 4];
    static NONE: u64 = 0;
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code; KILL and STOP are refused, which changes nothing. Masks are 8 bytes.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), ptr::null_mut::<u64>(), 8) };
    }
    // SAFETY: the mask is 8 bytes long.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const NONE,
            ptr::null_mut::<u64>(),
            8,
        );
    }
}

fn join(procs: &CStr) -> Step<()> {
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    check(Stage::Cgroup, c_long::from(fd))?;
    // SAFETY: the descriptor was opened above and has no other owner.
    let fd = unsafe { owned(fd) };
    rustix::io::write(&fd, b"0").map(|_| ()).map_err(|e| (Stage::Cgroup, e))
}

/// Copies the resource limits of the container's first process. A command started by the runtime would have
/// the limits that the runtime started the container with; the first process still has them unless it changed
/// its own.
fn inherit_rlimits(init: Pid) {
    for resource in 0..16 {
        let mut theirs = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let mut ours = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let pid = init.as_raw_nonzero().get();
        // SAFETY: both structures live across the calls. A limit that may not be raised stays unchanged.
        unsafe {
            let known = libc::prlimit64(pid, resource, ptr::null(), &raw mut theirs) == 0
                && libc::prlimit64(0, resource, ptr::null(), &raw mut ours) == 0;
            if known && (theirs.rlim_cur, theirs.rlim_max) != (ours.rlim_cur, ours.rlim_max) {
                libc::prlimit64(0, resource, &raw const theirs, ptr::null_mut());
            }
        }
    }
}

fn enter_namespaces() -> Step<()> {
    // A new session keyring hides the caller's keyring from the command. A failure is ignored: a kernel
    // without keyrings has none to hide.
    // SAFETY: a null name requests an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, 1, ptr::null::<c_char>()) };
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: take no pointers.
    unsafe {
        check(Stage::Namespaces, c_long::from(libc::setns(INIT, all)))?;
        libc::close(INIT);
    }
    Ok(())
}

/// Home directory of the user in the container's `/etc/passwd`; `/` where the file names none.
fn home(uid: u32) -> Vec<u8> {
    use std::{io::Read, os::unix::fs::OpenOptionsExt};
    let read = || -> io::Result<Vec<u8>> {
        // The container controls the file, which may be a FIFO or a device.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/etc/passwd")?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut text = Vec::new();
        file.take(MAX_PASSWD).read_to_end(&mut text)?;
        Ok(text)
    };
    let wanted = uid.to_string();
    read()
        .unwrap_or_default()
        .split(|b| *b == b'\n')
        .find_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let matches = fields.nth(2)? == wanted.as_bytes();
            let home = fields.nth(2)?;
            (matches && !home.is_empty() && !home.contains(&0)).then(|| home.to_vec())
        })
        .unwrap_or_else(|| b"/".to_vec())
}

/// Makes the second process, which is born into the PID namespace, and ends the first.
fn second(command: &Command, argv: &Pointers, env: Vec<CString>, descriptors: &Descriptors) -> ! {
    let envp = pointers(&env);
    let candidates = candidates(command, &env);
    let flags = c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack the call equals fork, except that the new process is the
    // caller's child.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => {
            // SAFETY: take no pointers. The death signal ends the command when the helper dies.
            unsafe {
                libc::setsid();
                if descriptors.ends_with_caller {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                }
            }
            let failure = match terminal::control(descriptors.console.is_some()) {
                Ok(()) => execute(&candidates, &argv.argv, &envp),
                Err((stage, errno)) => (stage, errno, None),
            };
            if let (Stage::Exec, errno, Some(program)) = failure
                && !descriptors.ends_with_caller
            {
                // As with every OCI runtime, the command counts as started and says itself what is wrong.
                tell(program, errno);
                leave(255)
            }
            report(failure.0 as u8, failure.1.raw_os_error());
            leave(127)
        }
        -1 => {
            report(Stage::Fork as u8, last_error().raw_os_error());
            leave(1)
        }
        pid => {
            report(0, i32::try_from(pid).unwrap_or(0));
            leave(0)
        }
    }
}

/// Paths that the program may have, in search order. Relative entries of `PATH` are skipped, because they
/// would resolve against the working directory.
fn candidates(command: &Command, env: &[CString]) -> Vec<CString> {
    let Some(name) = command.argv.first().map(|n| n.as_bytes()) else { return Vec::new() };
    if name.contains(&b'/') {
        return command.argv.first().cloned().into_iter().collect();
    }
    // The last `PATH` counts, as with getenv in the runtime.
    let path = env.iter().rev().find_map(|e| e.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    path.split(|b| *b == b':')
        .filter(|dir| dir.starts_with(b"/") && !name.is_empty())
        .filter_map(|dir| CString::new([dir, b"/", name].concat()).ok())
        .collect()
}

/// Executes the first candidate that is a file which may be executed.
fn execute<'c>(
    candidates: &'c [CString],
    argv: &[*const c_char],
    envp: &[*const c_char],
) -> (Stage, Errno, Option<&'c CStr>) {
    let mut failure = Errno::NOENT;
    for program in candidates {
        // SAFETY: all texts end with NUL and both lists with a null pointer.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        let error = last_error();
        match (error, executable(program)) {
            // It is what was looked for, and a program that it names is missing.
            (error, Ok(())) => return (Stage::Exec, error, Some(program)),
            (Errno::NOENT | Errno::NOTDIR | Errno::ACCESS, Err(why)) => {
                if failure == Errno::NOENT {
                    failure = why;
                }
            }
            (other, Err(_)) => return (Stage::Exec, other, Some(program)),
        }
    }
    (Stage::Lookup, failure, None)
}

/// Writes to standard error why a program cannot be executed.
fn tell(program: &CStr, errno: Errno) {
    let words = errno.to_string();
    let words = words.split_once(" (os error").map_or(words.as_str(), |(words, _)| words).to_lowercase();
    let text = format!("exec {}: {words}\n", program.to_string_lossy());
    // SAFETY: the buffer is as long as stated. A failed write is ignored: nobody reads then.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

/// Whether a path is a file that this process may execute.
fn executable(program: &CStr) -> Result<(), Errno> {
    use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
    if FileType::from_raw_mode(stat(program)?.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS)
}

pub(super) fn reexec_read_only(argv: &[CString], env: &[CString]) -> io::Error {
    let attempt = || -> io::Result<()> {
        use rustix::mount::{OpenTreeFlags, open_tree};
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let exe = open_tree(rustix::fs::CWD, "/proc/self/exe", flags)?;
        let read_only =
            libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let (argv, envp) = (pointers(argv), pointers(env));
        // SAFETY: the attributes are as long as stated, all texts end with NUL and both lists with a null
        // pointer.
        unsafe {
            let set = libc::syscall(
                libc::SYS_mount_setattr,
                exe.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const read_only,
                size_of::<libc::mount_attr>(),
            );
            if set == -1 {
                return Err(io::Error::last_os_error());
            }
            let empty = libc::AT_EMPTY_PATH;
            libc::syscall(
                libc::SYS_execveat,
                exe.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                empty,
            );
        }
        Err(io::Error::last_os_error())
    };
    attempt().err().unwrap_or_else(|| io::Error::other("execveat returned"))
}
