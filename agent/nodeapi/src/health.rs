//! Health checks: `/healthz` of the API, and the plain server of `/healthz` on :10248, which serves nothing else.
//!
//! The checks are the kubelet's. `ping` and `log` are good as soon as there is an answer: no log line of the agent waits for
//! a reader.

use crate::{Boxed, NodeBackend, ResponseBody, query::pairs, response};
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Names of the checks.
pub(crate) const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

/// Most connections of the plain server; further ones wait in the kernel's backlog.
const CONNECTIONS: usize = 32;

/// Longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// Most bytes of a request's head; the smallest that hyper has.
const HEADERS: usize = 8 << 10;

/// Longest life of a connection.
const CONNECTION: Duration = Duration::from_secs(90);

/// Pause after a failed accept, which may be for want of file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

fn check(node: &dyn NodeBackend, name: &str) -> Result<(), String> {
    if name == "syncloop" { node.sync_loop() } else { Ok(()) }
}

/// Answers `/healthz`: with parameter `verbose` one line per check, without the checks of parameters `exclude`.
pub(crate) fn all(node: &dyn NodeBackend, query: Option<&str>) -> Response<ResponseBody> {
    let parameters = pairs(query);
    let mut excluded: Vec<&str> =
        parameters.iter().filter(|(name, _)| name == "exclude").map(|(_, value)| value.as_str()).collect();
    let (mut lines, mut healthy) = (String::new(), true);
    for name in CHECKS {
        if excluded.contains(&name) {
            excluded.retain(|other| *other != name);
            lines += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        match check(node, name) {
            Ok(()) => lines += &format!("[+]{name} ok\n"),
            Err(reason) => {
                tracing::warn!("the check {name} of the node's health fails: {reason}");
                lines += &format!("[-]{name} failed: reason withheld\n");
                healthy = false;
            }
        }
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        let names = names.join(",");
        lines += &format!("warn: some health checks cannot be excluded: no matches for {names}\n");
    }
    if !healthy {
        return response::text(StatusCode::INTERNAL_SERVER_ERROR, lines + "healthz check failed\n");
    }
    if parameters.iter().any(|(name, _)| name == "verbose") {
        return response::text(StatusCode::OK, lines + "healthz check passed\n");
    }
    response::text(StatusCode::OK, "ok")
}

/// Answers `/healthz/<check>`.
pub(crate) fn one(node: &dyn NodeBackend, name: &str) -> Response<ResponseBody> {
    match check(node, name) {
        Ok(()) => response::text(StatusCode::OK, "ok"),
        Err(reason) => {
            response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {reason}\n"))
        }
    }
}

/// The results of the checks in Prometheus' text format (`/metrics/slis`).
pub(crate) fn metrics(node: &dyn NodeBackend) -> String {
    let mut text =
        "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                    # TYPE kubernetes_healthcheck gauge\n"
            .to_owned();
    for name in CHECKS {
        let good = u8::from(check(node, name).is_ok());
        text += &format!("kubernetes_healthcheck{{name=\"{name}\",type=\"healthz\"}} {good}\n");
    }
    text
}

/// Answers a request to a plain server, within its own deadline.
pub type Answer = Arc<dyn Fn(&Request<Incoming>) -> Boxed<'static, Response<ResponseBody>> + Send + Sync>;

/// An answer that is there already.
pub(crate) fn at_once(response: Response<ResponseBody>) -> Boxed<'static, Response<ResponseBody>> {
    Box::pin(std::future::ready(response))
}

/// Serves `/healthz` in plain HTTP until `stop` changes or its sender is dropped.
pub async fn run(node: Arc<dyn NodeBackend>, listener: TcpListener, stop: watch::Receiver<()>) {
    serve(Arc::new(move |request| at_once(plain(&*node, request))), listener, stop).await;
}

/// Serves plain HTTP by `answer` until `stop` changes or its sender is dropped.
pub async fn serve(answer: Answer, listener: TcpListener, mut stop: watch::Receiver<()>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = async {
                // The semaphore is never closed.
                let slot = Arc::clone(&slots).acquire_owned().await.map_err(std::io::Error::other)?;
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = Arc::clone(&answer);
                        async move { Ok::<_, Infallible>(answer(&request).await) }
                    });
                    let serving = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD)
                        .max_buf_size(HEADERS)
                        .serve_connection(TokioIo::new(stream), service);
                    // How a connection ends says nothing of the node's health.
                    drop(timeout(CONNECTION, serving).await);
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the node's health");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

fn plain(node: &dyn NodeBackend, request: &Request<Incoming>) -> Response<ResponseBody> {
    match request.uri().path().strip_prefix("/healthz") {
        Some("") => all(node, request.uri().query()),
        Some(below) if below.strip_prefix('/').is_some_and(|name| CHECKS.contains(&name)) => {
            one(node, below.trim_start_matches('/'))
        }
        _ => response::not_found(),
    }
}
