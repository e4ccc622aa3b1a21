//! The listening socket, and one task per connection.
//!
//! Only root may connect: the socket has mode 0660 and belongs to root's group. What lies at its path is replaced: the
//! node's lock is what keeps a second agent away.

use crate::{Backend, Error, connection, hub::Hub};
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 128;

/// Pause after a connection could not be taken, for want of descriptors say.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Listens on the path, within a Tokio runtime. The caller holds the node's lock: what lies there is from an agent that
/// is gone. Whether a connection succeeds there tells nothing: a child that the dead agent was just starting still has
/// its listening descriptor, until its exec.
///
/// # Errors
/// The socket cannot be made or moved to its place.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Listen { path: path.to_owned(), source };
    // Bound under another name and only then moved: nobody meets it with the umask's mode.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    berth_sys::fs::remove_if_there(&temporary).map_err(failed)?;
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// What answers on the socket.
#[derive(Debug)]
pub struct Server<B> {
    /// The published pods.
    pub hub: Hub,
    /// The rest of the agent.
    pub backend: Arc<B>,
}

impl<B: Backend> Server<B> {
    /// Answers until told to stop (or until the other end of `stop` is dropped); ends every connection then.
    pub async fn run(self, listener: UnixListener, mut stop: oneshot::Receiver<()>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&listener, &room) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (hub, backend) = (self.hub.clone(), Arc::clone(&self.backend));
                    connections.spawn(async move {
                        connection::serve(stream, hub, backend).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
        connections.shutdown().await;
    }
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _address) = listener.accept().await?;
    Ok((stream, permit))
}
