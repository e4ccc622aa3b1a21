//! Clock readings as plain data. The callers read the clocks and pass the readings in.

use serde::{Deserialize, Serialize};
use std::{ops::Add, time::Duration};

/// A point on `CLOCK_BOOTTIME`, which is never set back, continues during suspend, and starts at zero with
/// each boot. All waits and all back-off use this clock, so that a jump of the wall clock affects no pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Boottime(pub Duration);

impl Boottime {
    /// The time from `earlier` to this point; zero if `earlier` is later than this point.
    pub fn since(self, earlier: Boottime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Boottime {
    type Output = Boottime;
    fn add(self, d: Duration) -> Boottime {
        Boottime(self.0.saturating_add(d))
    }
}

/// A point of wall-clock time in nanoseconds since 1970 (UTC), for display. No decision depends on it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Wall(pub i64);

impl Wall {
    /// Whole seconds since 1970, the precision of Kubernetes' `metav1.Time`.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }
}

/// Readings of both clocks, taken together for one decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Now {
    /// The boot clock, for waits.
    pub boottime: Boottime,
    /// The wall clock, for display.
    pub wall: Wall,
}
