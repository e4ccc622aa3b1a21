//! This process as a service: its own kernel limits, and its messages to the service manager.

use rustix::{
    fs::fstat,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use std::{env, fs, io, os::fd::AsFd, path::Path};

/// Reports to the service manager that the service is ready (`sd_notify(3)`); does nothing without a service
/// manager.
///
/// # Errors
/// The message cannot be sent to the service manager.
pub fn ready() -> io::Result<()> {
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
}

/// Environment variable with the socket that [`ready`] writes to; a process that outlives this one must not
/// inherit it.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Whether `fd` is a stream of systemd's journal (`JOURNAL_STREAM`, `systemd.exec(5)`).
pub fn is_journal(fd: impl AsFd) -> bool {
    let Ok(stat) = fstat(fd) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Raises the soft limit of open files to the hard limit. Children of this process inherit it. Returns the
/// former soft and hard limit, `u64::MAX` for unlimited.
///
/// # Errors
/// The kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<(u64, u64)> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok((limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)))
}

/// Sets the `oom_score_adj` of a process, unless its value is as low already.
///
/// # Errors
/// The process is gone, or this process lacks the privilege (`CAP_SYS_RESOURCE`).
pub fn protect_from_oom(pid: u32, score: i32) -> io::Result<()> {
    let path = Path::new("/proc").join(pid.to_string()).join("oom_score_adj");
    let now = fs::read_to_string(&path)?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= score) {
        return Ok(());
    }
    fs::write(path, score.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_journal() {
        assert!(!is_journal(fs::File::open("/proc/self/status").unwrap()));
    }

    #[test]
    fn the_limit_of_open_files_is_the_highest_allowed() {
        raise_descriptor_limit().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_score_is_lowered_never_raised() {
        let own = std::process::id();
        let score = || fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse::<i32>().unwrap();
        let before = score();
        protect_from_oom(own, before + 1).unwrap();
        assert_eq!(score(), before);
        protect_from_oom(own, before).unwrap();
        assert_eq!(score(), before);
        assert!(protect_from_oom(u32::MAX, 0).is_err());
    }
}
