//! Mutations of a valid corpus: inputs nearly right, made from a seed, fed to a parser one after the other.
//!
//! [`run`] counts how many get past the syntax and how many are taken, prints both and demands enough of each: random
//! noise would be refused at the door and test nothing behind it. It fails where an input panics, takes more than
//! [`LIMIT`] of processor time or does not end, and tells which one it was: `BERTH_MUTATION=<number>` is that input again.
//! What inputs are made of: [`json`], [`wire`] (protobuf messages) and [`bytes`](fn@bytes).

pub mod json;
pub mod wire;

use crate::rng::{self, Rng};
use nix::time::{ClockId, clock_gettime};
use std::{
    fmt,
    io::{self, Write as _},
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The most processor time that one input may take.
pub const LIMIT: Duration = Duration::from_secs(1);

/// The most time on the clock; beyond it the input is taken to hang. Generous, as the machine may be busy.
const HANG: Duration = Duration::from_secs(60);

/// How many inputs unless `BERTH_MUTATIONS` says otherwise: a tenth of what the long suite runs.
const DEFAULT_COUNT: u64 = 10_000;

/// How much of an input a failure shows, in characters.
const SHOWN: usize = 8_000;

/// How many of 100 inputs have to get past the syntax.
const PAST_SYNTAX: u64 = 30;

/// How far an input came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Refused for its form.
    Syntax,
    /// Its form is right, its meaning was refused.
    Checks,
    /// Accepted.
    Taken,
}

/// Bytes that a failure shows as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// How many inputs this run makes.
///
/// # Panics
/// `BERTH_MUTATIONS` is no number: a run that was asked for must not shrink unnoticed.
pub fn count() -> u64 {
    match std::env::var("BERTH_MUTATIONS") {
        Ok(text) => {
            let count = text.parse();
            assert!(count.is_ok(), "BERTH_MUTATIONS is {text:?}, which is no number");
            count.unwrap_or(DEFAULT_COUNT)
        }
        Err(_) => DEFAULT_COUNT,
    }
}

/// Makes inputs and tries them; with `BERTH_MUTATION` only the one of that number, which is shown first.
///
/// # Panics
/// An input panics or takes too long, or too few get far enough. One that hangs ends the process.
pub fn run<I: fmt::Debug>(name: &str, make: impl Fn(&mut Rng) -> I, attempt: impl Fn(&I) -> Reached) {
    let (count, seed) = (count(), rng::seed());
    let only: Option<u64> = std::env::var("BERTH_MUTATION").ok().and_then(|n| n.parse().ok());
    let current = AtomicU64::new(0);
    let (end, ended) = mpsc::channel::<()>();
    let begun = Instant::now();
    let (mut past, mut taken, mut slowest) = (0, 0, (Duration::ZERO, 0));
    thread::scope(|scope| {
        let current = &current;
        // Goes with this closure, also by a panic; then the watch ends.
        let _end = end;
        scope.spawn(move || {
            if let Some(number) = stuck(HANG, &ended, current) {
                // Not through the capture of the test's output, which ends with the process, as the input must.
                writeln!(io::stderr(), "hangs: {name}: mutation {number} of seed {seed}").unwrap_or_default();
                std::process::abort();
            }
        });
        for number in only.map_or(0..count, |n| n..n + 1) {
            current.store(number, Ordering::Relaxed);
            let input = make(&mut Rng::new(seed.rotate_left(32) ^ number));
            if only.is_some() {
                println!("{name}: {input:?}");
            }
            // Cut, as the number brings the whole of it again.
            let told = || {
                let input: String = format!("{input:?}").chars().take(SHOWN).collect();
                format!("{name}: mutation {number} of seed {seed}: {input}")
            };
            let from = processor_time();
            let reached = catch_unwind(AssertUnwindSafe(|| attempt(&input)));
            let took = processor_time().saturating_sub(from);
            match reached {
                Ok(Reached::Syntax) => {}
                Ok(Reached::Checks) => past += 1,
                Ok(Reached::Taken) => (past, taken) = (past + 1, taken + 1),
                Err(panic) => {
                    println!("panics: {}", told());
                    std::panic::resume_unwind(panic);
                }
            }
            assert!(took < LIMIT, "takes {took:?}: {}", told());
            slowest = slowest.max((took, number));
        }
    });
    if only.is_some() {
        return;
    }
    let percent = |n: u64| n * 100 / count.max(1);
    println!(
        "{name}: {count} mutations, {} % past the syntax, {} % taken, slowest {:?} (number {}), {:.1} s in all",
        percent(past),
        percent(taken),
        slowest.0,
        slowest.1,
        begun.elapsed().as_secs_f64()
    );
    assert!(percent(past) >= PAST_SYNTAX, "{name}: only {past} of {count} get past the syntax");
    assert!(
        percent(taken) >= 1 && taken < count,
        "{name}: {taken} of {count} are taken: what is behind the syntax is hardly tried"
    );
}

/// The number that stays the same for as long as this; nothing where the other side ends first.
fn stuck(beyond: Duration, ended: &mpsc::Receiver<()>, current: &AtomicU64) -> Option<u64> {
    let mut last = None;
    while ended.recv_timeout(beyond) == Err(mpsc::RecvTimeoutError::Timeout) {
        let number = current.load(Ordering::Relaxed);
        if last == Some(number) {
            return last;
        }
        last = Some(number);
    }
    None
}

/// What this thread has used; a busy machine does not make an input slow.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// A directory for files that are written a hundred thousand times: in memory, where there is such a place.
///
/// # Errors
/// It cannot be made.
pub fn dir() -> io::Result<TempDir> {
    let mut named = tempfile::Builder::new();
    named.prefix("berth-mutations-");
    named.tempdir_in("/dev/shm").or_else(|_| named.tempdir())
}

/// One of these.
///
/// # Panics
/// There is none.
pub fn pick<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[index(rng, of.len())]
}

/// A number below `len`; 0 where that is 0.
pub fn index(rng: &mut Rng, len: usize) -> usize {
    rng.below(len as u64) as usize
}

/// Damages bytes in one to three places: bits flipped, stretches lost or repeated, a piece put in, the end cut off.
/// `pieces` are what means something in the format.
pub fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    for _ in 0..=rng.below(3) {
        let at = index(rng, bytes.len());
        let until = (at + 1 + index(rng, 12)).min(bytes.len());
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..until)),
            2 => {
                let again = bytes[at..until].to_vec();
                bytes.splice(at..at, again);
            }
            3 | 4 if !pieces.is_empty() => {
                let piece = pick(rng, pieces).to_vec();
                // In place of what is there, or before it.
                let until = if rng.below(2) == 0 { at } else { until };
                bytes.splice(at..until, piece);
            }
            5 if !bytes.is_empty() => bytes[at] = rng.draw() as u8,
            _ if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            _ => bytes.push(rng.draw() as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_of_three(rng: &mut Rng) -> u64 {
        rng.below(3)
    }

    #[test]
    fn what_is_good_passes() {
        run("good", two_of_three, |n| {
            if *n == 0 { Reached::Syntax } else { [Reached::Checks, Reached::Taken][*n as usize - 1] }
        });
    }

    #[test]
    fn shares_that_say_nothing_are_failures() {
        for reached in [Reached::Syntax, Reached::Checks, Reached::Taken] {
            assert!(catch_unwind(|| run("bad", two_of_three, |_| reached)).is_err(), "{reached:?}");
        }
    }

    #[test]
    #[should_panic(expected = "the input's own")]
    fn a_panic_is_told() {
        run("panics", two_of_three, |n| {
            assert!(*n < 2, "the input's own");
            Reached::Taken
        });
    }

    #[test]
    #[should_panic(expected = "takes 1")]
    fn what_is_slow_is_told() {
        run("slow", two_of_three, |_| {
            let from = processor_time();
            while processor_time().saturating_sub(from) < LIMIT {}
            Reached::Taken
        });
    }

    #[test]
    fn what_does_not_end_is_told() {
        let (end, ended) = mpsc::channel();
        let (current, soon) = (AtomicU64::new(7), Duration::from_millis(5));
        assert_eq!(stuck(soon, &ended, &current), Some(7));
        drop(end);
        assert_eq!(stuck(soon, &ended, &current), None);
    }

    #[test]
    fn damage_changes_bytes_and_takes_none_at_all() {
        let mut changed = 0;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut some = b"some text of no length".to_vec();
            bytes(&mut rng, &mut some, &[b"piece"]);
            changed += u64::from(some != b"some text of no length");
            bytes(&mut rng, &mut Vec::new(), &[]);
        }
        assert!(changed > 180, "{changed}");
    }
}
