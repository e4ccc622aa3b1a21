//! Failpoints: places before and after each kind of action where the kill suite ends the agent. The feature
//! `failpoints` compiles them in.
//!
//! `BERTH_FAILPOINT=<before|after>:<kind>:<n>` kills the process with SIGKILL at the n-th passage of that
//! place, counted from 1.

/// The side of an action on which a failpoint lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// After memory is stored and before the action begins.
    Before,
    /// After the action's effect and before the worker knows its result.
    After,
}

/// Does nothing without the feature.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn pass(_side: Side, _kind: &str) {}

/// Ends the process where the failpoint is the configured one.
#[cfg(feature = "failpoints")]
pub(crate) fn pass(side: Side, kind: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("BERTH_FAILPOINT").ok()?;
        let (place, n) = text.rsplit_once(':')?;
        Some((place.to_owned(), n.parse().ok()?))
    });
    let Some((place, n)) = wanted else { return };
    let side = if side == Side::Before { "before" } else { "after" };
    if *place == format!("{side}:{kind}") && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *n {
        tracing::warn!(place, "failpoint: the agent ends here");
        if let Ok(Some(me)) = berth_sys::process::PidFd::open(std::process::id()) {
            // The process does not survive the signal. If sending failed, the loop below would keep the
            // action from continuing.
            me.signal_number(9).ok();
        }
        loop {
            std::thread::park();
        }
    }
}
