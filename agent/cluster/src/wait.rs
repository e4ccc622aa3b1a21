//! Waits between tries. Pure but for the jitter, which the caller draws.

pub(crate) use berth_core::time::backoff;
use std::time::Duration;

/// `wait`, shorter or longer by up to the share `by`; `draw` is a number from 0 to 1.
pub(crate) fn jittered(wait: Duration, by: f64, draw: f64) -> Duration {
    wait.mul_f64((1.0 + by * (2.0 * draw.clamp(0.0, 1.0) - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_share() {
        let wait = |draw| jittered(Duration::from_secs(10), 0.04, draw).as_millis();
        assert_eq!([-1.0, 0.0, 0.5, 1.0, 7.0].map(wait), [9600, 9600, 10_000, 10_400, 10_400]);
    }
}
