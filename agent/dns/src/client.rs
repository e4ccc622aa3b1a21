//! The agent's client of `berth dns`: asks for its status and keeps it running.
//!
//! The agent only starts the helper: `berth dns` continues when the agent ends. Where a service
//! manager runs it, [`ensure_running`] finds it answering and starts nothing.

use crate::{
    error::Error,
    proto::{Reply, Request, Status, receive, send},
};
use berth_core::error::Chain;
use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// Deadline of a request. A helper that needs longer counts as silent.
const SILENT: Duration = Duration::from_secs(2);

/// Time within which a started helper must answer.
const STARTS: Duration = Duration::from_secs(10);

/// A started helper that does not listen after this time is started again.
const STILLBORN: Duration = Duration::from_secs(1);

/// Client of `berth dns`.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the helper that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for the helper's status.
    ///
    /// # Errors
    /// Nothing listens on the socket, or the helper does not answer within 2 s.
    pub async fn status(&self) -> Result<Status, Error> {
        match self.ask("status", Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(Error::Unexpected { op: "status" }),
        }
    }

    /// Asks the helper to finish the questions in flight and to end. The addresses on `lo` stay.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn end(&self) -> Result<(), Error> {
        match self.ask("end", Request::End).await? {
            Reply::Ending => Ok(()),
            _ => Err(Error::Unexpected { op: "end" }),
        }
    }

    /// Returns when the helper closes the connection, because it ended or was replaced. Returns at
    /// once if nothing listens.
    pub async fn closed(&self) {
        if let Ok(mut stream) = UnixStream::connect(&self.socket).await {
            let mut byte = [0];
            // The helper sends nothing unasked, so any result of the read is the end of the
            // connection.
            let _end = stream.read(&mut byte).await;
        }
    }

    async fn ask(&self, op: &'static str, request: Request) -> Result<Reply, Error> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            send(&mut stream, &request).await?;
            receive::<Reply>(&mut stream).await
        };
        match timeout(SILENT, exchange).await {
            Ok(answer) => {
                answer.map_err(|source: io::Error| Error::Socket { path: self.socket.clone(), source })
            }
            Err(_elapsed) => Err(Error::Deadline { op, after: SILENT }),
        }
    }
}

/// Returns once a helper answers, and calls `spawn` if none does. Returns whether `spawn` was
/// called.
///
/// # Errors
/// The helper cannot be started, or does not answer within 10 s.
pub async fn ensure_running<E: From<Error>>(
    client: &Client,
    spawn: impl AsyncFn() -> Result<(), E>,
) -> Result<bool, E> {
    if client.status().await.is_ok() {
        return Ok(false);
    }
    spawn().await?;
    let (begun, mut spawned) = (Instant::now(), Instant::now());
    while begun.elapsed() < STARTS {
        match client.status().await {
            Ok(_) => return Ok(true),
            Err(Error::Socket { .. }) if spawned.elapsed() > STILLBORN => {
                spawn().await?;
                spawned = Instant::now();
            }
            Err(_) => sleep(Duration::from_millis(2)).await,
        }
    }
    Err(Error::Deadline { op: "start", after: STARTS }.into())
}

/// Runs for ever: starts `berth dns` when its socket closes.
pub async fn supervise<E: From<Error> + std::error::Error>(
    client: &Client,
    spawn: impl AsyncFn() -> Result<(), E>,
) -> Infallible {
    const FIRST: Duration = Duration::from_millis(10);
    let mut wait = FIRST;
    loop {
        match ensure_running(client, &spawn).await {
            Ok(_) => {
                let since = Instant::now();
                client.closed().await;
                // A helper that dies right after each start is not restarted in a tight loop.
                if since.elapsed() > Duration::from_secs(1) {
                    wait = FIRST;
                    continue;
                }
            }
            Err(error) => tracing::error!(error = %Chain(&error), "cluster DNS does not run"),
        }
        sleep(wait).await;
        wait = wait.saturating_mul(2).min(Duration::from_secs(2));
    }
}
