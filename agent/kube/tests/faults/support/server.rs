//! API server of one kind, widgets, over TLS with HTTP/2 or HTTP/1.1: lists in pages, streaming lists,
//! watches, and faults on demand. The server requests client certificates and accepts any, as kube-apiserver
//! does; an unknown client gets 401.

use super::certificates::Authority;
use berth_kube::identity::Certificate;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};
use tokio_rustls::TlsAcceptor;

mod objects;

use objects::{bookmark, line, status, widget};

/// Streams per connection, as in kube-apiserver.
const STREAMS: u32 = 100;

pub(crate) struct ApiServer {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

/// The server's view of a connection.
#[derive(Default)]
pub(crate) struct Connection {
    pub(crate) client: Option<String>,
    pub(crate) streams: usize,
    pub(crate) most: usize,
    pub(crate) watches: usize,
    pub(crate) http2: bool,
    pub(crate) requests: usize,
    goaway: Arc<Notify>,
    open: bool,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Version and number by name.
    widgets: BTreeMap<String, (u64, u64)>,
    /// Lines of events with their versions and objects.
    events: Vec<(u64, String, String)>,
    /// Events up to this version are forgotten.
    forgotten: u64,
    watchers: Vec<Watcher>,
    streaming: bool,
    known: BTreeSet<String>,
    tokens: BTreeSet<String>,
    answers: VecDeque<(u16, Option<&'static str>, String)>,
    requests: Vec<String>,
    connections: Vec<Connection>,
    silent: bool,
    /// GOAWAY with each n-th request.
    goaway_each: usize,
    certificate: Option<Arc<ServerConfig>>,
    bodies: Vec<String>,
}

struct Watcher {
    name: Option<String>,
    lines: mpsc::UnboundedSender<Bytes>,
}

impl ApiServer {
    pub(crate) async fn start(authority: &Authority, protocols: &[&[u8]]) -> ApiServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            version: 100,
            streaming: true,
            known: ["system:node:a".to_owned()].into(),
            certificate: Some(config(authority, "127.0.0.1", (2000, 4000), protocols)),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let server = ApiServer { port, state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        server
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    /// Presents this certificate on new connections.
    pub(crate) fn present(&self, authority: &Authority, name: &str, years: (i32, i32)) {
        let config = config(authority, name, years, &[b"h2"]);
        self.with(|s| s.certificate = Some(config));
    }

    pub(crate) fn put(&self, name: &str, number: u64) {
        self.with(|s| {
            s.version += 1;
            let state = (s.version, number);
            let kind = if s.widgets.insert(name.to_owned(), state).is_some() { "MODIFIED" } else { "ADDED" };
            s.tell(name, line(kind, &widget(name, state)));
        });
    }

    pub(crate) fn remove(&self, name: &str) {
        self.with(|s| {
            s.version += 1;
            let Some((_, number)) = s.widgets.remove(name) else { panic!("no {name}") };
            s.tell(name, line("DELETED", &widget(name, (s.version, number))));
        });
    }

    /// Sends these bytes to all watches.
    pub(crate) fn say(&self, text: &str) {
        self.with(|s| {
            s.watchers.retain(|w| w.lines.send(Bytes::copy_from_slice(text.as_bytes())).is_ok());
        });
    }

    /// Forgets all events, as etcd's compaction does.
    pub(crate) fn compact(&self) {
        self.with(|s| {
            s.forgotten = s.version;
            s.events.clear();
        });
    }

    /// Ends all watches in order.
    pub(crate) fn end_watches(&self) {
        self.with(|s| s.watchers.clear());
    }

    pub(crate) fn refuse_streaming(&self) {
        self.with(|s| s.streaming = false);
    }

    /// The answer to the next request.
    pub(crate) fn answer_next(&self, code: u16, retry_after: Option<&'static str>) {
        let body = status(code, "Some", "as the test wants").to_string();
        self.with(|s| s.answers.push_back((code, retry_after, body)));
    }

    /// Stops answering, or answers again.
    pub(crate) fn be_silent(&self, silent: bool) {
        self.with(|s| s.silent = silent);
    }

    /// Sets the only known clients and tokens.
    pub(crate) fn know(&self, clients: &[&str], tokens: &[&str]) {
        self.with(|s| {
            s.known = clients.iter().map(|c| (*c).to_owned()).collect();
            s.tokens = tokens.iter().map(|c| (*c).to_owned()).collect();
        });
    }

    /// Sends GOAWAY on all connections.
    pub(crate) fn go_away(&self) {
        self.with(|s| s.connections.iter().for_each(|c| c.goaway.notify_one()));
    }

    /// Sends GOAWAY with each n-th request of a connection.
    pub(crate) fn go_away_each(&self, n: usize) {
        self.with(|s| s.goaway_each = n);
    }

    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        self.with(|s| s.widgets.iter().map(|(name, (_, number))| (name.clone(), *number)).collect())
    }

    /// Requests since the last call, as `GET /path?query`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.with(|s| std::mem::take(&mut s.requests))
    }

    /// Bodies of requests since the last call.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.with(|s| std::mem::take(&mut s.bodies))
    }

    /// Passes each open connection to `look`.
    pub(crate) fn connections<T>(&self, look: impl FnMut(&Connection) -> T) -> Vec<T> {
        self.with(|s| s.connections.iter().filter(|c| c.open).map(look).collect())
    }

    /// Passes each connection that ever existed to `look`.
    pub(crate) fn all_connections<T>(&self, look: impl FnMut(&Connection) -> T) -> Vec<T> {
        self.with(|s| s.connections.iter().map(look).collect())
    }

    pub(crate) fn watches(&self) -> usize {
        self.with(|s| {
            s.watchers.retain(|w| !w.lines.is_closed());
            s.watchers.len()
        })
    }
}

impl State {
    fn tell(&mut self, name: &str, line: String) {
        let bytes = Bytes::from(line.clone());
        self.events.push((self.version, name.to_owned(), line));
        self.watchers
            .retain(|w| w.name.as_ref().is_some_and(|n| n != name) || w.lines.send(bytes.clone()).is_ok());
    }
}

fn config(authority: &Authority, name: &str, years: (i32, i32), protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let (certificate, key) = authority.server(name, years);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyClient))
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let Some(config) = state.lock().unwrap().certificate.clone() else { return };
    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
    let client = stream.get_ref().1.peer_certificates().and_then(|c| Certificate::read(c.first()?));
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let goaway = Arc::new(Notify::new());
    let number = {
        let mut state = state.lock().unwrap();
        state.connections.push(Connection {
            client: client.map(|c| c.common_name),
            http2,
            open: true,
            goaway: Arc::clone(&goaway),
            ..Connection::default()
        });
        state.connections.len() - 1
    };
    let of_requests = Arc::clone(&state);
    let service = service_fn(move |request| answer(request, Arc::clone(&of_requests), number));
    if http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut asked = false;
        loop {
            tokio::select! {
                _ = &mut connection => break,
                () = goaway.notified(), if !asked => {
                    asked = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    } else {
        drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    }
    state.lock().unwrap().connections[number].open = false;
}

/// One stream of a connection, counted.
struct Counted {
    state: Arc<Mutex<State>>,
    number: usize,
    watch: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        let connection = &mut state.connections[self.number];
        connection.streams -= 1;
        connection.watches -= usize::from(self.watch);
    }
}

enum Out {
    Whole(Option<Bytes>, Counted),
    Lines(mpsc::UnboundedReceiver<Bytes>, Counted),
}

impl Body for Out {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Out::Whole(bytes, _) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Out::Lines(lines, _) => lines.poll_recv(cx).map(|line| line.map(|l| Ok(Frame::data(l)))),
        }
    }
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    number: usize,
) -> Result<Response<Out>, Infallible> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let watch = parameter(&query, "watch").is_some();
    {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{} {}", head.method, head.uri.path_and_query().unwrap()));
        let each = state.goaway_each;
        let connection = &mut state.connections[number];
        connection.streams += 1;
        connection.watches += usize::from(watch);
        connection.most = connection.most.max(connection.streams);
        connection.requests += 1;
        if each > 0 && connection.requests.is_multiple_of(each) {
            connection.goaway.notify_one();
        }
    }
    let counted = Counted { state: Arc::clone(&state), number, watch };
    let text = body.collect().await.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned());
    if state.lock().unwrap().silent {
        // The head of the answer never comes; the stream ends with the client.
        std::future::pending::<()>().await;
    }
    let bearer = head.headers.get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let mut state = state.lock().unwrap();
    state.bodies.extend(text.ok().filter(|t| !t.is_empty()));
    Ok(respond(&mut state, (head.method.as_str(), &query), bearer, counted))
}

fn whole(code: u16, body: String, counted: Counted) -> Response<Out> {
    let code = StatusCode::from_u16(code).unwrap();
    Response::builder().status(code).body(Out::Whole(Some(body.into()), counted)).unwrap()
}

fn respond(
    state: &mut State,
    (method, query): (&str, &str),
    bearer: Option<&str>,
    counted: Counted,
) -> Response<Out> {
    let client = state.connections[counted.number].client.as_ref();
    let known =
        client.is_some_and(|c| state.known.contains(c)) || bearer.is_some_and(|t| state.tokens.contains(t));
    if !known {
        return whole(401, status(401, "Unauthorized", "Unauthorized").to_string(), counted);
    }
    if let Some((code, retry_after, body)) = state.answers.pop_front() {
        let mut response = whole(code, body, counted);
        if let Some(after) = retry_after {
            response.headers_mut().insert("retry-after", http::HeaderValue::from_static(after));
        }
        return response;
    }
    match (method, counted.watch) {
        ("GET", true) => {
            let from = parameter(query, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            Response::new(Out::Lines(watch_lines(state, query, from), counted))
        }
        ("GET", false) => whole(200, list(state, query), counted),
        _ => whole(200, "{}".to_owned(), counted),
    }
}

fn list(state: &State, query: &str) -> String {
    let limit: usize = parameter(query, "limit").and_then(|l| l.parse().ok()).unwrap_or(500);
    // Small pages make lists of few objects long.
    let (limit, from) =
        (limit.min(3), parameter(query, "continue").and_then(|c| c.parse().ok()).unwrap_or(0));
    let name = parameter(query, "name");
    let all: Vec<Value> = state
        .widgets
        .iter()
        .filter(|(n, _)| name.is_none_or(|name| name == *n))
        .map(|(name, state)| widget(name, *state))
        .collect();
    let token = (from + limit < all.len()).then(|| (from + limit).to_string());
    let items: Vec<&Value> = all.iter().skip(from).take(limit).collect();
    json!({"kind": "WidgetList", "metadata": {"resourceVersion": state.version.to_string(), "continue": token}, "items": items})
        .to_string()
}

fn watch_lines(state: &mut State, query: &str, from: u64) -> mpsc::UnboundedReceiver<Bytes> {
    let (sender, lines) = mpsc::unbounded_channel();
    let send = |line: String| drop(sender.send(Bytes::from(line)));
    let name = parameter(query, "name").map(str::to_owned);
    if parameter(query, "sendInitialEvents").is_some() {
        if !state.streaming {
            let message = "required storage feature RequestWatchProgress is disabled";
            send(line("ERROR", &status(500, "InternalError", message)));
            return lines;
        }
        for (widget_name, of) in
            state.widgets.iter().filter(|(n, _)| name.as_ref().is_none_or(|name| name == *n))
        {
            send(line("ADDED", &widget(widget_name, *of)));
        }
        send(bookmark(state.version, true));
    } else if from < state.forgotten {
        send(line(
            "ERROR",
            &status(410, "Expired", &format!("too old resource version: {from} ({})", state.version)),
        ));
        return lines;
    } else {
        for (version, of, line) in &state.events {
            if *version > from && name.as_ref().is_none_or(|name| name == of) {
                send(line.clone());
            }
        }
    }
    state.watchers.push(Watcher { name, lines: sender });
    lines
}

/// Verifier that requests a certificate and accepts any.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
