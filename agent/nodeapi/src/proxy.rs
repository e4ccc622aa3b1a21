//! Health as kube-proxy serves it (`pkg/proxy/healthcheck/proxy_health.go`, `cmd/kube-proxy/app/server.go`): `/healthz` and
//! `/livez` on :10256 for load balancers and probes, `/healthz` and `/proxyMode` on :10249. Plain HTTP; the answers are
//! made without waiting.

use crate::{ResponseBody, health::Answer};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use std::sync::Arc;

/// What the proxy's health follows from.
pub trait Proxy: Send + Sync + 'static {
    /// Whether Services are answered on this node.
    fn answers(&self) -> bool;

    /// Whether load balancers may send traffic to this node: a node that is about to be deleted gets none.
    fn is_eligible(&self) -> bool;
}

/// The answers on :10256.
pub fn health(proxy: Arc<dyn Proxy>) -> Answer {
    Arc::new(move |request: &Request<Incoming>| {
        of_path(request.uri().path(), proxy.answers(), proxy.is_eligible())
    })
}

/// The answers on :10249.
pub fn mode() -> Answer {
    Arc::new(|request: &Request<Incoming>| match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok", TEXT),
        "/proxyMode" => text(StatusCode::OK, "ebpf", TEXT),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n", TEXT),
    })
}

const TEXT: &str = "text/plain; charset=utf-8";

fn of_path(path: &str, answers: bool, eligible: bool) -> Response<ResponseBody> {
    let (healthy, with_node) = match path {
        "/healthz" => (answers && eligible, true),
        "/livez" => (answers, false),
        _ => return text(StatusCode::NOT_FOUND, "404 page not found\n", TEXT),
    };
    // The state is the present one: there is no sync that could be late.
    let now = jiff::Timestamp::now().to_string();
    let mut body = json!({"lastUpdated": now, "currentTime": now});
    if with_node {
        body["nodeEligible"] = json!(eligible);
    }
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, &body.to_string(), "application/json")
}

fn text(status: StatusCode, body: &str, kind: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(Some(body.to_owned().into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_about_to_go_gets_no_traffic_and_lives() {
        let status = |path, answers, eligible| of_path(path, answers, eligible).status().as_u16();
        assert_eq!((status("/healthz", true, true), status("/livez", true, true)), (200, 200));
        assert_eq!((status("/healthz", true, false), status("/livez", true, false)), (503, 200));
        assert_eq!((status("/healthz", false, true), status("/livez", false, true)), (503, 503));
        assert_eq!(status("/metrics", true, true), 404);
    }
}
