//! How one `berth dns` takes over from another without a lost question.
//!
//! Whoever holds the lock is in charge. The next one gets the lock and the listening sockets themselves (SCM_RIGHTS):
//! it reads them beside the old one, binds the local socket, and only then tells the old one to end. So there is one
//! socket for each address and transport from the first start on, and whatever waits in it is read by one of the two.
//! If the next one dies halfway, the old one is still in charge.

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

/// How long another one may take for its part.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before the lock is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`).
pub(super) const FDS_MAX: usize = 253;

/// How one begins.
#[derive(Debug)]
pub(super) enum Start {
    /// Nobody was in charge; the lock is ours.
    Alone(OwnedFd),
    /// Another one has handed over, and waits to be told to end.
    Taken(Taken),
    /// Another one is in charge that knows of no handing over: listen beside it, then tell it to end.
    Beside(Waiting),
}

/// What was handed over.
#[derive(Debug)]
pub(super) struct Taken {
    /// Held by the old one too until it ends.
    pub(super) lock: OwnedFd,
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) old: Predecessor,
}

/// One that has handed over.
#[derive(Debug)]
pub(super) struct Predecessor(UnixStream);

/// Waits for the lock.
#[derive(Debug)]
pub(super) struct Waiting {
    lock: OwnedFd,
    path: PathBuf,
    client: Client,
}

/// Takes the lock, or over from whoever holds it.
///
/// # Errors
/// The lock cannot be opened, or another one holds it and does not yield within [`PATIENCE`].
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
            // If it does not listen, it may be ending: the lock tells.
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

    /// Tells the other one to end until the lock is free. A question that it has not read by then is lost with it.
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
    /// Tells it to end, once all that it did is done here. Keep the result: by its end it sees ours.
    ///
    /// # Errors
    /// It does not: it has waited for too long, is in charge still, and has to be left alone.
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

/// Hands over and waits to be told to end.
///
/// # Errors
/// The other one is gone, silent for [`PATIENCE`], or says something else: nothing is handed over.
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
