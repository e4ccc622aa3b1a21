//! Races between what is tested and an attacker, each on a thread of its own.
//!
//! The number of rounds is that of `BERTH_ATTACKS`, or a test's own for a short run. A round that blocks ends the process,
//! because a thread that blocks in the kernel cannot be ended, and so that it does not go unseen.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The longest time of a round before it counts as blocked.
pub const BLOCKED: Duration = Duration::from_secs(30);

/// Flag that ends another thread when it is dropped, also after a failed assertion; the thread's scope would otherwise wait
/// for ever.
#[derive(Debug)]
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The number of rounds: `BERTH_ATTACKS`, or `few`.
///
/// # Panics
/// `BERTH_ATTACKS` is no number.
pub fn rounds(few: u32) -> u32 {
    let told = std::env::var("BERTH_ATTACKS").ok().map(|text| text.parse::<u32>());
    assert!(!matches!(told, Some(Err(_))), "BERTH_ATTACKS is no number");
    told.and_then(Result::ok).unwrap_or(few)
}

/// Repeats `round` while another thread repeats `attack`, which returns whether its exchange took place. Returns the number
/// of rounds and of exchanges.
///
/// # Panics
/// There was less than one exchange for every ten rounds.
pub fn race(rounds: u32, attack: impl Fn(u32) -> bool + Sync, mut round: impl FnMut(u32)) -> (u32, u32) {
    race_until(rounds, attack, |n| {
        round(n);
        true
    })
}

/// As [`race`], with more rounds until `round` says that what it must see was seen often enough: how the two threads meet is
/// the scheduler's choice.
///
/// # Panics
/// As [`race`].
pub fn race_until(
    rounds: u32,
    attack: impl Fn(u32) -> bool + Sync,
    mut round: impl FnMut(u32) -> bool,
) -> (u32, u32) {
    let (done, at, exchanges) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut last, mut since) = (0, Instant::now());
            for n in 0.. {
                if done.load(Ordering::Acquire) {
                    break;
                }
                exchanges.fetch_add(u32::from(attack(n)), Ordering::Relaxed);
                let now = at.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                abort_after(BLOCKED, since, "a round of an attack");
            }
        });
        let _stop = Stop(&done);
        let (mut n, mut enough) = (0, false);
        while n < rounds
            || ((exchanges.load(Ordering::Relaxed) < rounds / 10 || !enough) && n < rounds.saturating_mul(50))
        {
            n += 1;
            at.store(n, Ordering::Relaxed);
            enough = round(n);
        }
    });
    let (rounds_made, exchanges) = (at.into_inner(), exchanges.into_inner());
    assert!(exchanges >= rounds / 10, "no race: {exchanges} exchanges in {rounds_made} rounds");
    (rounds_made, exchanges)
}

/// Ends the process if what began at `since` has taken longer than the limit.
pub fn abort_after(limit: Duration, since: Instant, what: &str) {
    if since.elapsed() > limit {
        // What the macros print is kept back until the test's end, which does not come.
        std::io::stderr().write_all(format!("{what} blocks\n").as_bytes()).ok();
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_goes_on_until_enough_was_seen() {
        let mut seen = 0;
        let (rounds, exchanges) = race_until(
            10,
            |_| true,
            |_| {
                std::thread::yield_now();
                seen += 1;
                seen >= 30
            },
        );
        assert!(rounds >= 30 && exchanges >= 1, "{rounds} rounds, {exchanges} exchanges");
    }

    #[test]
    #[should_panic(expected = "no race: 0 exchanges")]
    fn a_race_without_exchanges_fails() {
        race(20, |_| false, |_| ());
    }
}
