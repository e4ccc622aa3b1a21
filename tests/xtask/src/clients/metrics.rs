//! `promtool check metrics` on each endpoint, and the families and labels that the rules of kubernetes-mixin read, in a
//! real scrape.

use super::Stage;
use crate::cluster::Node;
use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Command, Stdio},
};

/// The endpoints and their names in `agent/stats/tests/data`.
pub(super) const ENDPOINTS: [(&str, &str); 4] = [
    ("metrics", "metrics"),
    ("metrics/cadvisor", "cadvisor"),
    ("metrics/resource", "resource"),
    ("metrics/probes", "probes"),
];

/// Families whose name promtool finds fault with, and which the kubelet calls so: their names are the interface.
const LINTED: &str = include_str!("linted.txt");

/// promtool reads each endpoint; it finds fault with nothing but names that are the kubelet's own.
pub(super) fn promtool(stage: &Stage<'_>) -> Result<String> {
    let reviewed: BTreeSet<&str> = LINTED.lines().filter(|line| !line.starts_with('#')).collect();
    let mut faults = BTreeSet::new();
    let mut series = 0;
    for (path, _) in ENDPOINTS.into_iter().chain([("metrics/slis", "slis")]) {
        let text = stage.node_api(path)?;
        series += text.lines().filter(|line| !line.starts_with('#')).count();
        let file = stage.cluster.write("scrape.txt", &text)?;
        let input = fs::File::open(&file).context("cannot open the scrape")?;
        let mut command = Command::new(stage.bin.join("promtool"));
        command.args(["check", "metrics"]).stdin(Stdio::from(input));
        let done = command.output().context("cannot run promtool")?;
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // 3: it reads all of it, and finds fault with a name.
        let code = done.status.code().unwrap_or(-1);
        ensure!(code == 0 || code == 3, "{path}: promtool ends with {code}: {said}");
        faults
            .extend(said.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{path} {line}")));
    }
    let unknown: Vec<_> = faults.iter().filter(|fault| !reviewed.contains(fault.as_str())).collect();
    // The list is Berth's; the kubelet has more.
    ensure!(stage.node == Node::Kubelet || unknown.is_empty(), "{unknown:#?}");
    Ok(format!(
        "{series} series, {} remarks about names, {} of them not reviewed",
        faults.len(),
        unknown.len()
    ))
}

/// Every family that the rules read is there, with a series that has the labels they join on.
pub(super) fn mixin(stage: &Stage<'_>) -> Result<String> {
    let path = crate::root().join("agent/stats/tests/data/required.txt");
    let required = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut missing = Vec::new();
    let mut found = 0;
    for (path, name) in ENDPOINTS {
        let scrape = shapes(&stage.node_api(path)?);
        for line in required.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')) {
            let (family, labels) = line.split_once(' ').unwrap_or((line, "-"));
            let wanted: BTreeSet<&str> = labels.split(',').filter(|label| *label != "-").collect();
            match scrape.get(family) {
                None => missing.push(format!("{name} {family}: declared nowhere")),
                Some(own) if own.is_empty() => missing.push(format!("{name} {family}: no series")),
                Some(own)
                    if !own.iter().any(|own| own.iter().map(String::as_str).eq(wanted.iter().copied())) =>
                {
                    missing.push(format!("{name} {family}: labels {own:?}"));
                }
                Some(_) => found += 1,
            }
        }
    }
    let reviewed = |line: &&String| !(ABSENT.iter().any(|absent| line.starts_with(absent)));
    let unknown: Vec<_> = missing.iter().filter(reviewed).collect();
    ensure!(stage.node == Node::Kubelet || unknown.is_empty(), "{unknown:#?}");
    let absent: Vec<_> = missing.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
    Ok(format!("{found} families with their labels; without series here: {}", absent.join(", ")))
}

/// Families without series where what they count did not happen: no call of the runtime failed, and no container used a
/// block device, which version 1 of cgroups does not count for files. The runtime is listed a second time only after a while
/// without events.
const ABSENT: [&str; 6] = [
    "metrics kubelet_pleg_relist_interval_seconds",
    "metrics kubelet_runtime_operations_errors_total",
    "cadvisor container_fs_reads_total",
    "cadvisor container_fs_writes_total",
    "cadvisor container_fs_reads_bytes_total",
    "cadvisor container_fs_writes_bytes_total",
];

/// The families of a text, each with the label names of its series, without those of a histogram's buckets.
fn shapes(text: &str) -> BTreeMap<String, BTreeSet<BTreeSet<String>>> {
    let mut shapes: BTreeMap<String, BTreeSet<BTreeSet<String>>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            shapes.entry(declared.split(' ').next().unwrap_or_default().to_owned()).or_default();
        } else if !line.starts_with('#') {
            let Some((name, labels)) = series(line) else { continue };
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|base| shapes.contains_key(*base)))
                .unwrap_or(name);
            let labels = labels.into_iter().filter(|label| label != "le").collect();
            shapes.entry(family.to_owned()).or_default().insert(labels);
        }
    }
    shapes
}

/// Name and label names of a line.
fn series(line: &str) -> Option<(&str, Vec<String>)> {
    let Some((name, rest)) = line.split_once('{') else { return Some((line.split(' ').next()?, Vec::new())) };
    let names = rest.split('"').step_by(2);
    Some((
        name,
        names.filter_map(|l| l.trim_start_matches(',').strip_suffix('=')).map(str::to_owned).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_labels_are_read() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"{b\"} 2\n# TYPE h histogram\nh_bucket{z=\"\",le=\"1\"} 1\nh_sum{z=\"\"} 1\n\
                    # TYPE none gauge\nplain 3\n";
        let shapes = shapes(text);
        let of = |name: &str| format!("{:?}", shapes[name]);
        assert_eq!(of("a"), r#"{{"x", "y"}}"#);
        assert_eq!(of("h"), r#"{{"z"}}"#);
        assert_eq!(of("none"), "{}");
        assert_eq!(of("plain"), "{{}}");
    }
}
