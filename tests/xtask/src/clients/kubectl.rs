//! kubectl in two versions by the same steps: logs, streams, port-forward and what it asks of a node.

mod forward;
mod logs;
mod node;
mod streams;

use super::{Check, Stage};
use anyhow::{Result, ensure};
use berth_harness::{
    image::BUSYBOX,
    wait::{self, PATIENCE},
};

/// Tries WebSockets first.
const NEW: &str = "kubectl";
/// Knows nothing but SPDY.
const OLD: &str = "kubectl-1.29";

/// A web server, whose shell is also used.
const WEB: &str = "web";
/// A container whose first run fails.
const TWICE: &str = "twice";
/// A container that repeats its input.
const PARROT: &str = "parrot";

/// All checks, each with both versions.
pub(super) const CHECKS: [(&str, Check); 20] = [
    ("kubectl/logs", |stage| logs::options(stage, NEW)),
    ("kubectl/logs-over-rotations", |stage| logs::rotations(stage, NEW)),
    ("kubectl/exec-codes", |stage| streams::codes(stage, NEW)),
    ("kubectl/exec-100-MB", |stage| streams::bulk(stage, NEW)),
    ("kubectl/exec-terminal", |stage| streams::terminal(stage, NEW)),
    ("kubectl/attach", |stage| streams::attach(stage, NEW)),
    ("kubectl/cp", |stage| streams::copy(stage, NEW)),
    ("kubectl/run", |stage| streams::run(stage, NEW)),
    ("kubectl/port-forward", |stage| forward::thousand(stage, NEW)),
    ("kubectl/node", |stage| node::all(stage, NEW)),
    ("kubectl-1.29/logs", |stage| logs::options(stage, OLD)),
    ("kubectl-1.29/logs-over-rotations", |stage| logs::rotations(stage, OLD)),
    ("kubectl-1.29/exec-codes", |stage| streams::codes(stage, OLD)),
    ("kubectl-1.29/exec-100-MB", |stage| streams::bulk(stage, OLD)),
    ("kubectl-1.29/exec-terminal", |stage| streams::terminal(stage, OLD)),
    ("kubectl-1.29/attach", |stage| streams::attach(stage, OLD)),
    ("kubectl-1.29/cp", |stage| streams::copy(stage, OLD)),
    ("kubectl-1.29/run", |stage| streams::run(stage, OLD)),
    ("kubectl-1.29/port-forward", |stage| forward::thousand(stage, OLD)),
    ("kubectl-1.29/node", |stage| node::all(stage, OLD)),
];

/// A pod of one container that runs a script.
pub(super) fn pod(name: &str, more: &str, container: &str, script: &str) -> String {
    let part = name.split('-').next().unwrap_or(name);
    let lines: String = script.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{part: {part}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: main\n    image: {BUSYBOX}\n    \
         imagePullPolicy: Never\n{container}    command: [sh, -c]\n    args:\n    - |\n{lines}---\n"
    )
}

/// Starts the pods of the checks and waits until they run.
pub(super) fn start_pods(stage: &Stage<'_>) -> Result<()> {
    let web = "mkdir /www && echo answer > /www/index.html && exec httpd -f -p 8080 -h /www";
    let twice = "if [ -e /d/again ]; then echo second; exec sleep 1000000; fi\ntouch /d/again\n\
                 for n in 1 2 3; do echo first $n; done\nexit 3";
    let parrot = "while read -r line; do echo \"said $line\"; done\nexit 4";
    let manifest = [
        // A quota makes the metrics of throttling.
        pod(WEB, "", "    resources: {limits: {cpu: \"1\"}}\n", web),
        pod(
            TWICE,
            "  volumes: [{name: d, emptyDir: {}}]\n",
            "    volumeMounts: [{name: d, mountPath: /d}]\n",
            twice,
        ),
    ]
    .concat();
    stage.cluster.apply("clients", &manifest)?;
    for kubectl in [NEW, OLD] {
        let name = of_version(PARROT, kubectl);
        let text = pod(&name, "  restartPolicy: Never\n", "    stdin: true\n    stdinOnce: true\n", parrot);
        stage.cluster.apply(&name, &text)?;
    }
    for name in [WEB.to_owned(), TWICE.to_owned(), of_version(PARROT, NEW), of_version(PARROT, OLD)] {
        running(stage, &name)?;
    }
    Ok(())
}

/// Name of a pod that one version of kubectl has for itself.
fn of_version(pod: &str, kubectl: &str) -> String {
    format!("{pod}-{}", if kubectl == OLD { "old" } else { "new" })
}

/// Waits until a pod's container runs; the pod `twice` in its second run.
pub(super) fn running(stage: &Stage<'_>, name: &str) -> Result<()> {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}";
    let wanted = if name == TWICE { "Running true 1" } else { "Running true 0" };
    wait::ok(&format!("pod {name} runs"), 2 * PATIENCE, || {
        let is = stage.cluster.kubectl(&["get", "pod", name, "-o", path])?;
        ensure!(is == wanted, "pod {name}: {is}");
        Ok(())
    })
}
