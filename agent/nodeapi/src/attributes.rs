//! What a request asks to do, for authorisation: verb and subresources of the node (`pkg/kubelet/server/auth.go`).
//! Pure.
//!
//! Streams are harder than the kubelet's: exec, attach, run and port-forward need `create` whatever the method, so that
//! the right to read a node is never the right to run commands on it.

use http::Method;

/// Verb and subresources of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `create`, `update`, `patch`, `delete`; empty for any other method.
    pub verb: &'static str,
    /// The subresources of `nodes` that allow the request, asked in this order until one is allowed.
    pub subresources: Vec<&'static str>,
}

/// Paths with a subresource that is asked before `proxy`.
const FINE: &[(&str, &str)] =
    &[("/pods", "pods"), ("/healthz", "healthz"), ("/configz", "configz"), ("/runningpods", "pods")];

/// Paths with a subresource of their own.
const OWN: &[(&str, &str)] = &[
    ("/stats", "stats"),
    ("/metrics", "metrics"),
    ("/logs", "log"),
    ("/checkpoint", "checkpoint"),
    ("/statusz", "statusz"),
    ("/flagz", "configz"),
];

/// Paths of streams into containers.
const STREAMS: &[&str] = &["/exec", "/attach", "/run", "/portForward"];

/// The attributes of a request with this method and decoded path.
pub fn attributes(method: &Method, path: &str) -> Attributes {
    let verb = match method.as_str() {
        _ if STREAMS.iter().any(|stream| is_below(path, stream)) => "create",
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    };
    let find = |table: &[(&str, &'static str)]| {
        table.iter().find(|(root, _)| is_below(path, root)).map(|(_, subresource)| *subresource)
    };
    let mut subresources: Vec<&'static str> = find(FINE).into_iter().collect();
    subresources.push(find(OWN).unwrap_or("proxy"));
    Attributes { verb, subresources }
}

/// Whether the path is `root` or below it.
fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paths of the kubelet's own test (`AuthzTestCases`) and their subresources.
    const KUBELET: &[(&str, &[&str])] = &[
        ("/attach/{podNamespace}/{podID}/{containerName}", &["proxy"]),
        ("/attach/{podNamespace}/{podID}/{uid}/{containerName}", &["proxy"]),
        ("/checkpoint/{podNamespace}/{podID}/{containerName}", &["checkpoint"]),
        ("/configz", &["configz", "proxy"]),
        ("/flagz", &["configz"]),
        ("/statusz", &["statusz"]),
        ("/containerLogs/{podNamespace}/{podID}/{containerName}", &["proxy"]),
        ("/debug/flags/v", &["proxy"]),
        ("/debug/pprof/{subpath:*}", &["proxy"]),
        ("/exec/{podNamespace}/{podID}/{containerName}", &["proxy"]),
        ("/exec/{podNamespace}/{podID}/{uid}/{containerName}", &["proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/healthz/log", &["healthz", "proxy"]),
        ("/healthz/ping", &["healthz", "proxy"]),
        ("/healthz/syncloop", &["healthz", "proxy"]),
        ("/logs/", &["log"]),
        ("/logs/{logpath:*}", &["log"]),
        ("/metrics", &["metrics"]),
        ("/metrics/slis", &["metrics"]),
        ("/metrics/cadvisor", &["metrics"]),
        ("/metrics/probes", &["metrics"]),
        ("/metrics/resource", &["metrics"]),
        ("/pods/", &["pods", "proxy"]),
        ("/portForward/{podNamespace}/{podID}", &["proxy"]),
        ("/portForward/{podNamespace}/{podID}/{uid}", &["proxy"]),
        ("/run/{podNamespace}/{podID}/{containerName}", &["proxy"]),
        ("/run/{podNamespace}/{podID}/{uid}/{containerName}", &["proxy"]),
        ("/runningpods/", &["pods", "proxy"]),
        ("/stats/", &["stats"]),
        ("/stats/summary", &["stats"]),
    ];

    #[test]
    fn attributes_are_the_kubelets_but_for_streams() {
        let verbs =
            [("POST", "create"), ("GET", "get"), ("PUT", "update"), ("PATCH", "patch"), ("DELETE", "delete")];
        for (path, subresources) in KUBELET {
            for (method, verb) in verbs {
                let found = attributes(&method.parse().unwrap(), path);
                let stream =
                    ["/exec/", "/attach/", "/run/", "/portForward/"].iter().any(|s| path.starts_with(s));
                assert_eq!(found.verb, if stream { "create" } else { verb }, "{method} {path}");
                assert_eq!(found.subresources, *subresources, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_path_is_below_another_at_a_slash_only() {
        for (path, first) in
            [("/podsx", "proxy"), ("/metricsx", "proxy"), ("/statsx/summary", "proxy"), ("/", "proxy")]
        {
            assert_eq!(attributes(&Method::GET, path).subresources, [first], "{path}");
        }
        assert_eq!(attributes(&Method::GET, "/runningpods").subresources, ["pods", "proxy"]);
        assert_eq!(attributes(&Method::GET, "/execx/a").verb, "get");
        assert_eq!(attributes(&Method::HEAD, "/pods").verb, "");
        assert_eq!(attributes(&Method::HEAD, "/exec").verb, "create");
    }
}
