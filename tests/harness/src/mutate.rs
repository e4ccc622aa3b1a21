//! Mutation tests of parsers: nearly valid inputs, made from a valid corpus and a seed, fed to a parser one
//! by one.
//!
//! [`run`] counts the inputs that pass the syntax and those that are accepted, prints both and demands a
//! minimum of each: a parser rejects random noise at the first check, and the code behind it stays untested.
//! The run fails where an input panics, takes more than [`LIMIT`] of processor time or hangs, and names that
//! input: `BERTH_MUTATION=<number>` repeats it. Inputs are made by [`json`], [`wire`] (protobuf messages) and
//! [`bytes`](fn@bytes).

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

/// Maximum processor time of one input.
pub const LIMIT: Duration = Duration::from_secs(1);

/// Maximum wall-clock time of one input; a longer input counts as hanging. Generous, because the machine may
/// be busy.
const HANG: Duration = Duration::from_secs(60);

/// Number of inputs where `BERTH_MUTATIONS` is unset: a tenth of the long suite's number.
const DEFAULT_COUNT: u64 = 10_000;

/// Number of an input's characters that a failure shows.
const SHOWN: usize = 8_000;

/// Minimum share of inputs that pass the syntax, in percent.
const PAST_SYNTAX: u64 = 30;

/// How far the parser got with an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Rejected by syntax.
    Syntax,
    /// Syntactically right, rejected by meaning.
    Checks,
    /// Accepted.
    Taken,
}

/// Bytes that a failure prints as text.
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

/// Number of inputs of this run.
///
/// # Panics
/// `BERTH_MUTATIONS` is not a number. A default instead would shrink a requested run unnoticed.
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

/// Makes inputs and feeds them to the parser. With `BERTH_MUTATION`, only the input of that number runs and
/// is printed first.
///
/// # Panics
/// An input panics or takes too long, or too few inputs get far enough. A hanging input ends the whole
/// process.
pub fn run<I: fmt::Debug>(name: &str, make: impl Fn(&mut Rng) -> I, attempt: impl Fn(&I) -> Reached) {
    let (count, seed) = (count(), rng::seed());
    let only: Option<u64> = std::env::var("BERTH_MUTATION").ok().and_then(|n| n.parse().ok());
    let current = AtomicU64::new(0);
    let (end, ended) = mpsc::channel::<()>();
    let begun = Instant::now();
    let (mut past, mut taken, mut slowest) = (0, 0, (Duration::ZERO, 0));
    thread::scope(|scope| {
        let current = &current;
        // Dropped at the end of this closure, also on a panic; the watchdog then ends.
        let _end = end;
        scope.spawn(move || {
            if let Some(number) = stuck(HANG, &ended, current) {
                // Written past libtest's output capture: the process exits here and captured output would be
                // lost.
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
            // Shortened, because the number reproduces the whole input.
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

/// Number of the input that is still current after `beyond`; `None` where the other side ends first.
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

/// CPU time of this thread, so that a busy machine does not make an input slow.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Directory for files that are rewritten a hundred thousand times: in memory where the machine has such a
/// place.
///
/// # Errors
/// The directory cannot be made.
pub fn dir() -> io::Result<TempDir> {
    let mut named = tempfile::Builder::new();
    named.prefix("berth-mutations-");
    named.tempdir_in("/dev/shm").or_else(|_| named.tempdir())
}

/// Damages bytes in one to three places: flipped bits, lost or repeated stretches, an inserted piece, a cut
/// end. `pieces` are byte strings with a meaning in the format.
pub fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    for _ in 0..=rng.below(3) {
        let at = rng.index(bytes.len());
        let until = (at + 1 + rng.index(12)).min(bytes.len());
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..until)),
            2 => {
                let again = bytes[at..until].to_vec();
                bytes.splice(at..at, again);
            }
            3 | 4 if !pieces.is_empty() => {
                let piece = rng.pick(pieces).to_vec();
                // The piece replaces the bytes there, or comes before them.
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
