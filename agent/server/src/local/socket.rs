//! The listening socket, and one task per connection.
//!
//! Only root may connect: the socket has mode 0660 and belongs to root's group. An existing socket
//! at the path is replaced: the node's lock, not the socket, keeps a second agent away.

use super::{connection, watch_cache::WatchCache};
use crate::{Backend, Error};
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

/// Most connections at a time; further ones wait in the kernel's backlog.
const CONNECTIONS: usize = 128;

/// Pause after a failed accept, which may be for want of file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Listens on the path; to be called within a Tokio runtime. The caller holds the node's lock, so
/// that an existing socket is from a dead agent. A successful connect to it would prove nothing: a
/// child that the dead agent was starting inherits the listening descriptor until its exec.
///
/// # Errors
/// The socket cannot be made or moved to its path.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Listen { path: path.to_owned(), source };
    // Bound under another name and moved once its mode is set, so that no client finds it with the
    // umask's mode.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    berth_sys::fs::remove_if_there(&temporary).map_err(failed)?;
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// The server of the local socket.
#[derive(Debug)]
pub struct Server<B> {
    /// The published pods and events.
    pub cache: WatchCache,
    /// The rest of the agent.
    pub backend: Arc<B>,
}

impl<B: Backend> Server<B> {
    /// Serves connections until `stop` is sent or its sender dropped, then ends them.
    pub async fn run(self, listener: UnixListener, mut stop: oneshot::Receiver<()>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (cache, backend) = (self.cache.clone(), Arc::clone(&self.backend));
                    connections.spawn(async move {
                        connection::serve(stream, cache, backend).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the local socket; raise the limit of open files if they ran out");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
        connections.shutdown().await;
    }
}

async fn accept(
    listener: &UnixListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _address) = listener.accept().await?;
    Ok((stream, permit))
}
