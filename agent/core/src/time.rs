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

/// Reads a duration as Go writes it (`time.ParseDuration`), such as `90s`, `1h30m` or `1.5h`; `None` for a malformed or a
/// negative one.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, unit_on) = rest.split_at(digits);
        let unit_ends = unit_on.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_on.len());
        let (unit, next) = unit_on.split_at(unit_ends);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(scale)?)?;
        let mut part = scale;
        for digit in fraction.bytes() {
            part /= 10;
            nanos = nanos.checked_add(u128::from(digit - b'0') * part)?;
        }
        rest = next;
    }
    // Go's durations are 63 bits of nanoseconds.
    i64::try_from(nanos).ok().and_then(|n| u64::try_from(n).ok()).map(Duration::from_nanos)
}

/// The wait after `failures` failures in a row (from 1 on): `first`, doubling up to `longest`.
pub fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1)).and_then(|times| first.checked_mul(times));
    doubled.map_or(longest, |wait| wait.min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("500ms", 500),
            ("2000us", 2),
            ("12h0m0s", 43_200_000),
        ] {
            assert_eq!(parse_go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "m", ".s", "1.2.3s", "1d", "-1s", "99999999999999999999h", "\u{e9}", "s5"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let wait = |n| backoff(n, Duration::from_millis(200), Duration::from_secs(10)).as_millis();
        assert_eq!([0, 1, 2, 3, 6, 7, 1000].map(wait), [200, 200, 400, 800, 6400, 10_000, 10_000]);
    }
}
