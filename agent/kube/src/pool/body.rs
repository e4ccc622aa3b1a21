//! Body of an answer, whose stream counts until the body has ended.

use super::Stream;
use crate::connection::SendError;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// The body of an answer.
pub struct Body {
    inner: Incoming,
    /// `None` after the end.
    stream: Option<Stream>,
}

/// Error of a body that ended before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off: {reason}")]
pub struct BodyError {
    /// Cause of the failure.
    pub reason: String,
    /// Whether the whole connection is gone.
    pub connection: bool,
}

impl Body {
    pub(super) fn new(inner: Incoming, stream: Stream) -> Body {
        Body { inner, stream: Some(stream) }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("ended", &self.stream.is_none()).finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Err(error))) => {
                let failed = self.stream.take().map(|stream| {
                    let failed = stream.connection.body_error(&error);
                    if failed.connection {
                        stream.connection.retire();
                    }
                    failed
                });
                let SendError { reason, connection, .. } = failed.unwrap_or_else(|| SendError {
                    reason: error.to_string(),
                    unsent: false,
                    connection: false,
                });
                Poll::Ready(Some(Err(BodyError { reason, connection })))
            }
            Poll::Ready(None) => {
                self.stream = None;
                Poll::Ready(None)
            }
            other => other.map_err(|error| BodyError { reason: error.to_string(), connection: false }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
