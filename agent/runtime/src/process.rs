//! Signals that cannot hit the wrong process, and the wall-clock time a process started at.

use crate::error::Error;
use berth_core::{ids::ContainerId, time::Wall};
use berth_sys::{
    clock,
    process::{PidFd, start_time},
};

/// The wall-clock time of a start time (clock ticks since the boot), as the clock stands today.
pub(crate) fn wall_of(start: u64) -> Wall {
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100).max(1);
    let ticks = i64::try_from(start).unwrap_or(i64::MAX);
    let since_boot = ticks.saturating_mul(1_000_000_000 / per_second);
    let now = clock::now();
    let uptime = i64::try_from(now.boottime.0.as_nanos()).unwrap_or(i64::MAX);
    let wall = now.wall.0.saturating_sub(uptime.saturating_sub(since_boot).max(0));
    // A tick is all that is known; rounding to it makes the answer the same each time but for a change of the clock.
    let tick = 1_000_000_000 / per_second;
    Wall(wall.saturating_add(tick / 2).div_euclid(tick).saturating_mul(tick))
}

/// When a process started, 0 where it is gone or cannot be told: then nothing can be mistaken for it.
pub(crate) fn started(pid: u32) -> u64 {
    start_time(pid).ok().flatten().unwrap_or_default()
}

/// Whether a container's first process is past runc's own init and runs the container's program.
///
/// A start that is cut off (its caller's connection broke, so the shim ended its `runc start`) may have released the
/// container and not have said so: then runc and shim go on calling it created, and another start would wait for ever
/// for an init that is gone. The process knows better: runc's waiting init bears this name, and an exec takes it away.
pub(crate) fn runs_program(pid: u32) -> bool {
    const WAITING: &str = "runc:[2:INIT]";
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let comm = comm.trim_end_matches('\n');
    // Init bears other names for an instant before; all begin so.
    !comm.is_empty() && comm != WAITING && !comm.starts_with("runc")
}

/// A descriptor of the process, if it is the one that started at `start`; `None` if that one is gone.
pub(crate) fn open(pid: u32, start: u64) -> Result<Option<PidFd>, berth_sys::Error> {
    let Some(fd) = PidFd::open(pid)? else { return Ok(None) };
    // Looked at after opening: what the descriptor names has this start time, whoever has the number later.
    Ok((start_time(pid)? == Some(start)).then_some(fd))
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The process has it.
    Delivered,
    /// There is no such process any more.
    Gone,
    /// It is not known which process is meant; the runtime knows.
    Unknown,
}

/// Sends a signal to exactly the process that had `pid` from `start` on.
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
