//! Questions by TCP (RFC 7766): each with its length, answered in order. If a client has more
//! connections than its share, its newest one is closed at once.

use super::{
    Server,
    answers::{Action, count},
};
use crate::question::Transport;
use std::{io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// A connection without traffic for this long is closed.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// Pause after a failed accept.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections until told to stop, then returns when the accepted ones have ended.
pub(super) async fn accept(server: Arc<Server>, listener: Arc<TcpListener>, mut stop: watch::Receiver<bool>) {
    let mut streams = JoinSet::new();
    loop {
        while streams.try_join_next().is_some() {}
        let accepted = tokio::select! {
            // The sender lives as long as the program.
            _stopped = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(slot) = server.streams.take(from.ip()) else {
                    count(&server.counters.refused);
                    continue;
                };
                let server = Arc::clone(&server);
                streams.spawn(async move {
                    // Errors of a connection concern only its client, who sees them.
                    drop(serve(&server, stream, from.ip()).await);
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a TCP connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    while streams.join_next().await.is_some() {}
}

async fn serve(server: &Server, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match server.handle(&bytes, Transport::Tcp, client) {
            Action::Nothing => return Ok(()),
            Action::Reply(bytes) => Some(bytes),
            Action::Forward(forward) => server.finish(*forward).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
