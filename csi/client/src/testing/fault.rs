//! Faults of a driver for tests: whether a call takes effect, and what its caller hears.

use super::{Shared, lock};
use crate::Call;
use http_body_util::{BodyExt, Full};
use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::Notify;
use tonic::{Code, Status, body::Body, codegen::Bytes};
use tower::{Layer, Service};

/// One fault of one call.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whether the call takes effect before its answer goes wrong.
    pub effect: bool,
    /// What the caller hears.
    pub answer: Answer,
}

/// What the caller of a faulty call hears.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The right answer, this much later.
    Late(Duration),
    /// The right answer two times in one.
    Twice,
    /// Nothing, while the connection stays open.
    Never,
    /// This code with the text "injected fault".
    Code(Code),
    /// Bytes that are no message, with a status that says that the call succeeded.
    Garbage,
    /// A message of this many bytes.
    Large(usize),
    /// A connection that breaks, as the driver dies.
    Dies,
}

impl Fault {
    /// The call takes effect, and its caller hears this.
    pub fn after(answer: Answer) -> Fault {
        Fault { effect: true, answer }
    }

    /// The call has no effect, and its caller hears this.
    pub fn instead(answer: Answer) -> Fault {
        Fault { effect: false, answer }
    }
}

/// Puts the faults of the state between a server and its clients.
#[derive(Debug, Clone)]
pub(super) struct FaultLayer {
    pub(super) state: Shared,
    pub(super) die: Arc<Notify>,
}

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, layer: self.clone() }
    }
}

/// A server with faults.
#[derive(Debug, Clone)]
pub(super) struct Faulty<S> {
    inner: S,
    layer: FaultLayer,
}

impl<S> Service<http::Request<Body>> for Faulty<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = call_of(request.uri().path());
        let fault = call.and_then(|c| lock(&self.layer.state).faults.get_mut(&c)?.pop_front());
        let effect = fault.as_ref().is_none_or(|f| f.effect);
        let (answer, die) = (effect.then(|| self.inner.call(request)), Arc::clone(&self.layer.die));
        Box::pin(async move {
            let answer = match answer {
                Some(answer) => answer.await?,
                None => http::Response::new(Body::empty()),
            };
            Ok(match fault.map(|f| f.answer) {
                None => answer,
                Some(wrong) => wrong.instead_of(answer, &die).await,
            })
        })
    }
}

impl Answer {
    async fn instead_of(self, answer: http::Response<Body>, die: &Notify) -> http::Response<Body> {
        match self {
            Answer::Late(by) => {
                tokio::time::sleep(by).await;
                answer
            }
            Answer::Twice => {
                let (parts, body) = answer.into_parts();
                let Ok(body) = body.collect().await else { return succeeded(Bytes::new()) };
                let once = body.to_bytes();
                let twice = [&once[..], &once[..]].concat();
                http::Response::from_parts(parts, with_trailers(twice.into()))
            }
            Answer::Never => pending().await,
            Answer::Code(code) => Status::new(code, "injected fault").into_http(),
            Answer::Garbage => succeeded(Bytes::from_static(b"\x00\x00\x00\x00\x04\xff\xff\xff\xff")),
            Answer::Large(bytes) => {
                let length = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
                // An unknown field of that many zeros would have to be read to the end.
                succeeded([&[0], &length[..], &vec![0; bytes]].concat().into())
            }
            Answer::Dies => {
                die.notify_one();
                pending().await
            }
        }
    }
}

/// An answer with these bytes and the status of success.
fn succeeded(bytes: Bytes) -> http::Response<Body> {
    let mut answer = http::Response::new(with_trailers(bytes));
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    answer
}

/// A body of these bytes with the status of success.
fn with_trailers(bytes: Bytes) -> Body {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    Body::new(Full::new(bytes).with_trailers(async move { Some(Ok(trailers)) }))
}

/// The call of a method's path.
fn call_of(path: &str) -> Option<Call> {
    Some(match path.rsplit('/').next()? {
        "GetPluginInfo" => Call::GetPluginInfo,
        "CreateVolume" => Call::CreateVolume,
        "DeleteVolume" => Call::DeleteVolume,
        "NodeGetInfo" => Call::NodeGetInfo,
        "NodeGetCapabilities" => Call::NodeGetCapabilities,
        "NodeStageVolume" => Call::NodeStageVolume,
        "NodeUnstageVolume" => Call::NodeUnstageVolume,
        "NodePublishVolume" => Call::NodePublishVolume,
        "NodeUnpublishVolume" => Call::NodeUnpublishVolume,
        "NodeGetVolumeStats" => Call::NodeGetVolumeStats,
        "NodeExpandVolume" => Call::NodeExpandVolume,
        _ => return None,
    })
}
