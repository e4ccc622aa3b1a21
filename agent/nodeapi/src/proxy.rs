//! Health as kube-proxy serves it (`pkg/proxy/healthcheck/proxy_health.go`, `cmd/kube-proxy/app/server.go`): `/healthz` and
//! `/livez` on :10256 for load balancers and probes, `/healthz`, `/metrics` and `/proxyMode` on :10249. Plain HTTP; the answers are
//! made without waiting.

use crate::{ResponseBody, health::Answer, response};
use berth_core::metrics::{Counter, ReadFamily};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use std::sync::Arc;

static HEALTHZ: Counter =
    Counter::counter("kubeproxy_proxy_healthz_total", "Answers of the proxy's /healthz.", &["code"]);
static LIVEZ: Counter =
    Counter::counter("kubeproxy_proxy_livez_total", "Answers of the proxy's /livez.", &["code"]);

/// The families that these answers count.
pub fn families() -> [&'static dyn ReadFamily; 2] {
    [&HEALTHZ, &LIVEZ]
}

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

/// The answers on :10249; `metrics` renders `/metrics`.
pub fn metrics(metrics: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Answer {
    Arc::new(move |request: &Request<Incoming>| match request.uri().path() {
        "/healthz" => response::text(StatusCode::OK, "ok"),
        "/metrics" => response::metrics(metrics().into()),
        "/proxyMode" => response::text(StatusCode::OK, "ebpf"),
        _ => response::not_found(),
    })
}

/// What a load balancer learns of a Service on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// Number of the node's ready endpoints.
    pub local_endpoints: usize,
    /// Whether Services are answered on this node.
    pub answers: bool,
}

/// The answers at a Service's `healthCheckNodePort`, on every path (`pkg/proxy/healthcheck/service_health.go`). The node is
/// to get traffic while it has an endpoint and answers.
pub fn service_health(of: impl Fn() -> ServiceHealth + Send + Sync + 'static) -> Answer {
    Arc::new(move |_request: &Request<Incoming>| service_answer(&of()))
}

fn service_answer(health: &ServiceHealth) -> Response<ResponseBody> {
    let body = json!({
        "service": {"namespace": health.namespace, "name": health.name},
        "localEndpoints": health.local_endpoints,
        "serviceProxyHealthy": health.answers,
    });
    let mut response = response::json(body.to_string().into());
    if health.local_endpoints == 0 || !health.answers {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", HeaderValue::from(health.local_endpoints));
    response
}

fn of_path(path: &str, answers: bool, eligible: bool) -> Response<ResponseBody> {
    let (healthy, with_node, counter) = match path {
        "/healthz" => (answers && eligible, true, &HEALTHZ),
        "/livez" => (answers, false, &LIVEZ),
        _ => return response::not_found(),
    };
    // The state is the present one: there is no sync that could be late.
    let now = jiff::Timestamp::now().to_string();
    let mut body = json!({"lastUpdated": now, "currentTime": now, "healthy": answers});
    if with_node {
        body["nodeEligible"] = json!(eligible);
    }
    let mut response = response::json(body.to_string().into());
    if !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    counter.inc(&[response.status().as_str()]);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_traffic_where_it_has_an_endpoint_and_is_answered() {
        let health = |local_endpoints, answers| ServiceHealth {
            namespace: "default".into(),
            name: "web".into(),
            local_endpoints,
            answers,
        };
        let told = |local_endpoints, answers| {
            let response = service_answer(&health(local_endpoints, answers));
            let weight = response.headers()["x-load-balancing-endpoint-weight"].to_str().unwrap().to_owned();
            (response.status().as_u16(), weight)
        };
        assert_eq!(told(2, true), (200, "2".to_owned()));
        assert_eq!(told(0, true), (503, "0".to_owned()));
        assert_eq!(told(2, false), (503, "2".to_owned()));
    }

    #[test]
    fn a_node_that_is_about_to_go_gets_no_traffic_and_lives() {
        let status = |path, answers, eligible| of_path(path, answers, eligible).status().as_u16();
        assert_eq!((status("/healthz", true, true), status("/livez", true, true)), (200, 200));
        assert_eq!((status("/healthz", true, false), status("/livez", true, false)), (503, 200));
        assert_eq!((status("/healthz", false, true), status("/livez", false, true)), (503, 503));
        assert_eq!(status("/metrics", true, true), 404);
    }
}
