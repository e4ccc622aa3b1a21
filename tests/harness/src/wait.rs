//! Waiting for a condition, never for a time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// The bound where nothing better is known: far above what anything takes, so that only a real failure meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that nobody announces.
const PERIOD: Duration = Duration::from_millis(20);

/// Looks until `found` gives something.
///
/// # Errors
/// It did not within `patience`; the message says what was waited for.
pub fn some<T>(what: &str, patience: Duration, mut found: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {} s in vain until {what}", patience.as_secs());
        }
        std::thread::sleep(PERIOD);
    }
}

/// Looks until `holds`.
///
/// # Errors
/// As [`some`].
pub fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    some(what, patience, || holds().then_some(()))
}

/// Tries until it succeeds; the last failure is the error's cause.
///
/// # Errors
/// It never did within `patience`.
pub fn ok<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("waited {} s in vain until {what}", patience.as_secs())));
            }
            Err(_not_yet) => std::thread::sleep(PERIOD),
        }
    }
}
