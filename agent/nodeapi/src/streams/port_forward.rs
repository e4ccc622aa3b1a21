//! Port-forward: each connection of the client is a pair of streams, one for data and one for an error, whose other end
//! is a socket in the pod's network namespace.
//!
//! Each pair is a task of its session; all end with it. A pair whose second stream does not come in time is reset.

use super::{
    StreamBackend,
    channel_reader::ChannelMaker,
    connection::{CREATION, Inbox},
    outlet::{CHUNK, Chunk, Gone, Outlet},
    parameters::parse_port,
    spdy::NewStream,
    websocket::channels::Codec,
};
use crate::PodState;
use berth_spdy::Headers;
use std::{collections::HashMap, io, sync::Arc};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, tcp},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
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

/// The pod whose ports are forwarded.
#[derive(Clone)]
pub(super) struct Forwarder {
    /// The node.
    pub(super) backend: Arc<dyn StreamBackend>,
    /// The pod.
    pub(super) pod: PodState,
}

/// Whether the headers of a stream name a port and one of the two types.
pub(super) fn admit(headers: &Headers) -> bool {
    headers.get("port").is_some_and(|port| parse_port(port).is_ok())
        && matches!(headers.get("streamtype"), Some("data" | "error"))
}

/// Names the connection that a stream belongs to. Clients before Kubernetes 1.3 name none, and open the error stream
/// right before the data stream.
fn request_id(stream: &NewStream, is_data: bool) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_data => stream.id.saturating_sub(2).to_string(),
        None => stream.id.to_string(),
    }
}

/// Streams whose partner is not there yet.
#[derive(Debug, Default)]
struct Half {
    data: Option<NewStream>,
    error: Option<NewStream>,
}

impl Forwarder {
    /// Serves pairs until the connection ends.
    pub(super) async fn serve(self, mut streams: mpsc::Receiver<NewStream>) -> Result<(), Gone> {
        let mut halves: HashMap<String, (Instant, Half)> = HashMap::new();
        let mut pairs = JoinSet::new();
        loop {
            let next = halves.values().map(|(until, _)| *until).min();
            let late = async {
                match next {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                stream = streams.recv() => {
                    let stream = stream.ok_or(Gone)?;
                    if let Some((data, error)) = pair(&mut halves, stream).await {
                        pairs.spawn(self.clone().forward(data, error));
                    }
                }
                // A pair that has panicked has dropped its streams.
                Some(_ended) = pairs.join_next() => {}
                () = late => expire(&mut halves).await,
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
        let why = match self.backend.connect(&self.pod, port).await {
            Ok(socket) => {
                let reset = async {
                    match reset {
                        // The sender is only ever dropped.
                        Some(reset) => drop(reset.await),
                        None => std::future::pending().await,
                    }
                };
                return tokio::select! {
                    done = carry(socket, inbox, outlet) => Ok(done.is_ok()),
                    () = reset => Ok(true),
                };
            }
            Err(why) => why,
        };
        let (pod, uid) = (&self.pod.pod.key, &self.pod.pod.uid);
        let text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}");
        error.send(Chunk::of(text.as_bytes())).await?;
        Ok(false)
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

/// Adds a stream to the half of its connection, and takes the pair out that it completes.
async fn pair(
    halves: &mut HashMap<String, (Instant, Half)>,
    stream: NewStream,
) -> Option<(NewStream, NewStream)> {
    let is_data = stream.headers.get("streamtype") == Some("data");
    let id = request_id(&stream, is_data);
    let (_, half) = halves.entry(id.clone()).or_insert_with(|| (Instant::now() + CREATION, Half::default()));
    let place = if is_data { &mut half.data } else { &mut half.error };
    if place.is_some() {
        // Fails where the client is gone, which ends the session.
        let _sent = stream.outlet.reset().await;
        return None;
    }
    *place = Some(stream);
    if half.data.is_none() || half.error.is_none() {
        return None;
    }
    let (_, half) = halves.remove(&id)?;
    half.data.zip(half.error)
}

/// Resets the streams that have waited too long for their partner.
async fn expire(halves: &mut HashMap<String, (Instant, Half)>) {
    let now = Instant::now();
    let late: Vec<_> = halves.extract_if(|_, (until, _)| *until <= now).collect();
    for (id, (_, half)) in late {
        // Failures mean that the client is gone, which ends the session.
        if let Some(error) = &half.error {
            let text = format!("(request={id}) timed out waiting for streams");
            let _sent = error.outlet.send(Chunk::of(text.as_bytes())).await;
        }
        for stream in half.data.iter().chain(&half.error) {
            let _sent = stream.outlet.reset().await;
        }
    }
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
