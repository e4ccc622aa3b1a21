//! Counters over the agent's death: with pods that come and go, what counts containers never falls while the container is
//! the same; what counts the agent itself begins with its process, and says so by `process_start_time_seconds`.

use super::{Stage, kubectl::pod, metrics::ENDPOINTS};
use crate::cluster::AGENT;
use anyhow::{Context, Result, ensure};
use berth_harness::wait::{self, PATIENCE};
use std::collections::{BTreeMap, BTreeSet};

/// Scrapes in one life of the agent.
const SCRAPES: usize = 3;

/// Counters that are the agent's own: they begin with each process.
const OF_THE_PROCESS: [&str; 2] = ["metrics", "metrics/probes"];

/// Values of all counters of an endpoint, by series.
type Counters = BTreeMap<String, f64>;

/// Kills the agent again and again under churn and compares each scrape with the one before.
pub(super) fn never_fall(stage: &Stage<'_>) -> Result<String> {
    let mut before: BTreeMap<&str, Counters> = BTreeMap::new();
    let (mut compared, mut seen, mut fallen) = (0_usize, BTreeSet::new(), Vec::new());
    for kill in 0..=stage.args.kills {
        for scrape in 0..SCRAPES {
            churn(stage, kill * SCRAPES + scrape)?;
            for (path, _) in ENDPOINTS {
                let now = counters(&stage.node_api(path)?);
                let is_new_process = scrape == 0 && OF_THE_PROCESS.contains(&path);
                if let Some(earlier) = before.get(path).filter(|_| !is_new_process) {
                    for (series, value) in &now {
                        let Some(old) = earlier.get(series) else { continue };
                        compared += 1;
                        if value < old {
                            fallen.push(format!(
                                "life {kill}, scrape {scrape}, {path}: {series} {old} -> {value}"
                            ));
                        }
                    }
                }
                seen.extend(now.keys().map(|series| format!("{path} {series}")));
                before.insert(path, now);
            }
        }
        if kill < stage.args.kills {
            restart(stage)?;
        }
    }
    ensure!(
        fallen.is_empty(),
        "{} counters fell: {:#?}",
        fallen.len(),
        fallen.iter().take(20).collect::<Vec<_>>()
    );
    Ok(format!("{} kills, {compared} comparisons of {} series, none fell", stage.args.kills, seen.len()))
}

/// Makes a pod and removes an older one, without waiting.
fn churn(stage: &Stage<'_>, n: usize) -> Result<()> {
    let name = |n: usize| format!("churn-{n}");
    stage
        .cluster
        .apply("churn", &pod(&name(n), "", "", "i=0; while :; do i=$((i+1)); done & sleep 1000000"))?;
    if let Some(old) = n.checked_sub(4) {
        stage.cluster.kubectl(&["delete", "pod", &name(old), "--wait=false", "--now"])?;
    }
    Ok(())
}

fn restart(stage: &Stage<'_>) -> Result<()> {
    let starts = stage.cluster.agent_starts()?;
    stage.cluster.kill(AGENT)?;
    stage.cluster.start(AGENT)?;
    stage.cluster.agent_runs(starts)?;
    wait::ok("the node's API answers", PATIENCE, || stage.node_api("healthz").map(drop))
        .context("after the agent's start")
}

/// The counters of a text, and the buckets, sums and counts of its histograms.
fn counters(text: &str) -> Counters {
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut counters = Counters::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|declared| declared.split_once(' '))
        {
            kinds.insert(name, kind);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.strip_suffix(end).is_some_and(|base| kinds.get(base) == Some(&"histogram")));
            if !of_histogram && kinds.get(name) != Some(&"counter") {
                continue;
            }
            // A value may have a timestamp behind it.
            let (series, rest) = match line.rsplit_once('}') {
                Some((labels, rest)) => (format!("{labels}}}"), rest),
                None => (name.to_owned(), line.get(name.len()..).unwrap_or_default()),
            };
            if let Some(value) = rest.split_whitespace().next().and_then(|value| value.parse().ok()) {
                counters.insert(series, value);
            }
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_with_their_series() {
        let text = "# TYPE a counter\na{x=\"} 1\"} 2 17\na 3\n# TYPE g gauge\ng 4\n# TYPE h histogram\nh_bucket{le=\"1\"} 5\n";
        let read = counters(text);
        let shown: Vec<String> = read.iter().map(|(series, value)| format!("{series}={value}")).collect();
        assert_eq!(shown, ["a=3", "a{x=\"} 1\"}=2", "h_bucket{le=\"1\"}=5"]);
    }
}
