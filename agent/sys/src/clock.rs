//! Reads the clocks and the boot id. Decisions that depend on time take these values as arguments.

use crate::{Error, Result, fs};
use berth_core::{
    ids::BootId,
    time::{Boottime, Now, Wall},
};
use nix::time::{ClockId, clock_gettime};
use std::{path::Path, time::Duration};

/// Both clocks, read one after the other.
///
/// A clock that the kernel denies (a seccomp filter may do that) reads zero; otherwise the kernel always has
/// both.
pub fn now() -> Now {
    Now { boottime: boottime(), wall: wall() }
}

/// Time since boot, `CLOCK_BOOTTIME`.
pub fn boottime() -> Boottime {
    Boottime(read(ClockId::CLOCK_BOOTTIME))
}

/// Wall-clock time, `CLOCK_REALTIME`, in nanoseconds since 1970.
pub fn wall() -> Wall {
    Wall(i64::try_from(read(ClockId::CLOCK_REALTIME).as_nanos()).unwrap_or(i64::MAX))
}

/// Wall-clock time of the machine's boot. It moves where the clock is set.
pub fn booted() -> Wall {
    let Now { boottime, wall } = now();
    let since_boot = i64::try_from(boottime.0.as_nanos()).unwrap_or(0);
    Wall(wall.0.saturating_sub(since_boot))
}

/// Time of `CLOCK_MONOTONIC`: the clock of eBPF programs (`bpf_ktime_get_ns`), equal in every process. Zero
/// where the kernel denies it.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Id of the current boot, read from `path` (normally `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// The file cannot be read or holds no boot id.
pub fn boot_id(path: &Path) -> Result<BootId> {
    let text = fs::read_to_string_limited(path, 4096)?;
    BootId::new(text.trim())
        .map_err(|e| Error::Malformed { path: path.into(), reason: format!("holds no boot id: {e}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_goes_on_and_wall_is_after_2020() {
        let a = now();
        let b = now();
        assert!(b.boottime >= a.boottime && a.boottime.0 > Duration::ZERO);
        assert!(a.wall.seconds() > 1_577_836_800);
    }

    #[test]
    fn boot_id_is_trimmed_and_checked() {
        let real = boot_id(Path::new("/proc/sys/kernel/random/boot_id")).unwrap();
        assert_eq!(real.as_str().len(), 36);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot_id");
        std::fs::write(&path, "abc-1\n").unwrap();
        assert_eq!(boot_id(&path).unwrap().as_str(), "abc-1");
        std::fs::write(&path, "a/b").unwrap();
        assert!(matches!(boot_id(&path), Err(Error::Malformed { .. })));
        assert!(matches!(boot_id(&dir.path().join("none")), Err(Error::Open { .. })));
    }
}
