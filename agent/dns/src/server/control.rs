//! The local socket of the active server.

use super::{Server, bind::Pair, handover};
use crate::{
    error::Error,
    proto::{Reply, Request, receive, send},
};
use rustix::fd::{AsFd as _, OwnedFd};
use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
    time::sleep,
};

/// Reason for the end of the server.
#[derive(Debug)]
pub(super) enum End {
    /// A client requested it.
    Told,
    /// Another server has taken over. Its connection stays open as long as it runs.
    Replaced(UnixStream),
}

/// The resources of the active server.
#[derive(Debug)]
pub(super) struct Charge {
    /// The server.
    pub(super) server: Arc<Server>,
    /// The lock, held as long as this value lives.
    pub(super) lock: OwnedFd,
    /// The sockets for questions.
    pub(super) sockets: Vec<Pair>,
    /// Channel for the reason to end. The first one counts.
    pub(super) end: mpsc::Sender<End>,
}

#[derive(Debug)]
struct Control {
    charge: Charge,
    path: PathBuf,
    /// Whether another server is taking over.
    handing: AtomicBool,
    /// Notified when a takeover fails.
    lost: Notify,
}

/// Serves the local socket.
///
/// # Errors
/// The socket cannot be bound.
pub(super) fn start(charge: Charge, tasks: &mut JoinSet<()>) -> Result<AbortHandle, Error> {
    let path = charge.server.cfg.roots.dns_socket();
    let listener = bind(&path).map_err(|source| Error::Socket { path: path.clone(), source })?;
    let control = Control { charge, path, handing: AtomicBool::new(false), lost: Notify::new() };
    Ok(tasks.spawn(accept(Arc::new(control), listener)))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    berth_sys::fs::remove_if_there(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts connections for ever.
async fn accept(control: Arc<Control>, mut listener: UnixListener) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = control.lost.notified() => {
                // The other server may have bound the path already.
                match bind(&control.path) {
                    Ok(again) => listener = again,
                    Err(error) => tracing::error!(%error, "the local socket is not bound again"),
                }
                continue;
            }
        };
        match taken {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                // A client that disconnects or sends an invalid message loses its connection.
                clients.spawn(async move { drop(control.serve(stream).await) });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not taken");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Control {
    async fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let reply = match receive(&mut stream).await? {
                Request::Status => Reply::Status(Box::new(self.charge.server.status())),
                Request::End => Reply::Ending,
                Request::HandOver if 1 + 2 * self.charge.sockets.len() > handover::FDS_MAX => {
                    Reply::Unsupported
                }
                Request::HandOver if self.handing.swap(true, Ordering::Relaxed) => Reply::Busy,
                Request::HandOver => {
                    self.hand_over(stream).await;
                    return Ok(());
                }
                Request::Unknown => Reply::Unsupported,
            };
            send(&mut stream, &reply).await?;
            if matches!(reply, Reply::Ending) {
                self.end(End::Told);
            }
        }
    }

    async fn hand_over(&self, mut stream: UnixStream) {
        let sockets = self.charge.sockets.iter().flat_map(Pair::descriptors);
        let descriptors: Vec<_> = std::iter::once(self.charge.lock.as_fd()).chain(sockets).collect();
        match handover::give(&mut stream, &descriptors).await {
            Ok(()) => self.end(End::Replaced(stream)),
            Err(error) => {
                tracing::warn!(%error, "not handed over");
                self.handing.store(false, Ordering::Relaxed);
                self.lost.notify_one();
            }
        }
    }

    fn end(&self, end: End) {
        // A full or closed channel means that the server is ending already.
        let _ending = self.charge.end.try_send(end);
    }
}
