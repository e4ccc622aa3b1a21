//! Processes that are not the agent's children: held by a pidfd, identified by their start time.

use crate::{Error, Result};
pub use rustix::process::Signal;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use std::{io, path::PathBuf, time::Duration};

/// Handle of a process that stays valid when the kernel reuses the pid. The descriptor becomes readable (for
/// `poll` and similar calls) when the process has ended, and is non-blocking.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: u32,
}

impl PidFd {
    /// Opens the process with that pid; `Ok(None)` where there is none. For a stored pid compare
    /// [`start_time`] after opening: only an equal start time shows that the pid still belongs to the stored
    /// process.
    ///
    /// # Errors
    /// The kernel refuses, for example because of too many open files.
    pub fn open(pid: u32) -> Result<Option<PidFd>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(PidFd { fd, pid })),
            // EINVAL: the pid belongs to a thread that leads no process.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(e) => Err(failed("open", pid, e)),
        }
    }

    /// The pid that the handle was opened by.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; `Ok(false)` where the process has been reaped already.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(e) => Err(failed("signal", self.pid, e)),
        }
    }

    /// Sends a signal as [`PidFd::signal`], by number; real-time signals are allowed.
    ///
    /// # Errors
    /// The kernel refuses; `EINVAL` where there is no such signal.
    pub fn signal_number(&self, signal: i32) -> Result<bool> {
        // SAFETY: the descriptor is open for as long as `self`; no memory is passed (siginfo is null).
        let ret = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if ret == 0 {
            return Ok(true);
        }
        let source = io::Error::last_os_error();
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Ok(false);
        }
        Err(Error::Process { what: "signal", pid: self.pid, source })
    }

    /// Waits until the process has ended, at most for `timeout`. A zero timeout does not wait.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn poll_exited(&self, timeout: Duration) -> Result<bool> {
        let end = crate::clock::boottime() + timeout;
        loop {
            let left = end.since(crate::clock::boottime());
            let left =
                Timespec::try_from(left).map_err(|_too_long| failed("wait for", self.pid, Errno::INVAL))?;
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed("wait for", self.pid, e)),
            }
        }
    }

    /// Reaps a child of this process that has ended, so that no zombie is left. Leaves a running process
    /// alone, and a process that is not a child of this process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn reap(&self) -> Result<()> {
        match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            // The kernel returns EAGAIN for a non-blocking descriptor whose process has no status yet.
            Ok(_) | Err(Errno::CHILD | Errno::AGAIN) => Ok(()),
            Err(e) => Err(failed("wait for", self.pid, e)),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn failed(what: &'static str, pid: u32, e: Errno) -> Error {
    Error::Process { what, pid, source: e.into() }
}

/// The error for a child that is missing although this process has not reaped it.
pub(crate) fn no_child(pid: u32) -> Error {
    failed("open", pid, Errno::CHILD)
}

/// Start time of the process in clock ticks since boot (field 22 of `/proc/<pid>/stat`). Pid and start time
/// together identify a process until the machine reboots. `Ok(None)` where there is no such process, or only
/// a zombie.
///
/// # Errors
/// `/proc` cannot be read or parsed.
pub fn start_time(pid: u32) -> Result<Option<u64>> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let bytes = match crate::fs::read_limited(&path, 16 << 10) {
        Ok(bytes) => bytes,
        Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The process ended between open and read.
        Err(Error::Read { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    match parse_stat(&bytes) {
        Some((b'Z' | b'X' | b'x', _)) => Ok(None),
        Some((_, ticks)) => Ok(Some(ticks)),
        None => Err(Error::Malformed { path, reason: "has no state and start time".into() }),
    }
}

/// Whether the process with this pid and start time still runs. A zombie does not run.
///
/// # Errors
/// As [`start_time`].
pub fn alive(pid: u32, started: u64) -> Result<bool> {
    Ok(start_time(pid)? == Some(started))
}

/// Parses state and start time. The process name may hold any byte, also `)` and spaces, so the fields are
/// counted from the last `)`.
fn parse_stat(bytes: &[u8]) -> Option<(u8, u64)> {
    let end = bytes.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(bytes.get(end.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3, the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_name_may_hold_anything() {
        let numbers: Vec<String> = (4..=52).map(|n| (n * 10).to_string()).collect();
        for name in ["cat", "a b", ") S 1 2", "((", ""] {
            let line = format!("7 ({name}) S {}\n", numbers.join(" "));
            assert_eq!(parse_stat(line.as_bytes()), Some((b'S', 220)), "{name}");
        }
        for bad in ["", "7", "7 (a) S", "7 (a", "7 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"] {
            assert_eq!(parse_stat(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_stat_is_an_answer_not_a_panic(bytes: Vec<u8>, name in "\\PC{0,15}", ticks: u64) {
            let _answer = parse_stat(&bytes);
            let line = format!("7 ({name}) R {}{ticks} 1 2\n", "1 ".repeat(18));
            proptest::prop_assert_eq!(parse_stat(line.as_bytes()), Some((b'R', ticks)));
        }
    }

    #[test]
    fn follows_a_child_to_its_end() {
        let mut child =
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep is everywhere");
        let pid = child.id();
        let started = start_time(pid).unwrap().unwrap();
        let fd = PidFd::open(pid).unwrap().unwrap();
        assert!(alive(pid, started).unwrap());
        assert!(!alive(pid, started + 1).unwrap());
        assert!(!fd.poll_exited(Duration::ZERO).unwrap());
        assert!(fd.signal(Signal::TERM).unwrap());
        assert!(fd.poll_exited(Duration::from_secs(10)).unwrap());
        assert!(!alive(pid, started).unwrap(), "a zombie does not run");
        child.wait().unwrap();
        assert!(!fd.signal(Signal::KILL).unwrap());
        assert!(!fd.signal_number(9).unwrap());
        assert_eq!(start_time(pid).unwrap(), None);
    }

    #[test]
    fn no_process_is_none() {
        for pid in [0, u32::MAX, 4_194_304] {
            assert!(PidFd::open(pid).unwrap().is_none(), "{pid}");
        }
        assert_eq!(start_time(u32::MAX).unwrap(), None);
    }
}
