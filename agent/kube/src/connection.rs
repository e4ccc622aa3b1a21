//! Connection to the API server: HTTP/2 with many streams, or HTTP/1.1 for one request if a proxy on the way
//! does not support HTTP/2.
//!
//! A connection is cut by shutting down its socket. Ending hyper's task would not cut the connection: h2 has
//! a task of its own, which runs while a stream is open. A connection that accepts no new stream (GOAWAY)
//! stays open until its last stream has ended.

use crate::identity::{Identity, explain};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use watched::Watched;

mod watched;

/// Deadline for name resolution, TCP, TLS and the preface together.
pub const DIAL: Duration = Duration::from_secs(10);

/// Longest silence before a ping.
pub const PING: Duration = Duration::from_secs(30);

/// Time for the answer to a ping.
pub const PONG: Duration = Duration::from_secs(15);

/// Age below which a broken connection counts as a failed dial.
const YOUNG: Duration = Duration::from_secs(1);

/// Bytes that a stream may send ahead of its reader.
const STREAM_WINDOW: u32 = 64 * 1024;

/// Bytes that all streams of a connection may send ahead.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Maximum of streams of a connection. The API server allows 100 (`MaxConcurrentStreams`), and a stream
/// beyond that limit would wait without an error.
pub const STREAMS: usize = 90;

/// Streams that stay below the server's limit, for ended streams whose end the server has not processed yet.
const SPARE: usize = 10;

/// The part of a connection that sends requests.
enum Sender {
    Http2(http2::SendRequest<Full<Bytes>>),
    /// Taken by the connection's one request.
    Http1(Mutex<Option<http1::SendRequest<Full<Bytes>>>>),
}

/// State that the connection shares with its task.
#[derive(Debug)]
struct Shared {
    /// The connection accepts no new stream.
    closed: AtomicBool,
    /// Number of streams that the server allows.
    allowed: AtomicUsize,
}

/// An open connection.
pub(crate) struct Connection {
    sender: Sender,
    shared: Arc<Shared>,
    /// Number of open streams, by the pool's own count.
    streams: AtomicUsize,
    socket: OwnedFd,
    born: Instant,
    /// The agent has ended the connection by [`Connection::cut`].
    cut: AtomicBool,
    /// The server or the network has ended the connection.
    broken: Arc<AtomicBool>,
    /// The server has answered a request.
    answered: AtomicBool,
}

/// A request that failed.
pub(crate) struct SendError {
    /// Cause of the failure.
    pub(crate) reason: String,
    /// The server has not processed the request: the connection had closed before, or the server reported
    /// that.
    pub(crate) unsent: bool,
    /// The whole connection failed, not only the stream.
    pub(crate) connection: bool,
}

impl Connection {
    /// Opens a connection. `ended` is called when the connection accepts no new stream any more.
    ///
    /// # Errors
    /// There is no connection. The text is one line with the reason and the remedy.
    pub(crate) async fn dial(
        identity: &Identity,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Connection, String> {
        timeout(DIAL, Connection::open(identity, ended))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {} s", DIAL.as_secs())))
    }

    async fn open(identity: &Identity, ended: impl FnOnce() + Send + 'static) -> Result<Connection, String> {
        let stream = connect(&identity.server.host, identity.server.port).await?;
        let socket = stream.as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
        let Some(config) = &identity.tls else {
            return Connection::start(stream, socket, false, ended).await;
        };
        let name = ServerName::try_from(identity.server.name.clone()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, stream).await.map_err(|error| {
            let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            tls.map_or_else(|| format!("the TLS handshake broke off: {error}"), |tls| explain(tls, identity))
        })?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Connection::start(stream, socket, http2, ended).await
    }

    async fn start<I>(
        io: I,
        socket: OwnedFd,
        http2: bool,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Connection, String>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared { closed: AtomicBool::new(false), allowed: AtomicUsize::new(1) });
        let broken = Arc::new(AtomicBool::new(false));
        let io = TokioIo::new(Watched { io, ended: Arc::clone(&broken) });
        let of_task = Arc::clone(&shared);
        let close = move || {
            of_task.closed.store(true, Ordering::Release);
            ended();
        };
        let sender = if http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .keep_alive_timeout(PONG)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(io)
                .await
                .map_err(|e| format!("the HTTP/2 preface failed: {e}"))?;
            let of_task = Arc::clone(&shared);
            let allow = move |streams| of_task.allowed.store(streams, Ordering::Relaxed);
            allow(connection.current_max_send_streams());
            // The task ends by itself when the connection or its last sender ends.
            tokio::spawn(async move {
                let mut connection = pin!(connection);
                let end = poll_fn(|cx| {
                    let polled = connection.as_mut().poll(cx);
                    allow(connection.current_max_send_streams());
                    polled
                });
                if let Err(error) = end.await {
                    tracing::debug!(%error, "a connection to the API server broke");
                }
                close();
            });
            Sender::Http2(sender)
        } else {
            let (sender, connection) =
                http1::Builder::new().handshake(io).await.map_err(|e| format!("HTTP/1.1 failed: {e}"))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the API server broke");
                }
                close();
            });
            Sender::Http1(Mutex::new(Some(sender)))
        };
        Ok(Connection {
            sender,
            shared,
            streams: AtomicUsize::new(0),
            socket,
            born: Instant::now(),
            cut: AtomicBool::new(false),
            broken,
            answered: AtomicBool::new(false),
        })
    }

    /// Whether several requests share the connection.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Whether no new stream can be opened.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
            || match &self.sender {
                Sender::Http2(sender) => sender.is_closed(),
                Sender::Http1(_) => false,
            }
    }

    /// Stops opening new streams.
    pub(crate) fn retire(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    /// Whether the closed connection was useless: it had no answer, or broke soon after its start.
    pub(crate) fn was_useless(&self) -> bool {
        let broke_young = self.broken.load(Ordering::Acquire) && self.born.elapsed() < YOUNG;
        !self.cut.load(Ordering::Acquire) && (broke_young || !self.answered.load(Ordering::Acquire))
    }

    /// Whether the connection has had an answer and is older than `YOUNG`.
    pub(crate) fn is_proven(&self) -> bool {
        self.answered.load(Ordering::Acquire) && self.born.elapsed() >= YOUNG
    }

    /// Number of open streams.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    /// Number of streams that the server allows.
    pub(crate) fn allowed(&self) -> usize {
        self.shared.allowed.load(Ordering::Relaxed)
    }

    /// Counts one more stream, if the limit has room for that stream and for `spare` others.
    pub(crate) fn reserve(&self, spare: usize) -> bool {
        let allowed = self.shared.allowed.load(Ordering::Relaxed);
        let most = match self.sender {
            Sender::Http2(_) => allowed.saturating_sub(spare).max(1),
            Sender::Http1(_) => 1,
        };
        let more = |n: usize| (n < most).then(|| n.saturating_add(1));
        !self.is_closed() && self.streams.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Counts the end of one stream.
    pub(crate) fn release(&self) {
        let less = |n: usize| Some(n.saturating_sub(1));
        // The update always succeeds.
        self.streams.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).unwrap_or_default();
    }

    /// Ends the connection and all its streams.
    pub(crate) fn cut(&self) {
        self.retire();
        self.cut.store(true, Ordering::Release);
        // A socket that has ended already is no failure.
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap_or_default();
    }

    /// Sends a request on a reserved stream.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        let sent = match &self.sender {
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                sender.try_send_request(request).await
            }
            Sender::Http1(sender) => {
                let Some(mut sender) = berth_core::sync::lock(sender).take() else {
                    let reason = "the connection was used already".to_owned();
                    return Err(SendError { reason, unsent: true, connection: false });
                };
                self.retire();
                sender.try_send_request(request).await
            }
        };
        if sent.is_ok() {
            self.answered.store(true, Ordering::Release);
        }
        sent.map_err(|mut failed| SendError {
            unsent: failed.take_message().is_some() || is_unprocessed(failed.error()),
            connection: self.is_http2() && breaks_connection(failed.error()),
            reason: text(failed.error()),
        })
    }

    /// Error of the body of an answer on this connection.
    pub(crate) fn body_error(&self, error: &hyper::Error) -> SendError {
        SendError {
            reason: text(error),
            unsent: false,
            connection: self.is_http2() && breaks_connection(error),
        }
    }
}

/// Streams that stay free for requests of the node's lease.
pub(crate) const SPARE_FOR_LEASE: usize = SPARE;

/// Maximum of streams of a connection for watches.
pub(crate) fn spare_for_watches(allowed: usize) -> usize {
    SPARE.max(allowed.saturating_sub(STREAMS))
}

/// The error of HTTP/2 behind an error of hyper.
fn of_http2(error: &hyper::Error) -> Option<&h2::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

/// Whether an error concerns the whole connection: every error except the reset of a stream.
fn breaks_connection(error: &hyper::Error) -> bool {
    of_http2(error).is_none_or(|e| !e.is_reset())
}

/// Whether the server has reported that it did not process the request (RFC 9113 8.7): the stream is beyond
/// the last one of an orderly GOAWAY, or was refused.
fn is_unprocessed(error: &hyper::Error) -> bool {
    of_http2(error).is_some_and(|e| match e.reason() {
        Some(h2::Reason::NO_ERROR) => e.is_go_away() && e.is_remote(),
        Some(h2::Reason::REFUSED_STREAM) => e.is_reset() && e.is_remote(),
        _ => false,
    })
}

fn text(error: &hyper::Error) -> String {
    berth_core::error::Chain(error).to_string()
}

/// Connects to the first address that answers. Each address gets an equal share of the time.
async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let until = Instant::now() + DIAL;
    let addresses: Vec<SocketAddr> = timeout_at(until, lookup_host((host, port)))
        .await
        .map_err(|_elapsed| format!("no address of {host} within {} s", DIAL.as_secs()))?
        .map_err(|e| format!("no address of {host}: {e}"))?
        .collect();
    let mut last = format!("{host} has no address");
    for (n, address) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len().saturating_sub(n)).unwrap_or(1).max(1);
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request is one write, and a ping must not wait for more data.
                stream.set_nodelay(true).map_err(|e| e.to_string())?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = format!("{address}: {}", kernels_words(&error)),
            Err(_) => last = format!("{address} does not answer"),
        }
    }
    Err(last)
}

/// The kernel's text without the error's number.
fn kernels_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words).to_lowercase()
}
