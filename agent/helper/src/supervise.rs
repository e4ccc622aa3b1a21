//! Keeping a helper running.
//!
//! The agent only starts its helpers: they continue when the agent ends. Where a service manager
//! runs a helper, [`ensure_running`] finds it answering and starts nothing.

use crate::{Error, socket};
use berth_core::error::Chain;
use std::{convert::Infallible, future::Future, path::Path, time::Duration};
use tokio::time::{Instant, sleep};

/// Time within which a started helper must answer.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two questions to a helper that is starting.
const POLL: Duration = Duration::from_millis(2);

/// The shortest and the longest pause before a helper is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// A helper that ran for less than this is started again after a pause.
const STABLE: Duration = Duration::from_secs(1);

/// A helper as its supervisor sees it.
pub trait Helper {
    /// Name in logs and errors.
    const NAME: &'static str;

    /// A started helper that does not listen after this time is started again.
    const LISTENS_WITHIN: Duration;

    /// The helper's local socket.
    fn socket(&self) -> &Path;

    /// Asks the helper for a sign of life, with a deadline.
    fn ping(&self) -> impl Future<Output = Result<(), Unanswered>>;

    /// Work beside a running helper, cancelled when its socket closes. Never returns.
    fn while_running(&self) -> impl Future<Output = Infallible> {
        std::future::pending()
    }
}

/// Reason why a ping failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// Nothing listens on the socket, or the connection broke.
    Unreachable,
    /// The helper listens, but did not answer as expected within the deadline.
    Silent,
}

/// Returns once the helper answers, and calls `spawn` if it does not. Returns whether `spawn` was
/// called.
///
/// `spawn` starts the program and returns without waiting for it, for example by
/// [`spawn_detached`](crate::spawn_detached). It also does whatever else the helper needs, such as a
/// cgroup of its own.
///
/// # Errors
/// The helper cannot be started, or does not answer within [`ANSWERS_WITHIN`]. A stopped or stuck
/// helper keeps its lock, so that a second one ends by itself: then the error is [`Error::Silent`].
pub async fn ensure_running<H: Helper>(
    helper: &H,
    spawn: impl AsyncFn() -> Result<(), Error>,
) -> Result<bool, Error> {
    if helper.ping().await.is_ok() {
        return Ok(false);
    }
    let begun = Instant::now();
    spawn().await?;
    let mut spawned = Instant::now();
    loop {
        match helper.ping().await {
            Ok(()) => return Ok(true),
            // The process died at its start. If it is only slow, the next one takes over from it.
            Err(Unanswered::Unreachable) if spawned.elapsed() > H::LISTENS_WITHIN => {
                spawn().await?;
                spawned = Instant::now();
            }
            Err(_) => {}
        }
        if begun.elapsed() >= ANSWERS_WITHIN {
            return Err(Error::Silent { helper: H::NAME, after: ANSWERS_WITHIN });
        }
        sleep(POLL).await;
    }
}

/// Runs for ever: starts the helper when its socket is silent or closes.
pub async fn supervise<H: Helper>(helper: &H, spawn: impl AsyncFn() -> Result<(), Error>) -> Infallible {
    let (shortest, longest) = BACKOFF;
    let mut pause = shortest;
    loop {
        match ensure_running(helper, &spawn).await {
            Ok(_) => {
                let since = Instant::now();
                // Both run side by side: work that waits for the helper must not delay its restart.
                tokio::select! {
                    () = socket::closed(helper.socket()) => {}
                    never = helper.while_running() => match never {},
                }
                if since.elapsed() > STABLE {
                    pause = shortest;
                    continue;
                }
            }
            Err(error) => {
                tracing::error!(helper = H::NAME, error = %Chain(&error), "helper does not run; trying again");
            }
        }
        sleep(pause).await;
        pause = pause.saturating_mul(2).min(longest);
    }
}
