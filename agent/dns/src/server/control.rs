//! The local socket, and who is in charge of it.
//!
//! The lock is held by whoever serves the socket. One that finds it held tells the other to end; by then both answer
//! questions.

use super::Server;
use crate::{
    client::Client,
    error::Error,
    proto::{Reply, Request, receive, send},
};
use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{Instant, sleep},
};

/// How long another one may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Comes into charge and serves the socket. The lock is for as long as the result lives.
pub(super) async fn start(server: &Arc<Server>, tasks: &mut JoinSet<()>) -> Result<OwnedFd, Error> {
    let path = server.cfg.roots.dns_socket();
    let lock = take_lock(&server.cfg.roots.runtime_state.join("dns/lock"), &path).await?;
    let failed = |source| Error::Socket { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    tasks.spawn(accept(Arc::clone(server), listener));
    Ok(lock)
}

async fn take_lock(path: &Path, socket: &Path) -> Result<OwnedFd, Error> {
    let failed = |e: Errno| Error::File { path: path.into(), source: e.into() };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
    let (begun, client) = (Instant::now(), Client::new(socket));
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < PATIENCE => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.into() }),
            Err(error) => return Err(failed(error)),
        }
        // If it does not listen, it may be ending: the lock tells.
        if let Err(error) = client.end().await {
            tracing::debug!(%error, "the one in charge was not told to end");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Takes connections for ever.
async fn accept(server: Arc<Server>, listener: UnixListener) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                // A client that goes, or says what is no message, loses its connection.
                clients.spawn(async move { drop(serve(&server, stream).await) });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not taken");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(server: &Server, mut stream: UnixStream) -> io::Result<()> {
    loop {
        let reply = match receive(&mut stream).await? {
            Request::Status => Reply::Status(Box::new(server.status())),
            Request::End => Reply::Ending,
            Request::Unknown => Reply::Unsupported,
        };
        send(&mut stream, &reply).await?;
        if matches!(reply, Reply::Ending) {
            server.end.notify_one();
        }
    }
}
