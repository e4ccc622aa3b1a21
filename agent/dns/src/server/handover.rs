//! Takeover from another `berth dns` without a lost question.
//!
//! The server that holds the lock is active. The new server receives the lock and the listening
//! sockets themselves (SCM_RIGHTS). It reads them beside the old server, binds the local socket,
//! and only then tells the old server to end. So there is one socket for each address and transport
//! from the first start on, and each question in it is read by one of the two. If the new server
//! ends halfway, the old one is still active.

use crate::{
    client::Client,
    error::Error,
    proto::{Reply, Request, encode, receive, receive_rest, send},
};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// Deadline of the other server for its part of the exchange.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the lock is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`).
pub(super) const FDS_MAX: usize = 253;

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
    lock: OwnedFd,
    path: PathBuf,
    client: Client,
}

/// Takes the lock, or takes over from the server that holds it.
///
/// # Errors
/// The lock cannot be opened, or another server holds it and does not hand over within
/// [`PATIENCE`].
pub(super) async fn begin(path: &Path, socket: &Path) -> Result<Start, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::File { path: path.into(), source: e.into() })?;
    let waiting = Waiting { lock, path: path.into(), client: Client::new(socket) };
    let begun = Instant::now();
    loop {
        if waiting.try_lock()? {
            return Ok(Start::Alone(waiting.lock));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Busy { path: path.into() });
        }
        match timeout(PATIENCE, ask(socket)).await {
            Ok(Ok(Asked::Taken(taken))) => return Ok(Start::Taken(taken)),
            Ok(Ok(Asked::Unknown)) => return Ok(Start::Beside(waiting)),
            Ok(Ok(Asked::Later)) => {}
            // A server that does not listen may be ending: the lock decides.
            Ok(Err(error)) => tracing::debug!(%error, "the one in charge was not asked to hand over"),
            Err(_silent) => return Err(Error::Busy { path: path.into() }),
        }
        sleep(AGAIN).await;
    }
}

enum Asked {
    Taken(Taken),
    Later,
    Unknown,
}

async fn ask(socket: &Path) -> io::Result<Asked> {
    let mut stream = UnixStream::connect(socket).await?;
    send(&mut stream, &Request::HandOver).await?;
    let (reply, descriptors) = receive_with(&mut stream).await?;
    let mut descriptors = descriptors.into_iter();
    match (reply, descriptors.next()) {
        (Reply::HandedOver, Some(lock)) => {
            Ok(Asked::Taken(Taken { lock, sockets: descriptors.collect(), old: Predecessor(stream) }))
        }
        (Reply::Unsupported, _) => Ok(Asked::Unknown),
        _ => Ok(Asked::Later),
    }
}

impl Waiting {
    fn try_lock(&self) -> Result<bool, Error> {
        match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(e) => Err(Error::File { path: self.path.clone(), source: e.into() }),
        }
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
                tracing::debug!(%error, "the one in charge was not told to end");
            }
            sleep(AGAIN).await;
        }
        Ok(self.lock)
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
                other => Err(io::Error::other(format!("answered {other:?}"))),
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
pub(super) async fn give(stream: &mut UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let exchange = async {
        send_with(stream, &Reply::HandedOver, descriptors).await?;
        match receive(stream).await? {
            Request::End => send(stream, &Reply::Ending).await,
            other => Err(io::Error::other(format!("said {other:?}"))),
        }
    };
    timeout(PATIENCE, exchange).await?
}

/// Writes one message with descriptors.
async fn send_with(
    to: &mut UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = encode(message)?;
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        Ok(rustix::net::sendmsg(&*to, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
    };
    let sent = to.async_io(Interest::WRITABLE, send).await?;
    to.write_all(bytes.get(sent..).unwrap_or_default()).await
}

/// Reads one message and its descriptors, which come with its first byte.
async fn receive_with<T: DeserializeOwned>(from: &mut UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let (mut head, mut descriptors) = ([0; 4], Vec::new());
    let receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut head)];
        let got = rustix::net::recvmsg(&*from, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok(got.bytes)
    };
    match from.async_io(Interest::READABLE, receive).await? {
        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
        got => from.read_exact(head.get_mut(got..).unwrap_or_default()).await?,
    };
    Ok((receive_rest(head, from).await?, descriptors))
}
