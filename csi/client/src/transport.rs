//! One connection for one call, and whether the driver itself ended the call.

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    error::Error as _,
    future::Future,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::Service;

/// The most bytes of an answer.
pub const ANSWER_MAX: usize = 1 << 20;

/// The most characters of a driver's text that an error keeps. Texts of mount(8) are long.
const MESSAGE_MAX: usize = 4096;

/// Declares a call: its method of the client, with the answer's size bounded.
macro_rules! ask {
    ($client:ident . $method:ident) => {
        |connection, request: tonic::Request<_>| async move {
            let mut client =
                $client::new(connection).max_decoding_message_size($crate::transport::ANSWER_MAX);
            client.$method(request).await
        }
    };
}
pub(crate) use ask;

/// A connection that notes whether the driver sent a status. An error without one was made by this side.
#[derive(Clone)]
pub(crate) struct Connection {
    channel: Channel,
    answered: Arc<AtomicBool>,
}

impl Connection {
    /// A connection to the socket, made by the first call.
    pub(crate) fn new(socket: &Path) -> Connection {
        let path = socket.to_path_buf();
        // This address is never resolved: the connector dials the socket. Servers see its host as the authority, which
        // is "localhost" on Unix sockets.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }),
        );
        Connection { channel, answered: Arc::default() }
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (answer, answered) = (self.channel.call(request), Arc::clone(&self.answered));
        Box::pin(async move {
            let answer = answer.await?;
            note(&answered, answer.headers());
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        note(&answered, trailers);
                    }
                    frame
                }))
            }))
        })
    }
}

/// Notes that the driver sent the call's status.
fn note(answered: &AtomicBool, headers: &http::HeaderMap) {
    if headers.contains_key("grpc-status") {
        answered.store(true, Ordering::Relaxed);
    }
}

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The server's own status.
    #[error("{0:?}: {1}")]
    Refused(Code, String),
    /// No answer within this time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// No connection, or one that ended or carried what is no answer.
    #[error("no usable answer: {0}")]
    NoAnswer(String),
}

/// Makes the call on `connection`, and waits for its answer until the deadline, which the server is told.
pub(crate) async fn call<M, T, F>(
    connection: Connection,
    within: Duration,
    message: M,
    send: impl FnOnce(Connection, Request<M>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let answered = Arc::clone(&connection.answered);
    let mut request = Request::new(message);
    request.set_timeout(within);
    // A gRPC future has several kilobytes, which each caller's future would contain.
    let answer = Box::pin(tokio::time::timeout(within, send(connection, request))).await;
    let status = match answer {
        Ok(Ok(answer)) => return Ok(answer.into_inner()),
        Ok(Err(status)) => status,
        Err(_elapsed) => return Err(Failure::Deadline(within)),
    };
    if answered.load(Ordering::Relaxed) && status.source().is_none() {
        return Err(Failure::Refused(status.code(), shortened(status.message())));
    }
    // tonic ends the call itself at the deadline that the request names.
    if causes(&status).any(|e| e.is::<tonic::TimeoutExpired>()) {
        return Err(Failure::Deadline(within));
    }
    let mut reason = shortened(status.message());
    let mut last = reason.clone();
    for cause in causes(&status) {
        let text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !text.is_empty() && text != last {
            reason = if reason.is_empty() { text.clone() } else { format!("{reason}: {text}") };
            last = text;
        }
    }
    Err(Failure::NoAnswer(shortened(&reason)))
}

/// What a status of this side was made from, from the outside in.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// The start of a text that somebody else wrote.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
