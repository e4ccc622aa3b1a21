//! Who sends a request, and whether it is allowed. [`Authenticator`] asks the client certificate, then the bearer token;
//! [`Authorizer`] asks the API server. Answers of the API server are kept for a while, in caches with a bound.
//!
//! What cannot be decided is refused: a token that cannot be reviewed is 401, an access that cannot be reviewed is 500.

mod authenticate;
mod authorize;
mod cache;
pub(crate) mod certificate;

pub use authenticate::Authenticator;
pub use authorize::Authorizer;
pub(crate) use authorize::Refusal;

use crate::{Boxed, ReviewError};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Deadline of one request to the API server (the kubelet's 10 s).
const REVIEW: Duration = Duration::from_secs(10);

/// Tries of a review (`DefaultAuthWebhookRetryBackoff`: 500 ms, factor 1.5, five steps).
const TRIES: u32 = 5;

/// Longest wait between two tries, whatever the server asks for.
const LONGEST: Duration = Duration::from_secs(5);

/// Asks until there is an answer or no further try makes sense.
async fn asked<'a, T>(ask: impl Fn() -> Boxed<'a, Result<T, ReviewError>>) -> Result<T, ReviewError> {
    let (mut wait, mut left) = (Duration::from_millis(500), TRIES);
    loop {
        left -= 1;
        let answer = timeout(REVIEW, ask()).await.unwrap_or_else(|_elapsed| {
            let reason = format!("no answer within {REVIEW:?}");
            Err(ReviewError { reason, transient: false, retry_after: None })
        });
        match answer {
            Err(error) if left > 0 && error.transient => {
                sleep(error.retry_after.unwrap_or(wait).min(LONGEST)).await;
                wait = wait.mul_f32(1.5);
            }
            answer => return answer,
        }
    }
}
