//! `cargo xtask clients`: the node's API with its real clients, on clusters of this run's own: kubectl of today
//! (WebSockets) and of 1.29 (SPDY), metrics-server, promtool, and a node whose certificates rotate all the time.
//!
//! Each check is a function that says what it found. The same checks run on the real kubelet (`--node kubelet`), so that
//! an expectation which the kubelet does not meet shows there.

mod certificates;
mod counters;
mod kubectl;
mod live;
mod metrics;
mod metrics_server;

use crate::{
    cluster::{self, Audit, Cluster, Etcd, Node, Options},
    out, peers,
};
use anyhow::{Result, ensure};
use berth_harness::tools;
use live::Client;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Options of `cargo xtask clients`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these checks, by the beginnings of their names: kubectl, kubectl-1.29, metrics-server, promtool, counters,
    /// certificates. All where none is named.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Whose API is asked. The kubelet has no `counters` and no `certificates`.
    #[arg(long, value_enum, default_value = "berth")]
    node: Node,
    /// Life of the certificates while they rotate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    life: u64,
    /// How often the agent is killed.
    #[arg(long, value_name = "N", default_value_t = 10)]
    kills: usize,
    /// Directory of the cluster's files; `berth/clients` of the cache directory where none is named.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the cluster running where a check failed.
    #[arg(long)]
    keep: bool,
}

/// A cluster with a node, and what checks need of it.
struct Stage<'a> {
    cluster: &'a Cluster,
    node: Node,
    bin: &'a Path,
    args: &'a Args,
}

/// A check: what it found, for people.
type Check = fn(&Stage<'_>) -> Result<String>;

/// Runs the checks. Returns whether all of them passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.node != Node::None, "a node is berth or kubelet");
    let all = checks(args.node);
    let wanted: Vec<_> = all
        .iter()
        .filter(|(name, _)| args.names.is_empty() || args.names.iter().any(|own| chosen(name, own)))
        .collect();
    ensure!(!wanted.is_empty(), "there is no such check: {}", args.names.join(", "));
    let dir = tools::dir_or_cached(args.dir.as_deref(), "clients")?;
    let bin = peers::get(&["kubectl", "kubectl-1.29", "metrics-server", "promtool", "kube-apiserver"])?;
    let options = Options {
        bootstrap: args.node == Node::Berth,
        keep: args.keep,
        ..Options::new(args.node, Etcd::New, Audit::OfNodes)
    };
    let cluster = cluster::start(&dir, &options)?;
    let stage = Stage { cluster: &cluster, node: args.node, bin: &bin, args };
    let mut failed = 0_usize;
    let prepared = prepare(&stage);
    for (name, check) in wanted.iter().filter(|_| prepared.is_ok()) {
        let begun = Instant::now();
        let found = check(&stage);
        let took = begun.elapsed().as_secs_f64();
        match found {
            Ok(found) => out::line(&format!("✓ {name} ({took:.1} s): {found}")),
            Err(error) => {
                failed += 1;
                out::line(&format!("✗ {name} ({took:.1} s): {error:#}"));
            }
        }
    }
    if failed > 0 || prepared.is_err() {
        let kept = crate::root().join("target/clients");
        cluster.keep_logs(&kept)?;
        out::line(&format!("logs of the failed run are in {}", kept.display()));
        if args.keep {
            out::line(&format!("end it by `cargo xtask cluster --down --dir {}`", dir.display()));
            return prepared.map(|()| false);
        }
    }
    cluster.end()?;
    prepared.map(|()| failed == 0)
}

/// Whether `own` chooses the check `name`, which is `group/what`.
fn chosen(name: &str, own: &str) -> bool {
    name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The checks of a node in their order.
fn checks(node: Node) -> Vec<(&'static str, Check)> {
    let mut all = Vec::new();
    all.extend(kubectl::CHECKS);
    all.push(("metrics-server/top", metrics_server::top as Check));
    all.push(("promtool/check-metrics", metrics::promtool as Check));
    all.push(("promtool/families-of-the-mixin", metrics::mixin as Check));
    if node == Node::Berth {
        all.push(("counters/never-fall", counters::never_fall as Check));
        all.push(("certificates/rotate", certificates::rotate as Check));
    }
    all
}

/// Approves the node's serving certificate, and makes the pods that all checks use.
fn prepare(stage: &Stage<'_>) -> Result<()> {
    if stage.node == Node::Berth {
        stage.cluster.approve_serving_certificate()?;
    }
    out::timed("start the pods", || kubectl::start_pods(stage))
}

impl Stage<'_> {
    /// kubectl of this name (`kubectl`, `kubectl-1.29`) as the administrator.
    fn kubectl(&self, name: &str) -> Client {
        Client::new(self.bin.join(name), self.cluster.file("admin.kubeconfig"))
    }

    /// An answer of the node's API, by the API server.
    fn node_api(&self, path: &str) -> Result<String> {
        let path = format!("/api/v1/nodes/{}/proxy/{path}", cluster::NODE);
        Ok(self.kubectl("kubectl").ok(&["get", "--raw", &path])?.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_chosen_by_the_beginning_of_its_name() {
        assert!(chosen("kubectl/logs", "kubectl") && chosen("kubectl/logs", "kubectl/logs"));
        assert!(!chosen("kubectl-1.29/logs", "kubectl") && !chosen("kubectl/logs", "kubectl/lo"));
    }

    #[test]
    fn checks_have_different_names() {
        let mut names: Vec<_> = checks(Node::Berth).into_iter().map(|(name, _)| name).collect();
        let number = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), number);
    }
}
