//! Takeover from another `berth dns` without a lost question.
//!
//! The server that holds the lock is active. The new server receives the lock and the listening
//! sockets themselves (SCM_RIGHTS). It reads them beside the old server, binds the local socket,
//! and only then tells the old server to end. So there is one socket for each address and transport
//! from the first start on, and each question in it is read by one of the two. If the new server
//! ends halfway, the old one is still active.

use crate::{client::Client, error::Error};
use berth_api::{
    dns::{MESSAGE_MAX, Reply, Request, encode},
    frame,
};
use berth_helper::{handover, lock::Lock};
use rustix::fd::{BorrowedFd, OwnedFd};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// Deadline of the other server for its part of the exchange.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the lock is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Result of a start.
#[derive(Debug)]
pub(super) enum Start {
    /// No server was active; the lock is held now.
    Alone(OwnedFd),
    /// The active server has handed over and waits for `End`.
    Taken(Taken),
    /// The active server cannot hand over: the new one listens beside it, then tells it to end.
    Beside(Waiting),
}

/// The resources that were handed over.
#[derive(Debug)]
pub(super) struct Taken {
    /// The lock, held by the old server too until it ends.
    pub(super) lock: OwnedFd,
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) old: Predecessor,
}

/// The old server after its handover.
#[derive(Debug)]
pub(super) struct Predecessor(UnixStream);

/// A server that waits for the lock.
#[derive(Debug)]
pub(super) struct Waiting {
    lock: Lock,
    path: PathBuf,
    client: Client,
}

/// Takes the lock, or takes over from the server that holds it.
///
/// # Errors
/// The lock cannot be opened, or another server holds it and does not hand over within
/// [`PATIENCE`].
pub(super) async fn start(path: &Path, socket: &Path) -> Result<Start, Error> {
    let lock = Lock::open(path).map_err(|source| Error::File { path: path.into(), source })?;
    let waiting = Waiting { lock, path: path.into(), client: Client::new(socket) };
    let begun = Instant::now();
    loop {
        if waiting.try_lock()? {
            return Ok(Start::Alone(waiting.lock.into_fd()));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Busy { path: path.into() });
        }
        match timeout(PATIENCE, request(socket)).await {
            Ok(Ok(Requested::Taken(taken))) => return Ok(Start::Taken(taken)),
            Ok(Ok(Requested::Unknown)) => return Ok(Start::Beside(waiting)),
            Ok(Ok(Requested::Later)) => {}
            // A server that does not listen may be ending: the lock decides.
            Ok(Err(error)) => tracing::debug!(%error, "cannot ask the active server to hand over"),
            Err(_silent) => return Err(Error::Busy { path: path.into() }),
        }
        sleep(RETRY).await;
    }
}

enum Requested {
    Taken(Taken),
    Later,
    Unknown,
}

async fn request(socket: &Path) -> io::Result<Requested> {
    let mut stream = UnixStream::connect(socket).await?;
    send(&mut stream, &Request::HandOver).await?;
    let (json, descriptors) = handover::receive(&mut stream, MESSAGE_MAX).await?;
    let reply = frame::decode(&json)?;
    let mut descriptors = descriptors.into_iter();
    match (reply, descriptors.next()) {
        (Reply::HandedOver, Some(lock)) => {
            Ok(Requested::Taken(Taken { lock, sockets: descriptors.collect(), old: Predecessor(stream) }))
        }
        (Reply::Unsupported, _) => Ok(Requested::Unknown),
        _ => Ok(Requested::Later),
    }
}

impl Waiting {
    fn try_lock(&self) -> Result<bool, Error> {
        self.lock.try_lock().map_err(|source| Error::File { path: self.path.clone(), source })
    }

    /// Asks the other server to end until the lock is free. Questions that it has not read by then
    /// are lost.
    pub(super) async fn lock(self) -> Result<OwnedFd, Error> {
        let begun = Instant::now();
        while !self.try_lock()? {
            if begun.elapsed() > PATIENCE {
                return Err(Error::Busy { path: self.path });
            }
            if let Err(error) = self.client.end().await {
                tracing::debug!(%error, "cannot ask the active server to end");
            }
            sleep(RETRY).await;
        }
        Ok(self.lock.into_fd())
    }
}

impl Predecessor {
    /// Tells the old server to end, once the new one is complete. The returned connection must be
    /// kept: the old server sees its close as the new server's end.
    ///
    /// # Errors
    /// The old server does not end: it has waited too long and is still active.
    pub(super) async fn end(mut self) -> io::Result<UnixStream> {
        let exchange = async {
            send(&mut self.0, &Request::End).await?;
            match receive(&mut self.0).await? {
                Reply::Ending => Ok(()),
                other => Err(io::Error::other(format!("the old server replied {other:?}"))),
            }
        };
        timeout(PATIENCE, exchange).await??;
        Ok(self.0)
    }
}

/// Hands over and waits for `End`.
///
/// # Errors
/// The new server disconnected, was silent for [`PATIENCE`], or sent something else: nothing is
/// handed over.
pub(super) async fn hand_over(stream: &mut UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let exchange = async {
        handover::send(stream, &encode(&Reply::HandedOver)?, descriptors).await?;
        match receive(stream).await? {
            Request::End => send(stream, &Reply::Ending).await,
            other => Err(io::Error::other(format!("the new server sent {other:?}"))),
        }
    };
    timeout(PATIENCE, exchange).await?
}

/// Writes one message.
pub(super) async fn send(to: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?).await
}

/// Reads one message.
pub(super) async fn receive<T: DeserializeOwned>(from: &mut UnixStream) -> io::Result<T> {
    Ok(frame::decode(&frame::read(from, MESSAGE_MAX).await?)?)
}
