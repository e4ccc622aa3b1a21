//! What kubectl asks of a node: `describe node`, `debug node`, and the node's API by the API server.

use super::{Stage, WEB, of_version};
use crate::cluster::NODE;
use anyhow::{Context, Result, ensure};
use berth_harness::{image::BUSYBOX, wait::PATIENCE};

/// Paths of the node's API with a text that the answer has.
const PATHS: [(&str, &str); 17] = [
    ("healthz", "ok"),
    ("pods", "\"name\":\"web\""),
    ("runningpods/", "\"name\":\"web\""),
    ("configz", "\"kubeletconfig\""),
    ("stats/summary", "\"podRef\""),
    ("metrics", "kubelet_node_name{node=\"berth-node\"} 1"),
    ("metrics/cadvisor", "container_cpu_usage_seconds_total{"),
    ("metrics/resource", "pod_memory_working_set_bytes{"),
    ("metrics/probes", "prober_probe_total{"),
    ("metrics/slis", "kubernetes_healthcheck{"),
    ("logs/", "<pre>"),
    ("containerLogs/default/twice/main?previous=true", "first 1\nfirst 2\n"),
    ("containerLogs/default/twice/main?tailLines=1", "second\n"),
    ("healthz/ping", "ok"),
    ("healthz/syncloop", "ok"),
    ("flagz", "flagz\nWarning: This endpoint is not meant to be machine parseable"),
    ("statusz", "statusz\nWarning: This endpoint is not meant to be machine parseable"),
];

/// All of it.
pub(super) fn all(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    for (path, wanted) in PATHS {
        let raw = format!("/api/v1/nodes/{NODE}/proxy/{path}");
        let text = client.ok(&["get", "--raw", &raw])?.text();
        ensure!(text.contains(wanted), "{path} has no {wanted:?}: {:.300}", text);
    }
    let described = client.ok(&["describe", "node", NODE])?.text();
    for wanted in ["KubeletReady", "Container Runtime Version:", "Allocated resources:", "web", "InternalIP:"]
    {
        ensure!(described.contains(wanted), "describe node has no {wanted:?}: {described}");
    }
    let by_pod =
        client.ok(&["get", "--raw", &format!("/api/v1/namespaces/default/pods/{WEB}:8080/proxy/")])?;
    ensure!(by_pod.text() == "answer\n", "the pod's own port: {:?}", by_pod.text());
    debug(stage, kubectl)?;
    Ok(format!("{} paths, describe, debug", PATHS.len()))
}

/// `debug node -it`: a pod in the node's namespaces with the node's files below `/host`.
fn debug(stage: &Stage<'_>, kubectl: &str) -> Result<()> {
    let client = stage.kubectl(kubectl);
    let image = format!("--image={BUSYBOX}");
    let node = format!("node/{NODE}");
    let mark = stage.cluster.write(&of_version("mark", kubectl), "found\n")?;
    let mark = format!("/host{}", mark.display());
    let args = [
        "debug",
        &node,
        &image,
        "--image-pull-policy=IfNotPresent",
        "-it",
        "--",
        "cat",
        &mark,
        "/proc/1/comm",
    ];
    let session = client.start_on_terminal(&args)?;
    let (code, output) = session.end(2 * PATIENCE)?;
    let text = String::from_utf8_lossy(&output).into_owned();
    let (_, pod) = text.split_once("debugging pod ").with_context(|| format!("no pod: {text}"))?;
    let pod = pod.split_whitespace().next().context("no name of a pod")?.to_owned();
    // A command that ends before kubectl attaches is in the log.
    let log = client.ok(&["logs", &pod])?.text();
    client.ok(&["delete", "pod", &pod, "--now"])?;
    ensure!(code == 0 && log.contains("found"), "{code}: {text}{log}");
    Ok(())
}
