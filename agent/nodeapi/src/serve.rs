//! Serves a request of a known caller: from the route to the answer.

use crate::{
    Boxed, Caller, Connection, NodeBackend, ResponseBody, Statistics, Unavailable, health, logs, node_logs,
    path::RequestPath,
    query::pairs,
    response,
    routes::{Handler, Target},
    streams::Streams,
};
use berth_sys::clock;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::{path::PathBuf, sync::Arc};

/// What the routes read from.
pub struct Routes {
    /// The node.
    pub node: Arc<dyn NodeBackend>,
    /// The statistics.
    pub statistics: Arc<dyn Statistics>,
    /// The streams: exec, attach, run and port-forward.
    pub streams: Streams,
    /// The node's log directory, for `/logs/`.
    pub node_logs: PathBuf,
}

impl Routes {
    /// Serves a request that its caller may make.
    pub(crate) async fn serve(
        &self,
        caller: &Caller,
        connection: &Arc<Connection>,
        (handler, path, segments): (Handler, &RequestPath, &[&str]),
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let query = request.uri().query();
        match handler {
            Handler::Healthz => health::all(&*self.node, query),
            Handler::HealthCheck(name) => health::one(&*self.node, name),
            Handler::Pods => document(self.node.pods()).await,
            Handler::RunningPods => document(self.node.running_pods()).await,
            Handler::Configz => document(self.node.configuration()).await,
            Handler::StatsSummary => document(self.statistics.summary(only_cpu_and_memory(query))).await,
            Handler::Metrics => metrics(self.statistics.metrics()).await,
            Handler::MetricsCadvisor => metrics(self.statistics.cadvisor()).await,
            Handler::MetricsResource => metrics(self.statistics.resource()).await,
            Handler::MetricsProbes => metrics(self.statistics.probes()).await,
            Handler::MetricsSlis => response::metrics(health::metrics(&*self.node).into()),
            Handler::Flagz => page("flagz", &self.node.flags()),
            Handler::Statusz => page("statusz", &self.node.status_page()),
            Handler::Missing => response::not_found(),
            Handler::Logs => {
                tracing::info!(user = caller.name, path = path.as_str(), "Logs was asked for");
                node_logs::serve(&self.node_logs, path, segments).await
            }
            Handler::Disabled(text) => response::text(StatusCode::METHOD_NOT_ALLOWED, format!("{text}\n")),
            Handler::ContainerLogs => match Target::of(handler, segments) {
                Some(target) => {
                    let Target { namespace, pod, container, .. } = target;
                    tracing::info!(
                        user = caller.name,
                        namespace,
                        pod,
                        container,
                        "ContainerLogs was asked for"
                    );
                    logs::serve(&self.node, target, query, clock::wall()).await
                }
                None => response::not_found(),
            },
            Handler::Exec | Handler::Attach | Handler::Run | Handler::PortForward => {
                match Target::of(handler, segments) {
                    Some(target) => {
                        self.streams.serve(&self.node, (caller, connection), handler, target, request).await
                    }
                    None => response::not_found(),
                }
            }
        }
    }
}

/// A page for people, as the kubelet's.
fn page(name: &str, text: &str) -> Response<ResponseBody> {
    let head = format!(
        "\nberth {name}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
         guarantees and is for debugging purposes only.\n"
    );
    response::text(StatusCode::OK, head + text)
}

async fn document(answer: Boxed<'_, Result<Bytes, Unavailable>>) -> Response<ResponseBody> {
    answer.await.map_or_else(|e| response::failed(&e), response::json)
}

async fn metrics(answer: Boxed<'_, Result<Bytes, Unavailable>>) -> Response<ResponseBody> {
    answer.await.map_or_else(|e| response::failed(&e), response::metrics)
}

/// The parameter of `/stats/summary`.
fn only_cpu_and_memory(query: Option<&str>) -> bool {
    pairs(query).iter().any(|(name, value)| name == "only_cpu_and_memory" && value == "true")
}
