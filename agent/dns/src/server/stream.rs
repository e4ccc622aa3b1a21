//! Questions in streams (RFC 7766): each with its length, answered in order.

use super::{Server, Todo};
use crate::question::Transport;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// A stream on which nothing comes or goes for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// How long no stream is taken after one could not be.
const REST: Duration = Duration::from_millis(100);

/// Takes streams for ever.
pub(super) async fn accept(server: Arc<Server>, listener: TcpListener) {
    let mut streams = JoinSet::new();
    loop {
        while streams.try_join_next().is_some() {}
        // Never closed: both are owned by this function.
        let Ok(permit) = Arc::clone(&server.streams).acquire_owned().await else { return };
        match listener.accept().await {
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
