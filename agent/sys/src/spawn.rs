//! Starts a child that inherits one descriptor at a fixed number, without a copy of this process's memory.
//!
//! A child of Rust's `Command` gets only stdin, stdout and stderr; every other descriptor is close-on-exec.
//! Some programs expect one more descriptor at a fixed number (a listening socket at 3). Any code that a
//! `Command` runs between fork and exec makes it use fork, which copies the daemon's page tables and costs a
//! fault for each page that the daemon writes next. `posix_spawn` places the descriptor too, and shares the
//! memory until exec.

use crate::{
    Result,
    process::{self, PidFd, Signal},
};
use rustix::process::{Pid, WaitOptions, kill_process, waitpid};
use std::{
    ffi::{CString, OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// A program with its arguments, environment and descriptor. Standard input and output are `/dev/null`. The
/// program leads a process group of its own, so that a signal to a terminal's group does not reach it.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Path of the executable.
    pub program: &'a Path,
    /// Arguments, without the program's name.
    pub args: &'a [&'a OsStr],
    /// Complete environment.
    pub env: &'a [(&'a str, OsString)],
    /// Working directory.
    pub dir: &'a Path,
    /// Descriptor that the program inherits.
    pub fd: BorrowedFd<'a>,
    /// Number of the descriptor in the program: 3 or more.
    pub number: RawFd,
}

/// Converts the return code of a posix_spawn function; 0 is `Ok`.
fn checked(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::from)
}

/// Descriptor and directory changes that the child makes before exec, in order.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Actions> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call fills the structure, which is initialised on success.
        unsafe {
            checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Actions(actions.assume_init()))
        }
    }

    fn set_up(&mut self, dir: &CString, fd: RawFd, number: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised; each call copies its string.
        unsafe {
            checked(libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, dir.as_ptr()))?;
            // The first descriptor change, as `fd` may have any number above the standard ones. A `dup2` onto
            // the same number clears close-on-exec.
            checked(libc::posix_spawn_file_actions_adddup2(&raw mut self.0, fd, number))?;
            checked(libc::posix_spawn_file_actions_addopen(
                &raw mut self.0,
                0,
                c"/dev/null".as_ptr(),
                libc::O_RDWR,
                0,
            ))?;
            checked(libc::posix_spawn_file_actions_adddup2(&raw mut self.0, 0, 1))?;
            checked(libc::posix_spawn_file_actions_adddup2(&raw mut self.0, 0, 2))
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once. The call cannot fail for initialised actions.
        let _never = unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// Process group and signal settings of the child.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Attributes> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call fills the structure, which is initialised on success.
        unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Ok(Attributes(attributes.assume_init()))
        }
    }

    /// Sets a process group of its own, no blocked signal, and the default action for SIGPIPE: Rust programs
    /// ignore SIGPIPE, and an ignored signal stays ignored over exec.
    fn set_up(&mut self) -> io::Result<()> {
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let mut set = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised; sigemptyset initialises the set before its first use; each
        // call copies it.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            checked(libc::posix_spawnattr_setsigmask(&raw mut self.0, set.as_ptr()))?;
            libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
            checked(libc::posix_spawnattr_setsigdefault(&raw mut self.0, set.as_ptr()))?;
            checked(libc::posix_spawnattr_setpgroup(&raw mut self.0, 0))?;
            let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
            checked(libc::posix_spawnattr_setflags(&raw mut self.0, flags))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once. The call cannot fail for initialised attributes.
        let _never = unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

impl Spawn<'_> {
    /// Starts the program. The returned pidfd becomes readable when the program ends; [`PidFd::reap`] takes
    /// its exit status.
    ///
    /// # Errors
    /// The program cannot be executed, or the kernel refuses.
    pub fn spawn(&self) -> io::Result<PidFd> {
        let program = text(self.program.as_os_str().as_bytes())?;
        let dir = text(self.dir.as_os_str().as_bytes())?;
        let args: Vec<CString> = self.args.iter().map(|a| text(a.as_bytes())).collect::<io::Result<_>>()?;
        let env: Vec<CString> = self
            .env
            .iter()
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<_>>()?;
        let list = |first: Option<&CString>, rest: &[CString]| -> Vec<*mut libc::c_char> {
            let all = first.into_iter().chain(rest).map(|text| text.as_ptr().cast_mut());
            all.chain([std::ptr::null_mut()]).collect()
        };
        let (argv, envp) = (list(Some(&program), &args), list(None, &env));
        let (mut actions, mut attributes) = (Actions::new()?, Attributes::new()?);
        actions.set_up(&dir, self.fd.as_raw_fd(), self.number)?;
        attributes.set_up()?;
        let mut pid = 0;
        // SAFETY: program, arguments and environment are zero-terminated texts in lists that end with a null,
        // and outlive the call, which does not change them; actions and attributes are initialised.
        checked(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                argv.as_ptr(),
                envp.as_ptr(),
            )
        })?;
        hold(pid.unsigned_abs()).map_err(io::Error::other)
    }
}

/// Opens a pidfd for the new child, which is not yet reaped. Kills the child where that fails.
fn hold(pid: u32) -> Result<PidFd> {
    let held = PidFd::open(pid);
    if let Ok(Some(fd)) = held {
        return Ok(fd);
    }
    if let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The first failure is reported; the pid is still the child's, as only this process can reap it.
        let _killed = kill_process(raw, Signal::KILL);
        let _reaped = waitpid(Some(raw), WaitOptions::empty());
    }
    Err(held.err().unwrap_or_else(|| process::no_child(pid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
        time::Duration,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn sh<'a>(args: &'a [&'a OsStr], env: &'a [(&'a str, OsString)], fd: BorrowedFd<'a>) -> Spawn<'a> {
        Spawn { program: Path::new("/bin/sh"), args, env, dir: Path::new("/proc"), fd, number: 9 }
    }

    fn answer(script: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let args = [OsStr::new("-c"), OsStr::new(script)];
        let env = [("WORD", OsString::from("two words"))];
        let child = sh(&args, &env, theirs.as_fd()).spawn().unwrap();
        drop(theirs);
        ours.write_all(b"word\n").unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).unwrap();
        assert!(child.poll_exited(PATIENCE).unwrap());
        child.reap().unwrap();
        assert!(PidFd::open(child.pid()).unwrap().is_none(), "nothing is left of it");
        answer
    }

    #[test]
    fn the_child_finds_the_descriptor_at_its_number() {
        assert_eq!(answer("read line <&9; echo got $line >&9"), "got word\n");
    }

    #[test]
    fn the_child_has_its_environment_directory_group_and_nothing_else() {
        assert_eq!(answer("read line <&9; pwd >&9; echo $WORD. >&9"), "/proc\ntwo words.\n");
        let group = answer("read line <&9; set -- $(cat /proc/$$/stat); [ $5 = $$ ] && echo leads >&9");
        assert_eq!(group, "leads\n");
        let ends =
            answer("read line <&9; pid=$$; for n in 0 1 2; do readlink /proc/$pid/fd/$n; done | cat >&9");
        assert_eq!(ends, "/dev/null\n/dev/null\n/dev/null\n");
        let signals = answer("read line <&9; grep -E 'Sig(Blk|Ign)' /proc/self/status >&9");
        let mask = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        let masks: Vec<u64> = signals.lines().map(mask).collect();
        let pipe = 1 << (libc::SIGPIPE - 1);
        assert!(matches!(masks[..], [0, ignored] if ignored & pipe == 0), "{signals}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let missing = Spawn { program: Path::new("/nonexistent"), ..sh(&[], &[], ours.as_fd()) };
        assert_eq!(missing.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
