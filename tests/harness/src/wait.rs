//! Waits for conditions, never for a fixed time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Default deadline: far above the duration of any operation, so that only a real failure reaches the
/// deadline.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polling interval for conditions that send no notification.
const PERIOD: Duration = Duration::from_millis(20);

/// Polls until `found` returns a value.
///
/// # Errors
/// No value came within `patience`; the message names the awaited condition.
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

/// Polls until `holds` returns true.
///
/// # Errors
/// As [`some`].
pub fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    some(what, patience, || holds().then_some(()))
}

/// Retries until an attempt succeeds. The last failure is the cause of the returned error.
///
/// # Errors
/// No attempt succeeded within `patience`.
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
