//! The table of routes, as the kubelet registers them (`pkg/kubelet/server/server.go`). Pure.
//!
//! The kubelet has two kinds. A handler is for one path and every method. A service is for a path and all below it: it
//! answers a path that it has no route for with 404, and a method that the route does not have with 405, both only to
//! callers that are allowed to ask. Any other path is 404 for everybody.

use crate::path::RequestPath;
use http::Method;

/// What serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// `/healthz`: all checks.
    Healthz,
    /// `/healthz/<check>`: one check.
    HealthCheck(&'static str),
    /// `/pods`.
    Pods,
    /// `/runningpods/`.
    RunningPods,
    /// `/configz`.
    Configz,
    /// `/flagz`: the flags and their values.
    Flagz,
    /// `/statusz`: version, start and paths.
    Statusz,
    /// `/containerLogs/{namespace}/{pod}/{container}`.
    ContainerLogs,
    /// `/logs/{path}`: files of the node's log directory.
    Logs,
    /// `/stats/summary`.
    StatsSummary,
    /// `/metrics`.
    Metrics,
    /// `/metrics/cadvisor`.
    MetricsCadvisor,
    /// `/metrics/resource`.
    MetricsResource,
    /// `/metrics/probes`.
    MetricsProbes,
    /// `/exec/{namespace}/{pod}[/{uid}]/{container}`.
    Exec,
    /// `/attach/{namespace}/{pod}[/{uid}]/{container}`.
    Attach,
    /// `/run/{namespace}/{pod}[/{uid}]/{container}`.
    Run,
    /// `/portForward/{namespace}/{pod}[/{uid}]`.
    PortForward,
    /// `/metrics/slis`: the results of the health checks as metrics.
    MetricsSlis,
    /// A part of the kubelet that this node has switched off; the text of the 405.
    Disabled(&'static str),
    /// A part of the kubelet that this node does not have: 404, for callers that are allowed to ask.
    Missing,
}

/// The segments of a route below the root of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// These segments.
    Exactly(&'static [&'static str]),
    /// So many segments.
    Names(usize),
    /// Any segments, also none.
    Any,
}

/// A handler, or a service with its routes.
#[derive(Debug)]
enum Entry {
    Handler(&'static [&'static str], Handler),
    Service(&'static [&'static str], &'static [(Below, &'static [Method], Handler)]),
}

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const BOTH: &[Method] = &[Method::GET, Method::POST];

const TABLE: &[Entry] = &[
    Entry::Handler(&["healthz"], Handler::Healthz),
    Entry::Handler(&["healthz", "ping"], Handler::HealthCheck("ping")),
    Entry::Handler(&["healthz", "log"], Handler::HealthCheck("log")),
    Entry::Handler(&["healthz", "syncloop"], Handler::HealthCheck("syncloop")),
    Entry::Handler(&["metrics"], Handler::Metrics),
    Entry::Handler(&["metrics", "cadvisor"], Handler::MetricsCadvisor),
    Entry::Handler(&["metrics", "resource"], Handler::MetricsResource),
    Entry::Handler(&["metrics", "probes"], Handler::MetricsProbes),
    Entry::Handler(&["metrics", "slis"], Handler::MetricsSlis),
    Entry::Handler(&["configz"], Handler::Configz),
    Entry::Handler(&["flagz"], Handler::Flagz),
    Entry::Handler(&["statusz"], Handler::Statusz),
    Entry::Handler(&["debug", "flags", "v"], Handler::Disabled("flags endpoint is disabled.")),
    Entry::Service(
        &["debug", "pprof"],
        &[(Below::Any, GET, Handler::Disabled("profiling endpoint is disabled."))],
    ),
    Entry::Service(&["pods"], &[(Below::Exactly(&[]), GET, Handler::Pods)]),
    Entry::Service(&["runningpods"], &[(Below::Exactly(&[]), GET, Handler::RunningPods)]),
    Entry::Service(&["stats"], &[(Below::Exactly(&["summary"]), BOTH, Handler::StatsSummary)]),
    Entry::Service(&["logs"], &[(Below::Any, GET, Handler::Logs)]),
    Entry::Service(&["checkpoint"], &[(Below::Names(3), POST, Handler::Missing)]),
    Entry::Service(&["containerLogs"], &[(Below::Names(3), GET, Handler::ContainerLogs)]),
    Entry::Service(
        &["exec"],
        &[(Below::Names(3), BOTH, Handler::Exec), (Below::Names(4), BOTH, Handler::Exec)],
    ),
    Entry::Service(
        &["attach"],
        &[(Below::Names(3), BOTH, Handler::Attach), (Below::Names(4), BOTH, Handler::Attach)],
    ),
    Entry::Service(&["run"], &[(Below::Names(3), POST, Handler::Run), (Below::Names(4), POST, Handler::Run)]),
    Entry::Service(
        &["portForward"],
        &[(Below::Names(2), BOTH, Handler::PortForward), (Below::Names(3), BOTH, Handler::PortForward)],
    ),
];

/// What the table says of a path and a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// The handler, and the segments below the root of its service.
    Route(Handler, Vec<&'a str>),
    /// No service has the path: 404 for everybody.
    Nothing,
    /// The service of the path has no such route: 404 for callers that are allowed to ask.
    NoRoute,
    /// The route is there for these methods only: 405 for callers that are allowed to ask.
    OtherMethods(&'static [Method]),
}

/// Looks a path up.
pub fn find<'a>(method: &Method, path: &'a RequestPath) -> Found<'a> {
    let segments: Vec<&str> = path.segments().collect();
    for entry in TABLE {
        match entry {
            Entry::Handler(own, handler) if segments == *own && !path.is_directory() => {
                return Found::Route(*handler, Vec::new());
            }
            Entry::Service(root, routes) if segments.starts_with(root) => {
                let below = segments.get(root.len()..).unwrap_or_default();
                return in_service(method, routes, below);
            }
            _ => {}
        }
    }
    Found::Nothing
}

fn in_service<'a>(
    method: &Method,
    routes: &'static [(Below, &'static [Method], Handler)],
    segments: &[&'a str],
) -> Found<'a> {
    let fits = |below: &Below| match below {
        Below::Exactly(own) => segments == *own,
        Below::Names(count) => segments.len() == *count,
        Below::Any => true,
    };
    match routes.iter().find(|(below, ..)| fits(below)) {
        None => Found::NoRoute,
        Some((_, methods, handler)) if methods.contains(method) => Found::Route(*handler, segments.to_vec()),
        Some((_, methods, _)) => Found::OtherMethods(methods),
    }
}

/// The pod, and the container, that a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// UID that the pod must have.
    pub uid: Option<&'a str>,
    /// Name of the container; empty for a port-forward.
    pub container: &'a str,
}

impl<'a> Target<'a> {
    /// The target in the segments of a route, or `None` where the handler has none.
    pub fn of(handler: Handler, segments: &[&'a str]) -> Option<Target<'a>> {
        let port_forward = handler == Handler::PortForward;
        match (port_forward, segments) {
            (true, [namespace, pod]) => Some(Target { namespace, pod, uid: None, container: "" }),
            (true, [namespace, pod, uid]) => Some(Target { namespace, pod, uid: Some(uid), container: "" }),
            (false, [namespace, pod, container]) => Some(Target { namespace, pod, uid: None, container }),
            (false, [namespace, pod, uid, container]) => {
                Some(Target { namespace, pod, uid: Some(uid), container })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(method: &str, raw: &str) -> String {
        let path = RequestPath::decode(raw).unwrap();
        match find(&method.parse().unwrap(), &path) {
            Found::Route(handler, below) => format!("{handler:?} {}", below.join(",")).trim().to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn paths_find_their_handlers_as_in_the_kubelet() {
        assert_eq!(told("GET", "/pods"), "Pods");
        assert_eq!(told("GET", "/pods/"), "Pods");
        assert_eq!(told("GET", "/pods/x"), "NoRoute");
        assert_eq!(told("POST", "/pods"), "OtherMethods([GET])");
        assert_eq!(told("GET", "/runningpods/"), "RunningPods");
        assert_eq!(told("DELETE", "/healthz"), "Healthz");
        assert_eq!(told("GET", "/healthz/ping"), "HealthCheck(\"ping\")");
        for nothing in ["/", "/podsx", "/healthz/", "/healthz/x", "/metrics/", "/metrics/x"] {
            assert_eq!(told("GET", nothing), "Nothing", "{nothing}");
        }
        assert_eq!(told("GET", "/stats/summary"), "StatsSummary summary");
        assert_eq!(told("GET", "/stats/container"), "NoRoute");
        assert_eq!(told("POST", "/checkpoint/ns/pod/c"), "Missing ns,pod,c");
        assert_eq!(told("GET", "/checkpoint/ns/pod/c"), "OtherMethods([POST])");
        assert_eq!(told("GET", "/logs/"), "Logs");
        assert_eq!(told("GET", "/logs/pods/a"), "Logs pods,a");
        assert_eq!(told("GET", "/containerLogs/ns/pod/c"), "ContainerLogs ns,pod,c");
        assert_eq!(told("GET", "/exec/ns/pod/c"), "Exec ns,pod,c");
        assert_eq!(told("POST", "/exec/ns/pod/uid/c"), "Exec ns,pod,uid,c");
        assert_eq!(told("PUT", "/exec/ns/pod/c"), "OtherMethods([GET, POST])");
        assert_eq!(told("GET", "/run/ns/pod/c"), "OtherMethods([POST])");
        assert_eq!(told("GET", "/exec/ns/pod"), "NoRoute");
        assert_eq!(told("POST", "/portForward/ns/pod"), "PortForward ns,pod");
    }

    #[test]
    fn a_route_names_a_pod_and_a_container() {
        let of = |handler, segments: &[&'static str]| {
            Target::of(handler, segments).map(|t| (t.pod, t.uid, t.container))
        };
        assert_eq!(of(Handler::Exec, &["ns", "p", "c"]), Some(("p", None, "c")));
        assert_eq!(of(Handler::Exec, &["ns", "p", "u", "c"]), Some(("p", Some("u"), "c")));
        assert_eq!(of(Handler::PortForward, &["ns", "p", "u"]), Some(("p", Some("u"), "")));
        assert_eq!(of(Handler::Pods, &[]), None);
    }
}
