//! Port-forward: each connection of the client is a pair of streams, one for data and one for an error, whose other end
//! is a socket in the pod's network namespace.
//!
//! Each pair is a task of its session; all end with it, and a pair whose client resets it ends at once. A pair whose
//! second stream does not come in time is reset. Streams that the client opens and resets leave nothing behind.

mod halves;

use super::{
    StreamBackend,
    channel_reader::ChannelMaker,
    connection::Inbox,
    outlet::{CHUNK, Chunk, Gone, Outlet},
    parameters::parse_port,
    spdy::NewStream,
    websocket::channels::Codec,
};
use crate::PodState;
use berth_spdy::Headers;
use halves::Halves;
use std::{io, sync::Arc};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, tcp},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};

/// The protocol on SPDY.
pub(super) const SPDY_PROTOCOL: &str = "portforward.k8s.io";

/// The same in the messages of a WebSocket.
pub(super) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// The protocols by channels, where a client that names none gets the first.
pub(super) const WEBSOCKET_PROTOCOLS: [(&str, Codec); 3] =
    [("", Codec::Binary), ("v4.channel.k8s.io", Codec::Binary), ("v4.base64.channel.k8s.io", Codec::Base64)];

/// The most ports of one request by channels, as a channel's number is a byte.
pub(super) const PORTS: usize = 127;

/// Connections to the pod that one client begins at the same time.
const CONNECTING: usize = 16;

/// The pod whose ports are forwarded.
#[derive(Clone)]
pub(super) struct Forwarder {
    backend: Arc<dyn StreamBackend>,
    pod: PodState,
    connecting: Arc<Semaphore>,
}

/// Whether the headers of a stream name a port and one of the two types.
pub(super) fn admit(headers: &Headers) -> bool {
    headers.get("port").is_some_and(|port| parse_port(port).is_ok())
        && matches!(headers.get("streamtype"), Some("data" | "error"))
}

impl Forwarder {
    /// A forwarder of one client's connections to a pod.
    pub(super) fn new(backend: Arc<dyn StreamBackend>, pod: PodState) -> Forwarder {
        Forwarder { backend, pod, connecting: Arc::new(Semaphore::new(CONNECTING)) }
    }

    /// Serves pairs until the connection ends.
    pub(super) async fn serve(self, mut streams: mpsc::Receiver<NewStream>) -> Result<(), Gone> {
        let (mut halves, mut pairs) = (Halves::default(), JoinSet::new());
        loop {
            let late = halves.late();
            tokio::select! {
                stream = streams.recv() => {
                    if let Some((data, error)) = halves.add(stream.ok_or(Gone)?).await {
                        pairs.spawn(self.clone().forward(data, error));
                    }
                }
                // A pair that has panicked has dropped its streams.
                Some(_ended) = pairs.join_next() => {}
                () = late => halves.expire().await,
            }
        }
    }

    async fn forward(self, data: NewStream, error: NewStream) {
        let port = data.headers.get("port").and_then(|port| parse_port(port).ok()).unwrap_or_default();
        let NewStream { inbox, outlet, reset, .. } = data;
        let told = self.exchange(port, inbox, &outlet, &error.outlet, Some(reset)).await;
        let ends = async {
            if told? {
                outlet.finish().await?;
                error.outlet.finish().await
            } else {
                outlet.reset().await?;
                error.outlet.reset().await
            }
        };
        // A failure means that the client is gone.
        let _sent = ends.await;
    }

    /// Connects and carries bytes in both directions until the pod has ended its side, or the client the stream. False
    /// where it did not end in order. Only a port that cannot be connected to is told as an error: kubectl gives up all
    /// its connections at one, and a pod that resets a connection has only ended that.
    async fn exchange(
        &self,
        port: u16,
        inbox: Inbox,
        outlet: &Outlet,
        error: &Outlet,
        reset: Option<oneshot::Receiver<()>>,
    ) -> Result<bool, Gone> {
        let reset = async {
            match reset {
                // The sender is only ever dropped.
                Some(reset) => drop(reset.await),
                None => std::future::pending().await,
            }
        };
        let served = async {
            let why = match self.connect(port).await {
                Ok(socket) => return Ok::<_, Gone>(carry(socket, inbox, outlet).await.is_ok()),
                Err(why) => why,
            };
            let (pod, uid) = (&self.pod.pod.key, &self.pod.pod.uid);
            let text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}");
            error.send(Chunk::of(text.as_bytes())).await?;
            Ok(false)
        };
        tokio::select! {
            done = served => done,
            () = reset => Ok(true),
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let _slot = self.connecting.acquire().await.map_err(|closed| closed.to_string())?;
        self.backend.connect(&self.pod, port).await
    }

    /// Serves the ports of a request by channels until all have ended: two channels each, for data and for an error,
    /// which both begin with the port.
    pub(super) async fn serve_channels(
        self,
        channels: Vec<(u16, Inbox, Outlet, Outlet)>,
        end: Outlet,
    ) -> Result<(), Gone> {
        let mut ports = JoinSet::new();
        for (port, inbox, data, error) in channels {
            let forwarder = self.clone();
            ports.spawn(async move {
                let number = port.to_le_bytes();
                data.send(Chunk::of(&number)).await?;
                error.send(Chunk::of(&number)).await?;
                forwarder.exchange(port, inbox, &data, &error, None).await
            });
        }
        while ports.join_next().await.is_some() {}
        end.end_connection().await
    }
}

/// The channels of these ports.
pub(super) fn channels(maker: &mut ChannelMaker, ports: &[u16]) -> Vec<(u16, Inbox, Outlet, Outlet)> {
    let numbers = (0_u8..).step_by(2);
    let make = |(port, data): (&u16, u8)| {
        (*port, maker.inbox(data), maker.outlet(data), maker.outlet(data.saturating_add(1)))
    };
    ports.iter().zip(numbers).map(make).collect()
}

async fn carry(mut socket: TcpStream, inbox: Inbox, outlet: &Outlet) -> io::Result<()> {
    let (from, to) = socket.split();
    let upload = async {
        // A pod that takes no more may still send; its own end is what ends the exchange.
        let _written = upload(inbox, to).await;
        std::future::pending().await
    };
    tokio::select! {
        done = download(&from, outlet) => done,
        () = upload => Ok(()),
    }
}

/// Writes what the client sends, and passes on its end.
async fn upload(mut inbox: Inbox, mut to: tcp::WriteHalf<'_>) -> io::Result<()> {
    while let Some(bytes) = inbox.recv().await {
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

async fn download(from: &tcp::ReadHalf<'_>, outlet: &Outlet) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut chunk = Chunk::with_capacity(CHUNK);
        match from.try_read_buf(chunk.buffer()) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        if outlet.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}
