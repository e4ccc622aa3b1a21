//! metrics-server as a pod, which verifies the node's serving certificate, and what `kubectl top` then shows of pods whose
//! use is known.

use super::{Stage, kubectl::pod};
use crate::cluster::NODE;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    oci::{Entry, Image},
    wait,
};
use serde_json::Value;
use std::{fs, time::Duration};

/// Name of the image.
const IMAGE: &str = "berth.test/metrics-server:1";
/// A pod that uses a fifth of a CPU by its quota, in thousandths.
const BUSY: (&str, f64) = ("busy", 200.0);
/// A pod that holds memory, in bytes.
const LARGE: (&str, f64) = ("large", 67_108_864.0);
/// Time until metrics-server has two scrapes of new pods.
const SCRAPES: Duration = Duration::from_secs(180);

/// `top node` and `top pod` say what the pods use.
pub(super) fn top(stage: &Stage<'_>) -> Result<String> {
    let program = stage.bin.join("metrics-server");
    let program = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let image = Image {
        name: IMAGE.into(),
        layers: vec![vec![Entry::file("metrics-server", 0o755, program)]],
        config: serde_json::json!({"Entrypoint": ["/metrics-server"]}),
    };
    stage.cluster.import(&[image])?;
    stage.cluster.apply("metrics-server", include_str!("metrics_server.yaml"))?;
    let limit = "    resources: {limits: {cpu: 200m, memory: 200Mi}}\n";
    // The text stays in the shell's memory.
    let large = "x=$(head -c 67108864 /dev/zero | tr '\\0' x); while :; do sleep 1000; done";
    stage.cluster.apply(BUSY.0, &pod(BUSY.0, "", limit, "while :; do :; done"))?;
    stage.cluster.apply(LARGE.0, &pod(LARGE.0, "", "", large))?;
    let client = stage.kubectl("kubectl");
    let figures = || -> Result<(f64, f64)> {
        let text =
            client.ok(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"])?.text();
        let list: Value = serde_json::from_str(&text).context("cannot read the metrics of pods")?;
        let of = |pod: &str, field: &str| {
            let items = list["items"].as_array()?;
            let item = items.iter().find(|item| item["metadata"]["name"] == pod)?;
            quantity(item["containers"][0]["usage"][field].as_str()?)
        };
        let busy = of(BUSY.0, "cpu").context("metrics-server has no CPU of the busy pod")? * 1000.0;
        let large = of(LARGE.0, "memory").context("metrics-server has no memory of the large pod")?;
        Ok((busy, large))
    };
    let (busy, large) = wait::ok("metrics-server has the figures", SCRAPES, || {
        let (busy, large) = figures()?;
        ensure!((busy - BUSY.1).abs() <= 0.1 * BUSY.1, "the busy pod uses {busy:.0}m of {:.0}m", BUSY.1);
        ensure!(large >= LARGE.1, "the large pod has {large} bytes");
        Ok((busy, large))
    })
    .with_context(|| {
        stage
            .cluster
            .kubectl(&["logs", "-n", "kube-system", "deployment/metrics-server", "--tail=5"])
            .unwrap_or_default()
    })?;
    let own = working_set(stage, LARGE.0)?;
    ensure!(
        (large - own).abs() <= 0.05 * own,
        "the large pod has {own} bytes by its group, {large} by metrics-server"
    );
    let pods = client.ok(&["top", "pod", "--containers"])?.text();
    ensure!(pods.contains(BUSY.0) && pods.contains(LARGE.0), "{pods}");
    let node = client.ok(&["top", "node"])?.text();
    ensure!(node.contains(NODE) && !node.contains("<unknown>"), "{node}");
    let old = stage.kubectl("kubectl-1.29").ok(&["top", "node"])?.text();
    ensure!(old.contains(NODE), "{old}");
    client.ok(&["delete", "pod", BUSY.0, LARGE.0, "--now"])?;
    let node: Vec<&str> = node.lines().nth(1).unwrap_or_default().split_whitespace().skip(1).collect();
    Ok(format!(
        "busy {busy:.0}m of 200m, large {:.1} MiB, {:.1} MiB by its group; node {}",
        large / 1_048_576.0,
        own / 1_048_576.0,
        node.join(" ")
    ))
}

/// A quantity in its base unit; `None` where it is none.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// Working set of a pod's container by the files of its cgroup: use without inactive pages of files.
fn working_set(stage: &Stage<'_>, pod: &str) -> Result<f64> {
    let id = stage.cluster.kubectl(&[
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.containerStatuses[0].containerID}",
    ])?;
    let id = id.trim_start_matches("containerd://");
    let find = std::process::Command::new("find")
        .args(["/sys/fs/cgroup/memory", "-type", "d", "-name", id])
        .output()
        .context("cannot run find")?;
    let group = String::from_utf8_lossy(&find.stdout).trim().to_owned();
    ensure!(!group.is_empty(), "there is no cgroup {id}");
    let read = |file: &str| {
        fs::read_to_string(format!("{group}/{file}")).with_context(|| format!("cannot read {file}"))
    };
    let used: f64 = read("memory.usage_in_bytes")?.trim().parse().context("no number")?;
    let stat = read("memory.stat")?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix("total_inactive_file "));
    let inactive: f64 = inactive.context("no inactive files")?.parse().context("no number")?;
    Ok(used - inactive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        let of = |text| quantity(text).map(|value| (value * 1000.0).round());
        assert_eq!(of("200m"), Some(200.0));
        assert_eq!(of("199765432n"), Some(200.0));
        assert_eq!(of("2Ki"), Some(2_048_000.0));
        assert_eq!((of("x"), of("1x")), (None, None));
    }
}
