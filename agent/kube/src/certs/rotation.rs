//! When a certificate is renewed, and when a renewal that failed is tried again. Pure.
//!
//! A certificate is renewed between 70 and 90 % of its life. The moment is drawn for each certificate, so that
//! nodes that joined together do not renew together. The life begins when the node gets the certificate: a
//! signer dates it back, the controller manager by five minutes, which may be more than the whole life. Tries
//! after a failure wait 2 s, doubling to 32 s (client-go's `util/certificate`), and two renewals are 2 s apart.
//! Times are those of the clock on the wall, because a certificate's are.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Earliest and latest share of a certificate's life at which it is renewed.
const SHARES: (f64, f64) = (0.7, 0.9);

/// First and longest wait between two tries.
const WAITS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(32));

/// Share by which a wait may be longer.
const JITTER: f64 = 0.1;

/// Longest time until the clock is looked at again: the clock may be set, or stand still while the machine
/// sleeps.
const LOOK: Duration = Duration::from_secs(3600);

/// The time in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Valid from this time on.
    pub not_before: Timestamp,
    /// Valid until this time.
    pub not_after: Timestamp,
}

/// The renewals of one certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// A number from 0 to 1: which share of its life the present certificate is used for.
    draw: f64,
    /// Time at which the node got the present certificate, if this agent saw it.
    since: Option<Timestamp>,
    failures: u32,
    /// Before this time there is no further try.
    not_before: Option<Timestamp>,
}

impl Validity {
    /// Whether the certificate has ended.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        now >= self.not_after
    }
}

impl Rotation {
    /// The renewals from now on. `draw` is a random number from 0 to 1.
    pub fn new(draw: f64) -> Rotation {
        Rotation { draw: draw.clamp(0.0, 1.0), since: None, failures: 0, not_before: None }
    }

    /// The time from which a new certificate is requested. `held` is the present one; `None` if there is
    /// none, or none for the wanted names.
    pub fn due(&self, held: Option<Validity>, now: Timestamp) -> Timestamp {
        let due = held.map_or(now, |held| {
            let begin = self.since.map_or(held.not_before, |since| since.max(held.not_before));
            let life = held.not_after.duration_since(begin).max(SignedDuration::ZERO);
            let share = SHARES.0 + (SHARES.1 - SHARES.0) * self.draw;
            let part = life.as_secs_f64() * share;
            let part = SignedDuration::try_from_secs_f64(part).unwrap_or(SignedDuration::MAX);
            begin.saturating_add(part).map_or(held.not_after, |due| due.min(held.not_after))
        });
        // A wait that ends later than any can was made before the clock was set back.
        let longest = now.saturating_add(WAITS.1.mul_f64(1.0 + JITTER)).unwrap_or(Timestamp::MAX);
        self.not_before.filter(|wait| *wait <= longest).map_or(due, |wait| due.max(wait))
    }

    /// The time until a certificate is requested, or until the clock is looked at again; zero: now.
    pub fn wait(&self, held: Option<Validity>, now: Timestamp) -> Duration {
        let left = self.due(held, now).duration_since(now);
        Duration::try_from(left).unwrap_or(Duration::ZERO).min(LOOK)
    }

    /// Records that a request failed. `draw` is a random number from 0 to 1.
    pub fn failed(&mut self, now: Timestamp, draw: f64) {
        let doubled = 2_u32.checked_pow(self.failures).and_then(|times| WAITS.0.checked_mul(times));
        let wait = doubled.map_or(WAITS.1, |wait| wait.min(WAITS.1));
        let wait = wait.mul_f64(1.0 + JITTER * draw.clamp(0.0, 1.0));
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.checked_add(wait).ok();
    }

    /// Records that there is a new certificate. `draw` is a random number from 0 to 1.
    pub fn renewed(&mut self, now: Timestamp, draw: f64) {
        let not_before = now.checked_add(WAITS.0).ok();
        *self = Rotation { since: Some(now), not_before, ..Rotation::new(draw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_000_000 + second).unwrap()
    }

    fn life(from: i64, to: i64) -> Option<Validity> {
        Some(Validity { not_before: at(from), not_after: at(to) })
    }

    #[test]
    fn a_certificate_is_renewed_in_a_fifth_of_its_life() {
        let due = |draw, held, now| Rotation::new(draw).due(held, at(now)).duration_since(at(0)).as_secs();
        for (draw, held, now, want) in [
            (0.0, life(0, 1000), 0, 700),
            (0.5, life(0, 1000), 0, 800),
            (1.0, life(0, 1000), 0, 900),
            (7.0, life(0, 1000), 0, 900),
            // Already late, and ended: at once.
            (0.0, life(0, 1000), 950, 700),
            (0.0, life(0, 1000), 5000, 700),
            // No certificate: now.
            (0.5, None, 33, 33),
            // A certificate whose end is before its beginning.
            (0.5, life(100, 0), 0, 0),
        ] {
            assert_eq!(due(draw, held, now), want, "{draw} {held:?} {now}");
        }
        let wait = |held, now| Rotation::new(0.0).wait(held, at(now)).as_secs();
        assert_eq!([wait(life(0, 1000), 0), wait(life(0, 1000), 700), wait(life(0, 1000), 900)], [700, 0, 0]);
        assert_eq!(wait(life(0, 31_536_000), 0), 3600, "the clock is looked at again");
    }

    #[test]
    fn tries_wait_longer_after_each_failure_and_soon_again_after_a_success() {
        let mut rotation = Rotation::new(0.5);
        let mut wait = |draw| {
            rotation.failed(at(0), draw);
            rotation.wait(None, at(0)).as_millis()
        };
        assert_eq!([(); 7].map(|()| wait(0.0)), [2000, 4000, 8000, 16_000, 32_000, 32_000, 32_000]);
        assert_eq!(wait(1.0), 35_200);
        let mut set_back = rotation.clone();
        set_back.failed(at(1_000_000), 0.0);
        assert_eq!(set_back.wait(None, at(0)), Duration::ZERO, "a clock that is set back holds up nothing");
        rotation.renewed(at(0), 0.0);
        assert_eq!([0, 1, 2].map(|now| rotation.wait(None, at(now)).as_secs()), [2, 1, 0]);
    }

    #[test]
    fn a_certificate_that_is_dated_back_lives_from_when_the_node_has_it() {
        // The controller manager's certificate of 40 s: it is older than 70 % of its life when it comes.
        let held = life(-300, 40);
        let mut rotation = Rotation::new(0.0);
        rotation.renewed(at(0), 0.5);
        assert_eq!(rotation.due(held, at(0)), at(32));
        // An agent that starts again does not know, and renews once.
        assert!(Rotation::new(0.5).due(held, at(1)) < at(1));
        // The clock was set back by a day since.
        let mut set_back = Rotation::new(0.0);
        set_back.renewed(at(86_400), 0.5);
        assert_eq!(set_back.due(held, at(0)), at(40));
    }

    proptest! {
        /// A node for a long time, with a signer that fails and delays at random.
        #[test]
        fn a_certificate_is_always_at_hand_unless_the_signer_fails_to_its_end(
            lifetime in 60_i64..3_000_000,
            dated_back in 0_i64..600,
            answers in proptest::collection::vec((any::<bool>(), 0_i64..20, 0.0_f64..1.0), 1..20),
        ) {
            let (mut now, mut rotation) = (at(0), Rotation::new(0.3));
            let mut held = Validity { not_before: at(0), not_after: at(lifetime) };
            let (mut failing_since, mut got): (Option<Timestamp>, _) = (None, at(0));
            for (signed, delay, draw) in answers {
                // Sleeps in pieces, as the task does.
                let mut slept = 0_u32;
                loop {
                    let wait = rotation.wait(Some(held), now);
                    if wait.is_zero() {
                        break;
                    }
                    prop_assert!(wait <= LOOK);
                    now = now.checked_add(wait).unwrap();
                    slept += 1;
                    prop_assert!(slept < 20_000, "the wait ends");
                }
                let share =
                    now.duration_since(got).as_secs_f64() / held.not_after.duration_since(got).as_secs_f64();
                if failing_since.is_none() {
                    prop_assert!((0.699..0.901).contains(&share), "{}", share);
                }
                // A certificate ends only while its renewal fails.
                if held.has_ended(now) {
                    prop_assert!(failing_since.is_some());
                }
                now = now.checked_add(SignedDuration::from_secs(delay)).unwrap();
                if signed {
                    got = now;
                    held = Validity {
                        not_before: now.checked_sub(SignedDuration::from_secs(dated_back)).unwrap(),
                        not_after: now.checked_add(SignedDuration::from_secs(lifetime)).unwrap(),
                    };
                    failing_since = None;
                    rotation.renewed(now, draw);
                } else {
                    failing_since.get_or_insert(now);
                    rotation.failed(now, draw);
                    let wait = rotation.wait(Some(held), now);
                    prop_assert!(wait >= WAITS.0 && wait <= WAITS.1.mul_f64(1.0 + JITTER), "{:?}", wait);
                }
            }
        }
    }
}
