//! Places where the kill suite ends the agent: before and after each kind of action. Compiled in by the feature
//! `failpoints` only.
//!
//! `BERTH_FAILPOINT=<before|after>:<kind>:<n>` kills the process with SIGKILL at the n-th time (from 1) that the place
//! is passed.

/// Which side of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Memory is stored, the action not begun.
    Before,
    /// The action has had its effect, nobody was told.
    After,
}

/// Passes the place.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn pass(_side: Side, _kind: &str) {}

/// Passes the place, or ends the process there.
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
            // Whether the signal could be sent shows at once: the next line is not reached.
            me.signal_number(9).ok();
        }
        loop {
            std::thread::park();
        }
    }
}
