//! Answers: their body, and the forms in which the kubelet answers.

use crate::{Unavailable, metrics::Sending};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// The reason why a streamed body ends before its end. The client sees a cut connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot send the rest of the answer: {0}")]
pub struct Cut(pub String);

/// Body of an answer: all of it, or parts as they come.
#[derive(Debug)]
pub enum ResponseBody {
    /// The whole body; `None` once it was sent, or where there is none.
    Whole(Option<Bytes>),
    /// Parts of the body, each sent at once in a chunk of its own.
    Parts {
        /// The parts; the body ends with the channel.
        parts: mpsc::Receiver<Result<Bytes, Cut>>,
        /// Counts the request until then.
        in_flight: Option<Sending>,
    },
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            ResponseBody::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseBody::Parts { parts, .. } => {
                parts.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ResponseBody::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            ResponseBody::Parts { .. } => SizeHint::default(),
        }
    }
}

fn whole(code: StatusCode, content_type: &'static str, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(Some(body).filter(|body| !body.is_empty())));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer with a text for people, as Go's `http.Error` sends it.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    whole(code, "text/plain; charset=utf-8", text.into())
}

/// A JSON document.
pub(crate) fn json(body: Bytes) -> Response<ResponseBody> {
    whole(StatusCode::OK, "application/json", body)
}

/// Metrics in Prometheus' text format.
pub(crate) fn metrics(body: Bytes) -> Response<ResponseBody> {
    whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

/// Parts of plain text as they come.
pub(crate) fn stream(parts: mpsc::Receiver<Result<Bytes, Cut>>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Parts { parts, in_flight: None });
    let content_type = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// No such path.
pub(crate) fn not_found() -> Response<ResponseBody> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A part of the agent cannot answer.
pub(crate) fn failed(error: &Unavailable) -> Response<ResponseBody> {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

/// The path has a route for these methods only.
pub(crate) fn other_methods(methods: &[Method]) -> Response<ResponseBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if let Ok(allow) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
