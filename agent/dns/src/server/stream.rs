//! Questions in streams (RFC 7766): each with its length, answered in order.

use super::{Server, Todo};
use crate::question::Transport;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// A stream on which nothing comes or goes for so long is closed.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// How long no stream is taken after one could not be.
const REST: Duration = Duration::from_millis(100);

/// Takes streams until told to stop; then returns when those taken have ended.
pub(super) async fn accept(server: Arc<Server>, listener: Arc<TcpListener>, mut stop: watch::Receiver<bool>) {
    let mut streams = JoinSet::new();
    loop {
        while streams.try_join_next().is_some() {}
        let next = async {
            let permit = Arc::clone(&server.streams).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (taken, permit) = tokio::select! {
            // The sender goes with the program.
            _stopped = stop.wait_for(|stop| *stop) => break,
            next = next => next,
        };
        match taken {
            Ok((stream, _from)) => {
                let server = Arc::clone(&server);
                streams.spawn(async move {
                    // The client's business, which it sees itself.
                    drop(serve(&server, stream).await);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "stream not taken");
                tokio::time::sleep(REST).await;
            }
        }
    }
    drop(listener);
    while streams.join_next().await.is_some() {}
}

async fn serve(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match server.handle(&bytes, Transport::Tcp) {
            Todo::Nothing => return Ok(()),
            Todo::Reply(bytes) => Some(bytes),
            Todo::Forward(forward) => server.finish(*forward).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
