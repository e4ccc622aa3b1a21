//! Signals that cannot reach a wrong process, and the wall-clock start time of a process.

use crate::error::Error;
use berth_core::{ids::ContainerId, time::Wall};
use berth_sys::{
    clock,
    process::{PidFd, start_time},
};
use procfs::process::Process;

/// The wall-clock time of a start time (clock ticks since the boot), by today's clock.
pub(crate) fn wall_of(start: u64) -> Wall {
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100).max(1);
    let ticks = i64::try_from(start).unwrap_or(i64::MAX);
    let since_boot = ticks.saturating_mul(1_000_000_000 / per_second);
    let now = clock::now();
    let uptime = i64::try_from(now.boottime.0.as_nanos()).unwrap_or(i64::MAX);
    let wall = now.wall.0.saturating_sub(uptime.saturating_sub(since_boot).max(0));
    // The precision is one tick; rounding to it gives the same answer each time unless the clock changes.
    let tick = 1_000_000_000 / per_second;
    Wall(wall.saturating_add(tick / 2).div_euclid(tick).saturating_mul(tick))
}

/// The start time of a process; 0 where the process is gone or unreadable, so that no other process can match
/// it.
pub(crate) fn started(pid: u32) -> u64 {
    start_time(pid).ok().flatten().unwrap_or_default()
}

/// Whether a container's first process is past runc's own init and runs the container's program.
///
/// A start that is cut off (its caller's connection broke, so the shim ended its `runc start`) may have
/// released the container without reporting it. Then runc and shim keep reporting the container as created,
/// and another start would wait for ever for an init that is gone. The process name tells: runc's waiting
/// init has this name, and the exec of the program replaces it.
pub(crate) fn runs_program(pid: u32) -> bool {
    const WAITING: &str = "runc:[2:INIT]";
    // The program may name itself by any bytes.
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).and_then(|p| p.stat()).ok());
    let comm = stat.map(|stat| stat.comm).unwrap_or_default();
    // For an instant before, init has other names, which all begin with runc.
    !comm.is_empty() && comm != WAITING && !comm.starts_with("runc")
}

/// A descriptor of the process that started at `start`; `None` where that process is gone.
pub(crate) fn open(pid: u32, start: u64) -> Result<Option<PidFd>, berth_sys::Error> {
    let Some(fd) = PidFd::open(pid)? else { return Ok(None) };
    // The start time is read after opening: the descriptor names the process with this start time, even if
    // the pid is reused later.
    Ok((start_time(pid)? == Some(start)).then_some(fd))
}

/// Outcome of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The process received the signal.
    Delivered,
    /// The process no longer exists.
    Gone,
    /// The process is not identified; the caller must signal through the runtime.
    Unknown,
}

/// Sends a signal to exactly the process that had `pid` since `start`.
pub(crate) fn signal(id: &ContainerId, pid: u32, start: u64, signal: i32) -> Result<Sent, Error> {
    if pid == 0 || start == 0 {
        return Ok(Sent::Unknown);
    }
    let failed = |source| Error::Signal { id: id.clone(), pid, signal, source };
    let Some(fd) = open(pid, start).map_err(failed)? else { return Ok(Sent::Gone) };
    Ok(if fd.signal_number(signal).map_err(failed)? { Sent::Delivered } else { Sent::Gone })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let me = std::process::id();
        let start = started(me);
        assert!(open(me, start).unwrap().is_some());
        assert!(open(me, start + 1).unwrap().is_none());
        let age = clock::wall().0 - wall_of(start).0;
        assert!((0..3_600_000_000_000).contains(&age), "{age}");
    }

    #[test]
    fn a_program_is_no_waiting_init() {
        assert!(runs_program(std::process::id()));
        assert!(!runs_program(0));
    }

    #[test]
    fn a_signal_for_a_former_process_goes_nowhere() {
        let id = ContainerId::new("0".repeat(64)).unwrap();
        let me = std::process::id();
        assert_eq!(signal(&id, me, started(me) + 1, 9).unwrap(), Sent::Gone);
        assert_eq!(signal(&id, 0, 0, 9).unwrap(), Sent::Unknown);
    }
}
