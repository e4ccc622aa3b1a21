//! Clocks as plain data: the shell reads them and hands them in.

use serde::{Deserialize, Serialize};
use std::{ops::Add, time::Duration};

/// A point on `CLOCK_BOOTTIME`: never set back, goes on during suspend, starts anew with each boot. All waiting and
/// all back-off is measured on it, so that a clock jump moves no pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Boottime(pub Duration);

impl Boottime {
    /// The time from `earlier` to this point, zero where it lies ahead.
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

/// A point of wall-clock time in nanoseconds since 1970 (UTC), for what people read; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Wall(pub i64);

impl Wall {
    /// Whole seconds since 1970, the precision of Kubernetes' `metav1.Time`.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }
}

/// Both clocks, read together once for one decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Now {
    /// For waiting.
    pub boottime: Boottime,
    /// For showing.
    pub wall: Wall,
}
