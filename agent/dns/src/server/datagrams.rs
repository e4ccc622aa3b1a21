//! Questions by UDP.

use super::{Server, answers::Action};
use crate::question::Transport;
use berth_core::error::Chain;
use std::{io, sync::Arc};
use tokio::{net::UdpSocket, sync::watch, task::JoinSet};

/// Datagrams that are read before other tasks run.
const DATAGRAMS_PER_TURN: usize = 64;

/// Reads datagrams until told to stop, then returns when all of them are answered.
pub(super) async fn answer(server: Arc<Server>, socket: Arc<UdpSocket>, mut stop: watch::Receiver<bool>) {
    let mut buffer = vec![0; 4096];
    let mut in_flight = JoinSet::new();
    loop {
        // Readiness means that there is a datagram, or that the socket has an error, which the next
        // read returns.
        let ready = tokio::select! {
            // The sender lives as long as the program.
            _stopped = stop.wait_for(|stop| *stop) => break,
            ready = socket.readable() => ready,
        };
        if let Err(error) = ready {
            tracing::error!(error = %Chain(&error), "cannot wait for datagrams");
            return;
        }
        for _ in 0..DATAGRAMS_PER_TURN {
            let (n, from) = match socket.try_recv_from(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ICMP error of an earlier answer, whose client is gone.
                Err(_icmp) => continue,
            };
            match server.handle(buffer.get(..n).unwrap_or_default(), Transport::Udp, from.ip()) {
                Action::Nothing => {}
                // A reply that does not fit into the socket's buffer is lost like any datagram: the
                // client asks again.
                Action::Reply(bytes) => drop(socket.try_send_to(&bytes, from)),
                Action::Forward(forward) => {
                    let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                    in_flight.spawn(async move {
                        if let Some(bytes) = server.finish(*forward).await {
                            // A lost reply, as above.
                            drop(socket.send_to(&bytes, from).await);
                        }
                    });
                }
            }
        }
        while in_flight.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
    while in_flight.join_next().await.is_some() {}
}
