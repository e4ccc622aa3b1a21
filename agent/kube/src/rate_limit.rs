//! Limit of requests per second: a token bucket, as in client-go (`util/flowcontrol`).
//!
//! [`TokenBucket`] is pure. A caller gets its place at once, with the time to wait for it, so that callers
//! are served in their order.

use std::time::Duration;

/// A bucket that fills by `per_second` tokens a second up to `burst`.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    /// Tokens at the time `filled`; negative while callers wait for their tokens.
    tokens: f64,
    /// Time up to which the bucket was filled, on the callers' clock.
    filled: Duration,
}

impl TokenBucket {
    /// A full bucket. A rate that is not above zero counts as one token a second.
    pub fn new(per_second: f64, burst: u32) -> TokenBucket {
        let per_second = if per_second.is_finite() && per_second > 0.0 { per_second } else { 1.0 };
        TokenBucket { per_second, burst: f64::from(burst), tokens: f64::from(burst), filled: Duration::ZERO }
    }

    /// Takes a token at the time `now` of a clock that is never set back. Returns the time that the caller
    /// has to wait for its token; zero if the token is available at once.
    pub fn take(&mut self, now: Duration) -> Duration {
        self.fill(now);
        self.tokens -= 1.0;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.tokens / self.per_second).unwrap_or(Duration::MAX)
    }

    /// Takes a token only if one is available. Returns whether it did.
    pub fn try_take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = TokenBucket::new(50.0, 100);
        for n in 0..100 {
            assert_eq!(bucket.take(ms(0)), Duration::ZERO, "{n}");
        }
        assert_eq!(bucket.take(ms(0)), ms(20));
        assert_eq!(bucket.take(ms(0)), ms(40), "the next stands behind");
        assert!(!bucket.try_take(ms(30)));
        assert_eq!(bucket.take(ms(60)), Duration::ZERO);
        assert!(bucket.try_take(ms(1_000_000)));
    }

    proptest! {
        #[test]
        fn no_span_of_time_has_more_than_the_burst_and_its_rate(
            steps in proptest::collection::vec(0u64..200, 1..200),
        ) {
            let (mut bucket, mut now, mut served) = (TokenBucket::new(10.0, 5), 0, Vec::new());
            for step in steps {
                now += step;
                served.push(ms(now) + bucket.take(ms(now)));
            }
            for (i, from) in served.iter().enumerate() {
                for (n, until) in served.iter().enumerate().skip(i) {
                    let allowed = 5.0 + until.saturating_sub(*from).as_secs_f64() * 10.0;
                    prop_assert!((n - i + 1) as f64 <= allowed + 1.01, "{} in {:?}", n - i + 1, *until - *from);
                }
            }
        }
    }
}
