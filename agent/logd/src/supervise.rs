//! `berth logd` as a helper of the agent: the sign of life, and the work beside a running logd.

use crate::{client::Client, error::Error};
use berth_core::{error::Chain, roots::Roots};
use berth_helper::{Helper, Unanswered};
use std::{convert::Infallible, path::Path, time::Duration};
use tokio::time::sleep;

/// Deadline of a ping. A logd that needs longer counts as silent.
const PING: Duration = Duration::from_secs(2);

/// Pause before the streams are listed again.
const RETRY: Duration = Duration::from_secs(1);

/// Runs for ever: starts logd when its socket is silent or closes, and has the client hold the FIFOs
/// of all streams. While logd is stuck, output waits in the FIFOs. `spawn` is as in
/// [`berth_helper::ensure_running`].
pub async fn supervise(
    roots: &Roots,
    client: &Client,
    spawn: impl AsyncFn() -> Result<(), berth_helper::Error>,
) -> Infallible {
    let logd = Logd { roots, client, pings: Client::new(roots.logd_socket()) };
    berth_helper::supervise(&logd, spawn).await
}

struct Logd<'a> {
    roots: &'a Roots,
    client: &'a Client,
    /// A client for pings alone: a request of the other one that waits for logd must not delay them.
    pings: Client,
}

impl Helper for Logd<'_> {
    const NAME: &'static str = "logd";
    const LISTENS_WITHIN: Duration = Duration::from_millis(500);

    fn socket(&self) -> &Path {
        self.pings.socket()
    }

    async fn ping(&self) -> Result<(), Unanswered> {
        match self.pings.ping_within(PING).await {
            Ok(_) => Ok(()),
            Err(Error::Socket { .. }) => Err(Unanswered::Unreachable),
            Err(_) => Err(Unanswered::Silent),
        }
    }

    async fn while_running(&self) -> Infallible {
        while let Err(error) = self.client.adopt(self.roots).await {
            tracing::warn!(error = %Chain(&error), "cannot list the streams of logd; trying again");
            sleep(RETRY).await;
        }
        std::future::pending().await
    }
}
