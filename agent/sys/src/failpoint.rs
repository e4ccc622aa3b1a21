//! Failpoints: places before and after an effect where the kill suites end the agent. The feature `failpoints` compiles
//! them in.
//!
//! `BERTH_FAILPOINT=<before|after>:<kind>:<n>` kills the process with SIGKILL at the n-th passage of that place, counted
//! from 1.

/// The side of an effect on which a failpoint lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the effect begins.
    Before,
    /// After the effect and before anybody knows its result.
    After,
}

/// Carries out an effect between two failpoints of that kind.
pub fn step<T>(kind: &str, effect: impl FnOnce() -> T) -> T {
    pass(Side::Before, kind);
    let done = effect();
    pass(Side::After, kind);
    done
}

/// Does nothing without the feature.
#[cfg(not(feature = "failpoints"))]
pub fn pass(_side: Side, _kind: &str) {}

/// Ends the process where the failpoint is the configured one.
#[cfg(feature = "failpoints")]
#[expect(clippy::print_stderr, reason = "it stands in the agent's log, where the suites look")]
pub fn pass(side: Side, kind: &str) {
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
        eprintln!("failpoint {place}: the agent ends here");
        if let Ok(Some(me)) = crate::process::PidFd::open(std::process::id()) {
            // The process does not survive the signal. If sending failed, the loop below would keep the effect from
            // continuing.
            me.signal_number(9).ok();
        }
        loop {
            std::thread::park();
        }
    }
}
