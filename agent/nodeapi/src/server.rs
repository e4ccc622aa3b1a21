//! The listening socket and its connections.
//!
//! One task accepts, one task serves each connection, within [`Limits`]. A connection whose client has been allowed
//! nothing yet is a newcomer: it has less time and fewer places, of which no address holds more than half, so that
//! strangers and those who may nothing do not keep the API server out. A request that is not authenticated ends its
//! connection.
//!
//! A client that vanishes without a word is found by TCP's own signs of life, as with the kubelet, and also while bytes
//! are on their way to it (`peer`): after three minutes at most.
//!
//! When the server stops, it accepts no more, requests in progress have a little time, then every connection ends.
//! Whoever serves an upgraded connection follows [`Connection::stopped`].

use crate::{
    Authenticator, Authorizer, Error, ResponseBody, Routes, attributes,
    auth::Refusal,
    head,
    metrics::InFlight,
    path::RequestPath,
    peer::Peer,
    response,
    routes::{Found, find},
};
use berth_core::shares::{Shares, Slot};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at a time; further ones wait in the kernel's backlog.
    pub connections: usize,
    /// Most connections whose client has been allowed nothing yet. One address holds at most half of them; further ones
    /// of it are refused.
    pub newcomers: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest wait for the head of a connection's first request.
    pub first_request: Duration,
    /// Longest wait for the head of a later request (the kubelet's idle time).
    pub idle: Duration,
    /// Most bytes of a request's head.
    pub headers: usize,
    /// Time that requests in progress have when the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            newcomers: 512,
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(90),
            headers: 64 << 10,
            drain: Duration::from_secs(2),
        }
    }
}

/// Pause after a failed accept, which may be for want of file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Silence after which TCP asks for a sign of life, the pause between two questions, and how many stay without an answer
/// until the connection ends. They are those of Go's servers.
const SILENCE: Duration = Duration::from_secs(15);
const QUESTIONS: u32 = 9;

/// The server of the node's API.
pub struct NodeApi {
    /// TLS; see [`crate::tls::config`].
    pub tls: Arc<ServerConfig>,
    /// Finds out who sends a request.
    pub authenticator: Authenticator,
    /// Asks what a caller may do.
    pub authorizer: Authorizer,
    /// Serves a request that is allowed.
    pub routes: Routes,
    /// The bounds.
    pub limits: Limits,
}

/// Listens on an address; to be called within a Tokio runtime.
///
/// # Errors
/// The port is taken, or the address is not the node's.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|source| Error::Bind { address, source })
}

impl NodeApi {
    /// Serves until `stop` changes or its sender is dropped.
    pub async fn run(self, listener: TcpListener, mut stop: watch::Receiver<()>) {
        let all = Arc::new(Semaphore::new(self.limits.connections));
        let newcomers = Shares::new(self.limits.newcomers);
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let (drain, api, stopping) = (self.limits.drain, Arc::new(self), stop.clone());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.changed() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&listener, &all, &newcomers) => accepted,
            };
            match accepted {
                Ok((stream, permit, newcomer)) => {
                    let connection = Connection::new(newcomer, stopping.clone());
                    let serving = serve(Arc::clone(&api), acceptor.clone(), stream, connection);
                    connections.spawn(async move {
                        serving.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the node's API");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        // What is left is ended with the set.
        drop(timeout(drain, drained).await);
    }
}

async fn accept(
    listener: &TcpListener,
    all: &Arc<Semaphore>,
    newcomers: &Shares,
) -> io::Result<(TcpStream, OwnedSemaphorePermit, Slot)> {
    let permit =
        Arc::clone(all).acquire_owned().await.map_err(|_closed| io::Error::other("the server has ended"))?;
    loop {
        let (stream, client) = listener.accept().await?;
        if let Some(newcomer) = newcomers.take(client.ip()) {
            return Ok((stream, permit, newcomer));
        }
        tracing::debug!(%client, "a connection to the node's API was refused: its address has too many");
    }
}

/// Lets TCP find out that the other side has vanished, and send small answers at once.
fn set_options(stream: &TcpStream) {
    let set = || {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_tcp_keepidle(stream, SILENCE)?;
        sockopt::set_tcp_keepintvl(stream, SILENCE)?;
        sockopt::set_tcp_keepcnt(stream, QUESTIONS)?;
        sockopt::set_socket_keepalive(stream, true)
    };
    if let Err(error) = set() {
        tracing::warn!(%error, "cannot set the options of a connection to the node's API");
    }
}

/// What is known of a connection.
#[derive(Debug)]
pub struct Connection {
    /// The client's certificate chain; empty where it sent none.
    chain: Vec<CertificateDer<'static>>,
    /// The place among the newcomers, until a request is allowed.
    newcomer: Mutex<Option<Slot>>,
    /// Notified when the head of the first request is there.
    first: Notify,
    /// Changes when the server stops. Whoever serves an upgraded connection ends with it.
    pub stopped: watch::Receiver<()>,
}

impl Connection {
    fn new(newcomer: Slot, stopped: watch::Receiver<()>) -> Connection {
        Connection { chain: Vec::new(), newcomer: Mutex::new(Some(newcomer)), first: Notify::new(), stopped }
    }

    fn is_allowed(&self) {
        drop(berth_core::sync::lock(&self.newcomer).take());
    }
}

async fn serve(api: Arc<NodeApi>, acceptor: TlsAcceptor, stream: TcpStream, mut connection: Connection) {
    set_options(&stream);
    let (limits, mut stopped) = (api.limits, connection.stopped.clone());
    let Ok(Ok(stream)) = timeout(limits.handshake, acceptor.accept(Peer::new(stream))).await else { return };
    connection.chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    let connection = Arc::new(connection);
    let of_requests = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let (api, connection) = (Arc::clone(&api), Arc::clone(&of_requests));
        async move { Ok::<_, Infallible>(answer(&api, &connection, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.headers)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let late = async {
        let first = connection.first.notified();
        if timeout(limits.first_request, first).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = late => return,
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the node's API ended");
    }
}

/// Answers one request, and counts it.
async fn answer(
    api: &NodeApi,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    connection.first.notify_one();
    let path = RequestPath::decode(request.uri().path());
    let in_flight = InFlight::begin(request.method(), path.as_ref().ok());
    request.extensions_mut().insert(Arc::clone(&in_flight));
    in_flight.until_sent(judge(api, connection, path, request).await)
}

/// The answer: the head, the path, the route, who asks, and whether it is allowed.
async fn judge(
    api: &NodeApi,
    connection: &Arc<Connection>,
    path: Result<RequestPath, &'static str>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    if let Some((status, text)) = head::refusal(request.version(), request.headers()) {
        return closing(response::text(status, text));
    }
    let path = match path {
        Ok(path) => path,
        Err(reason) => return closing(response::text(StatusCode::BAD_REQUEST, format!("{reason}\n"))),
    };
    let found = find(request.method(), &path);
    if found == Found::Nothing {
        return closing(response::not_found());
    }
    let Some(caller) = api.authenticator.caller(&connection.chain, request.headers()).await else {
        return closing(response::text(StatusCode::UNAUTHORIZED, "Unauthorized"));
    };
    // Nobody behind this needs the credential.
    request.headers_mut().remove(header::AUTHORIZATION);
    let wanted = attributes(request.method(), path.as_str());
    match api.authorizer.allow(&caller, &wanted).await {
        Ok(()) => connection.is_allowed(),
        Err(Refusal::Forbidden(text)) => return response::text(StatusCode::FORBIDDEN, text),
        Err(Refusal::Unknown(text)) => return response::text(StatusCode::INTERNAL_SERVER_ERROR, text),
    }
    match found {
        Found::Route(handler, segments) => {
            api.routes.serve(&caller, connection, (handler, &path, &segments), request).await
        }
        Found::OtherMethods(methods) => response::other_methods(methods),
        Found::NoRoute | Found::Nothing => response::text(StatusCode::NOT_FOUND, "404: Page Not Found"),
    }
}

/// An answer after which the connection ends.
fn closing(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;
