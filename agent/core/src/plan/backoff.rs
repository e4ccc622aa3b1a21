//! Back-off: the crash back-off of containers and the retry delay of failed actions.

use super::Action;
use crate::time::Boottime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// First delay of the crash back-off (`pkg/kubelet/kubelet.go`).
const INITIAL: Duration = Duration::from_secs(10);
/// Largest delay of the crash back-off.
const MAX: Duration = Duration::from_secs(300);
/// A run that ends more than this long after the last counted restart resets the back-off.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// The crash back-off of one container. The first restart is immediate; the delays after that are 10 s,
/// doubling up to 300 s, counted from the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CrashBackoff {
    delay: Option<Duration>,
    counted_at: Boottime,
}

impl CrashBackoff {
    fn current(&self, ended_at: Boottime) -> Option<Duration> {
        self.delay.filter(|_| ended_at.since(self.counted_at) <= RESET_AFTER)
    }

    /// The end and the length of the delay after a run that ended at `ended_at`; `None` where the delay is
    /// over or there is none.
    pub(super) fn wait(&self, ended_at: Boottime, now: Boottime) -> Option<(Boottime, Duration)> {
        let delay = self.current(ended_at)?;
        let until = ended_at + delay;
        (until > now).then_some((until, delay))
    }

    /// Counts a restart that begins now, after a run that ended at `ended_at`.
    pub(super) fn count(&mut self, ended_at: Boottime, now: Boottime) {
        let next = self.current(ended_at).map_or(INITIAL, |d| d.saturating_mul(2).min(MAX));
        *self = CrashBackoff { delay: Some(next), counted_at: now };
    }
}

/// The delay before a failed action is tried again, given the number of failures in a row.
pub(super) fn after_failure(action: &Action, failures: u32) -> Duration {
    let (first, most) = match action {
        Action::MountVolumes => (500, 122_000),
        Action::EnsureImage(_) => (10_000, 300_000),
        Action::MakeSandbox(_) | Action::EnsurePause(_) => (1_000, 15_000),
        Action::Start { .. } | Action::ResizePod(_) => (10_000, 10_000),
        Action::Signal { .. } | Action::Kill { .. } => (200, 5_000),
        _ => (200, 60_000),
    };
    let factor = 1u64.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(u64::MAX);
    Duration::from_millis(u64::saturating_mul(first, factor).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Boottime {
        Boottime(Duration::from_secs(s))
    }

    #[test]
    fn first_restart_is_immediate_then_doubles_to_the_cap() {
        let mut b = CrashBackoff::default();
        let mut now = 0;
        assert_eq!(b.wait(at(0), at(0)), None);
        for want in [10, 20, 40, 80, 160, 300, 300] {
            b.count(at(now), at(now));
            assert_eq!(b.wait(at(now), at(now)), Some((at(now + want), Duration::from_secs(want))));
            assert_eq!(b.wait(at(now), at(now + want)), None);
            now += want;
        }
    }

    #[test]
    fn a_long_run_starts_anew() {
        let mut b = CrashBackoff::default();
        b.count(at(0), at(0));
        b.count(at(10), at(10));
        assert!(b.wait(at(611), at(611)).is_none(), "ended more than 600 s after the last count");
        b.count(at(611), at(611));
        assert_eq!(b.wait(at(612), at(612)), Some((at(622), Duration::from_secs(10))));
    }
}
