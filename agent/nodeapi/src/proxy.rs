//! Health as kube-proxy serves it (`pkg/proxy/healthcheck/proxy_health.go`, `cmd/kube-proxy/app/server.go`): `/healthz` and
//! `/livez` on :10256 for load balancers and probes, `/healthz`, `/metrics` and `/proxyMode` on :10249. Plain HTTP.
//!
//! Healthy is a node whose connections are answered, as a test has just shown. A node lives as long as its agent carries
//! Services: a failed test is no reason to start the agent again, which finds and mends by itself what another program has
//! taken away, and whose restart would change nothing else.

use crate::{
    Boxed, ResponseBody,
    health::{Answer, at_once},
    response,
};
use berth_core::metrics::{Counter, ReadFamily};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
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
    /// Whether connections to Services are answered on this node; the reason where they are not. Takes a second at most.
    fn answers(&self) -> Boxed<'_, Result<(), String>>;

    /// Whether the hooks are attached and the tables follow the API server.
    fn lives(&self) -> bool;

    /// Whether load balancers may send traffic to this node: a node that is about to be deleted gets none.
    fn is_eligible(&self) -> bool;
}

/// The answers on :10256.
pub fn health(proxy: Arc<dyn Proxy>) -> Answer {
    Arc::new(move |request: &Request<Incoming>| -> Boxed<'static, Response<ResponseBody>> {
        match request.uri().path() {
            "/healthz" => {
                let proxy = Arc::clone(&proxy);
                Box::pin(async move {
                    let answers = proxy.answers().await;
                    healthz(&answers, proxy.is_eligible())
                })
            }
            "/livez" => at_once(livez(proxy.lives())),
            _ => at_once(response::not_found()),
        }
    })
}

/// The answers on :10249; `metrics` renders `/metrics`.
pub fn metrics(metrics: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Answer {
    Arc::new(move |request: &Request<Incoming>| {
        at_once(match request.uri().path() {
            "/healthz" => response::text(StatusCode::OK, "ok"),
            "/metrics" => response::metrics(metrics().into()),
            "/proxyMode" => response::text(StatusCode::OK, "ebpf"),
            _ => response::not_found(),
        })
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
pub fn service_health(of: impl Fn() -> Boxed<'static, ServiceHealth> + Send + Sync + 'static) -> Answer {
    Arc::new(move |_request: &Request<Incoming>| -> Boxed<'static, Response<ResponseBody>> {
        let health = of();
        Box::pin(async move { service_answer(&health.await) })
    })
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

fn healthz(answers: &Result<(), String>, eligible: bool) -> Response<ResponseBody> {
    let mut body = body(answers.is_ok());
    body["nodeEligible"] = json!(eligible);
    if let Err(reason) = answers {
        body["reason"] = json!(reason);
    }
    counted(&body, answers.is_ok() && eligible, &HEALTHZ)
}

fn livez(lives: bool) -> Response<ResponseBody> {
    counted(&body(lives), lives, &LIVEZ)
}

fn body(healthy: bool) -> Value {
    // The state is the present one: there is no sync that could be late.
    let now = jiff::Timestamp::now().to_string();
    json!({"lastUpdated": now, "currentTime": now, "healthy": healthy})
}

fn counted(body: &Value, good: bool, counter: &Counter) -> Response<ResponseBody> {
    let mut response = response::json(body.to_string().into());
    if !good {
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
        let bad = || Err("no answer".to_owned());
        let status = |answers, eligible| healthz(&answers, eligible).status().as_u16();
        assert_eq!(status(Ok(()), true), 200);
        assert_eq!(status(Ok(()), false), 503);
        assert_eq!(status(bad(), true), 503);
        assert_eq!((livez(true).status().as_u16(), livez(false).status().as_u16()), (200, 503));
    }
}
