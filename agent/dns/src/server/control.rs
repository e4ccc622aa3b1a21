//! The local socket of the active server.

use super::{Server, bind::Pair, handover};
use crate::error::Error;
use berth_api::dns::{Reply, Request};
use berth_helper::{handover::FDS_MAX, socket};
use rustix::fd::{AsFd as _, OwnedFd};
use std::{
    io,
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
    Requested,
    /// Another server has taken over. Its connection stays open as long as it runs.
    Replaced(UnixStream),
}

/// The resources of the active server.
#[derive(Debug)]
pub(super) struct Active {
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
    active: Active,
    path: PathBuf,
    /// Whether another server is taking over.
    handing_over: AtomicBool,
    /// Notified when a takeover fails.
    takeover_failed: Notify,
}

/// Serves the local socket.
///
/// # Errors
/// The socket cannot be bound.
pub(super) fn start(active: Active, tasks: &mut JoinSet<()>) -> Result<AbortHandle, Error> {
    let path = active.server.cfg.roots.dns_socket();
    let listener = listen(&path).map_err(|source| Error::LocalSocket { path: path.clone(), source })?;
    let control =
        Control { active, path, handing_over: AtomicBool::new(false), takeover_failed: Notify::new() };
    Ok(tasks.spawn(accept(Arc::new(control), listener)))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = socket::listen(path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Accepts connections for ever.
async fn accept(control: Arc<Control>, mut listener: UnixListener) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = control.takeover_failed.notified() => {
                // The other server may have bound the path already.
                match listen(&control.path) {
                    Ok(again) => listener = again,
                    Err(error) => tracing::error!(%error, "cannot listen on the local socket again"),
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                // A client that disconnects or sends an invalid message loses its connection.
                clients.spawn(async move { drop(control.serve(stream).await) });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the local socket");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Control {
    async fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let reply = match handover::receive(&mut stream).await? {
                Request::Status => Reply::Status(Box::new(self.active.server.status())),
                Request::End => Reply::Ending,
                Request::HandOver if 1 + 2 * self.active.sockets.len() > FDS_MAX => Reply::Unsupported,
                Request::HandOver if self.handing_over.swap(true, Ordering::Relaxed) => Reply::Busy,
                Request::HandOver => {
                    self.hand_over(stream).await;
                    return Ok(());
                }
                Request::Unknown => Reply::Unsupported,
            };
            handover::send(&mut stream, &reply).await?;
            if matches!(reply, Reply::Ending) {
                self.end(End::Requested);
            }
        }
    }

    async fn hand_over(&self, mut stream: UnixStream) {
        let sockets = self.active.sockets.iter().flat_map(Pair::descriptors);
        let descriptors: Vec<_> = std::iter::once(self.active.lock.as_fd()).chain(sockets).collect();
        match handover::hand_over(&mut stream, &descriptors).await {
            Ok(()) => self.end(End::Replaced(stream)),
            Err(error) => {
                tracing::warn!(%error, "the new server did not take over; this one stays active");
                self.handing_over.store(false, Ordering::Relaxed);
                self.takeover_failed.notify_one();
            }
        }
    }

    fn end(&self, end: End) {
        // A full or closed channel means that the server is ending already.
        let _ending = self.active.end.try_send(end);
    }
}
