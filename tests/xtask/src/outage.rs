//! `cargo xtask outage`: fifty pods with churn on a cluster of this run's own, and what a node must bear: kills of the
//! agent, an API server that is away, asks to connect anew, cuts, forgets or refuses.
//!
//! Each phase disturbs, ends the disturbance, waits until the node sends nothing but its lease, and compares with the
//! time before: pods to which nothing happened have no restart and no change of readiness, their EndpointSlices are not
//! written, and the node asks little. The API server's own audit log and objects are the witnesses.

mod load;
mod phases;
mod rotation;
mod small;
mod verdict;

use crate::{
    cluster::{self, Audit, Cluster, Etcd, Node, Options},
    out,
};
use anyhow::{Context, Result, ensure};
use berth_harness::{rng, tools};
use load::Load;
use phases::{PHASES, Stage};
pub(crate) use small::suite;
use std::{fs, path::PathBuf, time::Duration};
use verdict::Verdict;

/// Options of `cargo xtask outage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these phases: kills, away, goaway, cuts, expired, refused, errors.
    #[arg(long, value_name = "NAME")]
    phase: Vec<String>,
    /// Which etcd keeps the objects: `old` (lists in pages) or `new` (streaming lists); both, one after the other,
    /// where none is named.
    #[arg(long, value_enum)]
    etcd: Option<Etcd>,
    /// How often the agent is killed.
    #[arg(long, default_value_t = 100, value_name = "N")]
    kills: u64,
    /// How long the API server is away.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    away: u64,
    /// How long watches are cut each second.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    cuts: u64,
    /// Directory of the clusters' files; `berth/outage` of the cache directory where none is named.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the cluster running where a phase failed; end it by `cargo xtask cluster --down --dir DIR`.
    #[arg(long)]
    keep: bool,
}

/// Runs the phases. Returns whether every figure was within its bound.
pub(crate) fn run(args: &Args) -> Result<bool> {
    for name in &args.phase {
        let names: Vec<&str> = PHASES.iter().map(|p| p.name).collect();
        ensure!(names.contains(&name.as_str()), "there is no phase {name}; there are: {}", names.join(", "));
    }
    let etcds = args.etcd.map_or_else(|| vec![Etcd::Old, Etcd::New], |etcd| vec![etcd]);
    let mut all = Vec::new();
    for etcd in etcds {
        let verdicts = on_a_cluster(etcd, args, |cluster| phases(cluster, etcd, args))?;
        all.extend(verdicts);
    }
    out::line("all phases:");
    for verdict in &all {
        verdict.tell();
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "phases": all }))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(all.iter().all(Verdict::is_good))
}

/// Runs work on a cluster with the agent, and ends the cluster also where the work fails, but with `keep`.
fn on_a_cluster(
    etcd: Etcd,
    args: &Args,
    work: impl FnOnce(&Cluster) -> Result<Vec<Verdict>>,
) -> Result<Vec<Verdict>> {
    let keep = args.keep;
    let dir = tools::dir_or_cached(args.dir.as_deref(), "outage")?;
    let options = Options { keep, ..Options::new(Node::Berth, etcd, Audit::OfNodes) };
    let cluster = cluster::start(&dir, &options)?;
    let done = work(&cluster);
    let good = done.as_ref().is_ok_and(|all| all.iter().all(Verdict::is_good));
    if keep && !good {
        out::line(&format!(
            "the cluster runs on; end it by `cargo xtask cluster --down --dir {}`",
            dir.display()
        ));
        return done;
    }
    let kept = crate::root().join("target/outage");
    if !good {
        cluster.keep_logs(&kept)?;
        out::line(&format!("logs of the failed run are in {}", kept.display()));
    }
    let ended = cluster.end();
    done.and_then(|all| ended.map(|()| all))
}

fn phases(cluster: &Cluster, etcd: Etcd, args: &Args) -> Result<Vec<Verdict>> {
    let load = out::timed("start fifty pods", || Load::start(cluster, load::FIFTY))?;
    let mut stage = Stage {
        cluster,
        load: &load,
        proxy: None,
        rng: rng::Rng::new(rng::seed()),
        kills: args.kills,
        away: Duration::from_secs(args.away),
        cuts: Duration::from_secs(args.cuts),
    };
    let mut all = Vec::new();
    for phase in PHASES.iter().filter(|p| args.phase.is_empty() || args.phase.iter().any(|n| n == p.name)) {
        let name = format!("{} ({})", phase.name, etcd.program());
        let judged = out::timed(&name, || stage.judge(phase, &name));
        let verdict = judged.unwrap_or_else(|error| Verdict::failed(&name, &error));
        verdict.tell();
        let failed = verdict.failed;
        all.push(verdict);
        if failed {
            // The next phase would begin in an unknown state.
            break;
        }
    }
    Ok(all)
}
