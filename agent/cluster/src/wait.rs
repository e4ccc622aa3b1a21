//! Waits between tries. Pure but for the jitter, which the caller draws.

use std::time::Duration;

/// The wait after `failures` failures in a row (from 1 on): `first`, doubling up to `longest`.
pub(crate) fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1)).and_then(|times| first.checked_mul(times));
    doubled.map_or(longest, |wait| wait.min(longest))
}

/// `wait`, shorter or longer by up to the share `by`; `draw` is a number from 0 to 1.
pub(crate) fn jittered(wait: Duration, by: f64, draw: f64) -> Duration {
    wait.mul_f64((1.0 + by * (2.0 * draw.clamp(0.0, 1.0) - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let wait = |n| backoff(n, Duration::from_millis(200), Duration::from_secs(10)).as_millis();
        assert_eq!([0, 1, 2, 3, 6, 7, 1000].map(wait), [200, 200, 400, 800, 6400, 10_000, 10_000]);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let wait = |draw| jittered(Duration::from_secs(10), 0.04, draw).as_millis();
        assert_eq!([-1.0, 0.0, 0.5, 1.0, 7.0].map(wait), [9600, 9600, 10_000, 10_400, 10_400]);
    }
}
