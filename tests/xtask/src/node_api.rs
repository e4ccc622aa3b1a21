//! `cargo xtask node-api`: who may ask the node's API for what. Each identity sends each method to each path, to the real
//! kubelet and to Berth, on clusters of this run's own, one after the other. The statuses are compared; differences that
//! were reviewed are in `tests/peers/node-api-differences`, each with its reason. With `--load` it is what the node's API
//! of Berth has to bear.

mod differences;
mod identities;
mod load;

use crate::{
    cluster::{self, Audit, Cluster, Etcd, Node, Options},
    out, peers,
};
use anyhow::{Context, Result, bail};
use berth_harness::tools;
use differences::Differences;
use identities::{Identity, make};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Port of the node's API.
const PORT: u16 = 10250;

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

const PATHS: [&str; 43] = [
    "/",
    "/nothing",
    "/healthz",
    "/healthz/",
    "/healthz/ping",
    "/healthz/log",
    "/healthz/syncloop",
    "/healthz/nothing",
    "/pods",
    "/pods/",
    "/pods/x",
    "/podsx",
    "/runningpods",
    "/runningpods/",
    "/configz",
    "/configz/x",
    "/flagz",
    "/statusz",
    "/stats",
    "/stats/",
    "/stats/summary",
    "/stats/container",
    "/metrics",
    "/metrics/",
    "/metrics/cadvisor",
    "/metrics/resource",
    "/metrics/probes",
    "/metrics/slis",
    "/metrics/nothing",
    "/logs",
    "/logs/",
    "/logs/nothing",
    "/containerLogs/default/none/c",
    "/containerLogs/default/none",
    "/exec/default/none/c?command=true&output=1",
    "/exec/default/none/uid/c?command=true&output=1",
    "/attach/default/none/c?output=1",
    "/run/default/none/c?cmd=true",
    "/portForward/default/none",
    "/checkpoint/default/none/c",
    "/debug/pprof/cmdline",
    "/pods/../exec/default/none/c",
    "/exec//default/none/c",
];

/// Options of `cargo xtask node-api`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the clusters' files; `berth/node-api` of the cache directory where none is named.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave a cluster running where it cannot be asked.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    load: load::LoadArgs,
}

/// Who, method and path, and the status of the answer.
type Statuses = BTreeMap<(String, String, String), u16>;

/// Asks both and compares. Returns whether they differ only where that was reviewed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let reviewed = Differences::read(&crate::root().join("tests/peers/node-api-differences"))?;
    let dir = tools::dir_or_cached(args.dir.as_deref(), "node-api")?;
    if args.load.load {
        return load::run(&args.load, &dir.join("load"), args.keep);
    }
    let kubelet = on(Node::Kubelet, &dir.join("kubelet"), args.keep)?;
    let berth = on(Node::Berth, &dir.join("berth"), args.keep)?;
    let (mut unknown, mut used) = (Vec::new(), vec![0_usize; reviewed.len()]);
    for (tuple, wanted) in &kubelet {
        let found = berth.get(tuple).copied().unwrap_or_default();
        if found == *wanted {
            continue;
        }
        match reviewed.of(tuple, *wanted, found) {
            Some(line) => used[line] += 1,
            None => {
                unknown.push(format!("{} {} {}: kubelet {wanted}, Berth {found}", tuple.0, tuple.1, tuple.2))
            }
        }
    }
    let excused: usize = used.iter().sum();
    out::line(&format!("{} requests each, {excused} with a reviewed difference", kubelet.len()));
    for difference in &unknown {
        out::line(difference);
    }
    let idle: Vec<&str> =
        reviewed.lines().zip(&used).filter(|(_, used)| **used == 0).map(|(line, _)| line).collect();
    for line in &idle {
        out::line(&format!("no answer differs like this any more: {line}"));
    }
    Ok(unknown.is_empty() && idle.is_empty())
}

/// The statuses of a node on a cluster that is ended afterwards.
fn on(node: Node, dir: &Path, keep: bool) -> Result<Statuses> {
    let options = Options { keep, ..Options::new(node, Etcd::Old, Audit::ToNodes) };
    let cluster = cluster::start(dir, &options)?;
    let asked = ask_all(&cluster);
    if keep && asked.is_err() {
        return asked;
    }
    cluster.end()?;
    asked
}

fn ask_all(cluster: &Cluster) -> Result<Statuses> {
    let bin = peers::get(&["kubectl"])?;
    let identities = make(cluster, &bin)?;
    let base = format!("https://{}:{PORT}", cluster.address()?);
    let mut statuses = Statuses::new();
    out::timed("ask the node's API", || {
        for identity in &identities {
            for method in METHODS {
                let codes = ask(identity, method, &base, &cluster.file("curl"))?;
                for (path, code) in PATHS.iter().zip(codes) {
                    statuses.insert((identity.name.to_owned(), method.to_owned(), (*path).to_owned()), code);
                }
            }
        }
        Ok(())
    })?;
    Ok(statuses)
}

/// The statuses of one identity's requests with one method, in the order of [`PATHS`]. `file` is for curl's configuration.
fn ask(identity: &Identity, method: &str, base: &str, file: &Path) -> Result<Vec<u16>> {
    let mut config =
        "silent\ninsecure\npath-as-is\nmax-time = 20\nwrite-out = \"%{http_code}\\n\"\n".to_owned();
    config += &if method == "HEAD" { "head\n".to_owned() } else { format!("request = {method}\n") };
    for line in &identity.curl {
        writeln!(config, "{line}")?;
    }
    for path in PATHS {
        writeln!(config, "url = \"{base}{path}\"\noutput = /dev/null")?;
    }
    std::fs::write(file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let answer = Command::new("curl").arg("--config").arg(file).output().context("cannot run curl")?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let codes: Vec<u16> = text.lines().map(|line| line.parse().unwrap_or_default()).collect();
    if codes.len() != PATHS.len() || codes.contains(&0) {
        bail!("{} {method}: not every request was answered: {codes:?}", identity.name);
    }
    Ok(codes)
}
