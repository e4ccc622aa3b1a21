//! The two processes between fork and execve. No function of them returns to the caller's code.

use super::{Command, Container, Stage, owned};
use rustix::{io::Errno, process::Pid};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_long},
    io,
    os::fd::AsRawFd,
    ptr,
};

/// Bytes of a report: a kind and a number.
pub(super) const RECORD: usize = 5;

/// Numbers of the report pipe and of the container's pidfd in the first process, which has no other
/// descriptor above standard error.
const REPORTS: c_int = 3;
const INIT: c_int = 4;

/// Bytes of `/etc/passwd` that are read at most.
const MAX_PASSWD: u64 = 1024 * 1024;

/// Descriptors that the caller made, by the caller's numbers.
pub(super) struct Descriptors {
    pub(super) null: c_int,
    pub(super) output: c_int,
    pub(super) reports: c_int,
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

type Step<T> = Result<T, (Stage, Errno)>;

/// Converts the result of a system call that returns -1 on failure.
fn check(stage: Stage, result: c_long) -> Step<c_long> {
    if result == -1 { Err((stage, last_error())) } else { Ok(result) }
}

fn last_error() -> Errno {
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
        Ok(env) => second(command, pointers, env),
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

/// Moves /dev/null, the output pipe (twice), the reports and the container's pidfd to their numbers and
/// closes all other descriptors.
fn place_descriptors(container: &Container<'_>, from: &Descriptors) -> Step<()> {
    let placed = [
        (from.null, 0, 0),
        (from.output, 1, 0),
        (from.output, 2, 0),
        (from.reports, REPORTS, libc::O_CLOEXEC),
        (container.init.as_raw_fd(), INIT, libc::O_CLOEXEC),
    ];
    // First to numbers above all final ones, so that no descriptor is overwritten before its move.
    let mut above = [0; 5];
    for (slot, (fd, _, _)) in above.iter_mut().zip(placed) {
        // SAFETY: takes no pointers.
        let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16) };
        *slot = c_int::try_from(check(Stage::Descriptors, c_long::from(moved))?).unwrap_or(-1);
    }
    for (fd, (_, to, flags)) in above.into_iter().zip(placed) {
        // SAFETY: takes no pointers; the replaced descriptor belonged to the caller's copy.
        check(Stage::Descriptors, c_long::from(unsafe { libc::dup3(fd, to, flags) }))?;
    }
    // SAFETY: takes no pointers; no code that owns one of these descriptors runs in this process any more.
    let closed = unsafe { libc::close_range(5, libc::c_uint::MAX, 0) };
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

/// Changes from root to the command's user. The order is runc's, because each step needs a privilege that a
/// later step drops.
fn become_user(command: &Command) -> Step<()> {
    let entered = change_directory(&command.cwd);
    drop_bounding(command.capabilities.bounding)?;
    // SAFETY: the group list is as long as stated; the other calls take no pointers.
    unsafe {
        if command.uid != 0 {
            // Lets a command under another user open /dev/stdout again.
            libc::fchown(1, command.uid, libc::gid_t::MAX);
        }
        check(Stage::Credentials, c_long::from(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)))?;
        let groups = libc::setgroups(command.groups.len(), command.groups.as_ptr());
        check(Stage::Credentials, c_long::from(groups))?;
        let (uid, gid) = (command.uid, command.gid);
        check(Stage::Credentials, c_long::from(libc::setresgid(gid, gid, gid)))?;
        check(Stage::Credentials, c_long::from(libc::setresuid(uid, uid, uid)))?;
        check(Stage::Credentials, c_long::from(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)))?;
    }
    // The user may have access to a directory on a file system that denies it to root.
    entered.or_else(|_| change_directory(&command.cwd))?;
    still_inside()?;
    set_capabilities(command)?;
    if command.no_new_privs {
        // SAFETY: takes no pointers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        check(Stage::NoNewPrivs, c_long::from(set))?;
    }
    Ok(())
}

fn change_directory(cwd: &CStr) -> Step<()> {
    // SAFETY: the path ends with NUL.
    check(Stage::WorkingDirectory, c_long::from(unsafe { libc::chdir(cwd.as_ptr()) })).map(|_| ())
}

/// Checks that the working directory is inside the mount namespace: for a directory outside, the kernel's
/// getcwd returns a path without a leading slash.
fn still_inside() -> Step<()> {
    let mut path = [0u8; 4096];
    // SAFETY: the buffer is as long as stated.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    check(Stage::WorkingDirectory, length)?;
    if path.first() == Some(&b'/') { Ok(()) } else { Err((Stage::WorkingDirectory, Errno::XDEV)) }
}

fn drop_bounding(keep: u64) -> Step<()> {
    for capability in 0..64u32 {
        // SAFETY: take no pointers.
        unsafe {
            match libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) {
                0 => {}
                1 if keep & (1 << capability) != 0 => {}
                1 => {
                    let dropped = libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                    check(Stage::Bounding, c_long::from(dropped))?;
                }
                // The number is past the last capability that this kernel knows.
                _ => break,
            }
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and `struct __user_cap_data_struct[2]` of `linux/capability.h`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn set_capabilities(command: &Command) -> Step<()> {
    let sets = command.capabilities;
    let half = |shift: u32| {
        let part = |set: u64| u32::try_from(set >> shift & 0xFFFF_FFFF).unwrap_or_default();
        CapData {
            effective: part(sets.effective),
            permitted: part(sets.permitted),
            inheritable: part(sets.inheritable),
        }
    };
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: header and both halves live across the call and have the layout of version 3.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(Stage::Capabilities, set)?;
    // SAFETY: takes no pointers.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(Stage::Capabilities, c_long::from(cleared))?;
    for capability in (0..64u32).filter(|c| sets.ambient & (1 << c) != 0) {
        // SAFETY: takes no pointers.
        let raised =
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) };
        check(Stage::Capabilities, c_long::from(raised))?;
    }
    Ok(())
}

/// Makes the second process, which is born into the PID namespace, and ends the first.
fn second(command: &Command, argv: &Pointers, env: Vec<CString>) -> ! {
    let envp = pointers(&env);
    let candidates = candidates(command, &env);
    let flags = c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack the call equals fork, except that the new process is the
    // caller's child.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => {
            // SAFETY: takes no pointers. The death signal ends the command when the helper dies.
            unsafe {
                libc::setsid();
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            }
            let errno = execute(&candidates, &argv.argv, &envp);
            report(Stage::Exec as u8, errno.raw_os_error());
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

fn execute(candidates: &[CString], argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    let mut failure = Errno::NOENT;
    for program in candidates {
        // SAFETY: all texts end with NUL and both lists with a null pointer.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        match last_error() {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => failure = Errno::ACCESS,
            other => return other,
        }
    }
    failure
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
