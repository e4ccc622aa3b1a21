//! Requests on the pool, also as a `tower::Service` for other HTTP clients on top.

use super::{Body, Pool, Traffic};
use crate::{Error, identity::Identity, metrics};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// Deadline for the head of an answer if a request names none.
const ANSWER: Duration = Duration::from_secs(30);

/// Deadline for a connection. The request then fails, so that its owner learns of the outage; the pool
/// continues to dial.
const CONNECT: Duration = Duration::from_secs(10);

/// Number of connections that turn out to be closed before a request fails.
const TRIES: u32 = 5;

const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"), " (linux)");

impl Pool {
    /// Sends a request and waits for the head of its answer. The request's URI is path and query only. A
    /// request that a closing connection did not process is sent on another one.
    ///
    /// # Errors
    /// There is no connection or no answer before the deadline, or the connection broke.
    pub async fn ask(
        &self,
        traffic: Traffic,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Response<Body>, Error> {
        let begun = Instant::now();
        let method = request.method().clone();
        let answer = self.ask_once(traffic, request, deadline).await;
        let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        metrics::count(&self.identity().server.url, method.as_str(), code, begun.elapsed());
        answer
    }

    async fn ask_once(
        &self,
        traffic: Traffic,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Response<Body>, Error> {
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let (method, path) = (parts.method.to_string(), parts.uri.path().to_owned());
        let mut tries = 0;
        loop {
            let stream = self.stream(traffic, deadline.min(begun + CONNECT)).await?;
            let mut addressed = parts.clone();
            address(&mut addressed, &stream.identity, stream.connection.is_http2())?;
            let sending = stream.connection.send(Request::from_parts(addressed, body.clone()));
            let Ok(sent) = timeout_at(deadline, sending).await else {
                let after = deadline.saturating_duration_since(begun);
                return Err(Error::Deadline { method, path, after });
            };
            match sent {
                Ok(answer) => {
                    self.heard();
                    if answer.status() == StatusCode::UNAUTHORIZED {
                        self.unknown(&stream.identity).await;
                    }
                    return Ok(answer.map(|body| Body::new(body, stream)));
                }
                Err(failed) => {
                    if failed.connection || failed.unsent {
                        stream.connection.retire();
                    }
                    tries += 1;
                    // A GET is repeated even if the broken connection may have processed it: a GET changes
                    // nothing.
                    let again =
                        failed.unsent || (failed.connection && parts.method == Method::GET && tries == 1);
                    if again && tries < TRIES {
                        continue;
                    }
                    let connection = failed.connection || failed.unsent;
                    return Err(Error::Broken { method, path, reason: failed.reason, connection });
                }
            }
        }
    }
}

/// Completes a request for the server of this identity.
fn address(parts: &mut http::request::Parts, identity: &Identity, http2: bool) -> Result<(), Error> {
    let bad = |reason: String| Error::Setup { what: "make a request", reason };
    let server = &identity.server;
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let (scheme, authority) = server.url.split_once("://").unwrap_or(("https", &server.url));
    let target = format!("{}{target}", server.prefix);
    let uri = if http2 { format!("{scheme}://{authority}{target}") } else { target };
    parts.uri = uri.parse::<Uri>().map_err(|e| bad(format!("{uri:?}: {e}")))?;
    if !http2 {
        let host = HeaderValue::try_from(authority).map_err(|e| bad(e.to_string()))?;
        parts.headers.insert(header::HOST, host);
    }
    parts.headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
    if let Some(bearer) = &identity.bearer {
        parts.headers.insert(header::AUTHORIZATION, bearer.clone());
    }
    Ok(())
}

/// The purpose of another client's request.
fn traffic(request: &Request<Full<Bytes>>) -> Traffic {
    let query = request.uri().query().unwrap_or_default();
    let watch = query.split('&').any(|pair| matches!(pair, "watch=1" | "watch=true"));
    request.extensions().get::<Traffic>().copied().unwrap_or(if watch {
        Traffic::Watch
    } else {
        Traffic::Request
    })
}

impl tower::Service<Request<Full<Bytes>>> for Pool {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let (pool, traffic) = (self.clone(), traffic(&request));
        Box::pin(async move { pool.ask(traffic, request, Instant::now() + ANSWER).await })
    }
}
