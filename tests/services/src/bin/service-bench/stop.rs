//! SIGHUP, SIGINT and SIGTERM end the measurement by an error, so that everything that it made is removed on
//! the way out. A second signal changes nothing; the longest step takes a few seconds.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Starts to listen for the signals. Call it before any other thread is started: threads inherit the mask.
pub(crate) fn listen() -> Result<()> {
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().context("cannot block the signals that end the program")?;
    let wait = move || {
        if signals.wait().is_ok() {
            ASKED.store(true, Ordering::Relaxed);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Fails once a signal has come.
pub(crate) fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::Relaxed), "ended by a signal");
    Ok(())
}
