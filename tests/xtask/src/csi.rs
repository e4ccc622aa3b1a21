//! csi-sanity, the conformance tests of the Container Storage Interface (csi-test), against the driver for NFS.
//!
//! The driver runs with a local directory in the server's place. Each spec counts as a test. A spec that csi-sanity
//! skips is one of a feature that the driver does not announce: the reasons are listed here with ours, and a skip for
//! another reason fails, as does a reason that no skip has any more.

pub(crate) mod cluster;

use crate::{
    out, peers,
    setup::succeed,
    test::tally::{Outcome, Tally},
};
use anyhow::{Context, Result, ensure};
use berth_harness::{tools, wait};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Why csi-sanity skips a spec, and why the driver lacks what the spec is about.
const REVIEWED: &[(&str, &str)] = &[
    ("NodeStageVolume not supported", "volumes are mounted at each pod's path"),
    ("NodeUnstageVolume not supported", "volumes are mounted at each pod's path"),
    ("NodeExpandVolume not supported", "NFS has nothing to grow on a node"),
    ("NodeGetVolumeHealth not supported", "of CSI 1.13, alpha; the condition is in the statistics"),
    ("NodeGetStorageHealth not supported", "of CSI 1.13, alpha; the condition is in the statistics"),
    ("ControllerGetVolumeHealth not supported", "of CSI 1.13, alpha"),
    ("ControllerListVolumeHealth not supported", "of CSI 1.13, alpha"),
    ("ControllerPublishVolume not supported", "NFS attaches nothing"),
    ("ControllerUnpublishVolume not supported", "NFS attaches nothing"),
    ("Controller Publish, UnpublishVolume not supported", "NFS attaches nothing"),
    ("ControllerModifyVolume not supported", "a volume has no mutable parameters"),
    ("Modify volume not supported", "a volume has no mutable parameters"),
    ("Modify Volume not supported", "a volume has no mutable parameters"),
    ("GroupControllerService not supported", "copies of several volumes are not of one moment"),
    (
        "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported",
        "every node reaches a share, so there is no topology",
    ),
];

/// Time limit of the whole program; it takes seconds.
const LIMIT: Duration = Duration::from_secs(270);

/// Fewest specs that must pass: a program that runs nothing is no success.
const FEWEST: usize = 60;

/// Ginkgo's report.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<Spec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Runs csi-sanity.
///
/// # Errors
/// The driver or csi-sanity does not build or start.
pub(crate) fn sanity(tally: &mut Tally) -> Result<()> {
    let program = peers::get(&["csi-sanity"])?.join("csi-sanity");
    let driver = out::timed("build berth-csi-nfs", tools::csi_nfs)?;
    let dir = tools::cache()?.join(format!("csi-{}", std::process::id()));
    fs::create_dir_all(dir.join("shares/export"))
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let done = on(&dir, &driver, &program, tally);
    if done.is_ok() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    done.with_context(|| format!("the files are in {}", dir.display()))
}

fn on(dir: &Path, driver: &Path, program: &Path, tally: &mut Tally) -> Result<()> {
    let socket = dir.join("csi.sock");
    let mut driver = Command::new(driver)
        .args(["--node-id", "node", "--parameter", "server=test.invalid", "--parameter", "share=/export"])
        .arg(format!("--endpoint=unix://{}", socket.display()))
        .arg("--test-shares")
        .arg(dir.join("shares"))
        .stdin(Stdio::null())
        .stderr(File::create(dir.join("driver.log")).context("cannot write the driver's log")?)
        .spawn()
        .context("cannot start the driver")?;
    let report = dir.join("report.json");
    let ran = wait::until("the driver's socket", Duration::from_secs(10), || socket.exists())
        .and_then(|()| out::timed("csi-sanity", || run(program, dir, &socket, &report)));
    let begun = Instant::now();
    let ended = end(&mut driver);
    ran?;
    let clean = ended.and_then(|()| {
        ensure!(!socket.exists(), "the socket is still there");
        for left in ["volumes", "snapshots", "copies", "removed"] {
            let entries = fs::read_dir(dir.join("shares/export/.berth-csi-nfs").join(left));
            let count = entries.with_context(|| format!("cannot list {left}"))?.count();
            ensure!(count == 0, "{count} entries are left in {left}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        ensure!(!mounts.contains(&dir.display().to_string()), "a mount is left");
        Ok(())
    });
    let outcome = clean.map_or_else(|e| Outcome::Failed(format!("{e:#}")), |()| Outcome::Passed);
    tally.add("csi-sanity: the driver ends and leaves nothing", outcome, begun.elapsed());
    let text = fs::read(&report).context("csi-sanity wrote no report")?;
    let reports: Vec<Report> = serde_json::from_slice(&text).context("cannot read csi-sanity's report")?;
    judge(reports.into_iter().flat_map(|report| report.spec_reports), tally);
    Ok(())
}

/// Runs the program to its end. Its verdict is in the report.
fn run(program: &Path, dir: &Path, socket: &Path, report: &Path) -> Result<()> {
    let log = File::create(dir.join("sanity.log")).context("cannot write csi-sanity's log")?;
    let mut child = Command::new(program)
        .arg(format!("--csi.endpoint=unix://{}", socket.display()))
        .arg(format!("--csi.mountdir={}", dir.join("mounts").display()))
        .arg(format!("--csi.stagingdir={}", dir.join("staging").display()))
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.timeout={}s", LIMIT.as_secs()))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .stdin(Stdio::null())
        .stderr(log.try_clone().context("cannot write csi-sanity's log")?)
        .stdout(log)
        .spawn()
        .context("cannot start csi-sanity")?;
    let ended = wait::until("the end of csi-sanity", LIMIT + Duration::from_secs(10), || {
        child.try_wait().is_ok_and(|status| status.is_some())
    });
    if ended.is_err() {
        child.kill().context("cannot end csi-sanity")?;
        child.wait().context("cannot end csi-sanity")?;
    }
    ended
}

/// Ends the driver as a service manager does.
fn end(driver: &mut Child) -> Result<()> {
    succeed(Command::new("kill").arg(driver.id().to_string()))?;
    let mut status = None;
    let ended = wait::until("the end of the driver", Duration::from_secs(10), || {
        status = driver.try_wait().ok().flatten();
        status.is_some()
    });
    if ended.is_err() {
        driver.kill().context("cannot end the driver")?;
        driver.wait().context("cannot end the driver")?;
    }
    ended?;
    ensure!(status.is_some_and(|s| s.success()), "the driver ended with {status:?}");
    Ok(())
}

/// Counts the specs.
fn judge(specs: impl Iterator<Item = Spec>, tally: &mut Tally) {
    let mut used = BTreeSet::new();
    let (mut passed, mut skipped) = (0, 0);
    for spec in specs.filter(|spec| spec.leaf_node_type == "It") {
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        let name = format!("csi-sanity: {}", words.join(" "));
        let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
        let outcome = match spec.state.as_str() {
            "passed" => {
                passed += 1;
                Outcome::Passed
            }
            // csi-test itself has switched it off, as its results are by chance.
            "pending" => continue,
            "skipped" if REVIEWED.iter().any(|(reason, _)| *reason == message) => {
                skipped += 1;
                used.insert(message);
                continue;
            }
            state => Outcome::Failed(format!("{state}: {message}")),
        };
        tally.add(&name, outcome, Duration::from_nanos(spec.run_time));
    }
    for (reason, why) in REVIEWED {
        if used.contains(*reason) {
            out::line(&format!("csi-sanity skips, reviewed: {reason}: {why}"));
        } else {
            let why = "no spec is skipped for this reason any more".to_owned();
            tally.add(&format!("csi-sanity: {reason}"), Outcome::Failed(why), Duration::ZERO);
        }
    }
    if passed < FEWEST {
        let why = format!("{passed} specs passed, fewer than {FEWEST}");
        tally.add("csi-sanity: all specs", Outcome::Failed(why), Duration::ZERO);
    }
    out::line(&format!("csi-sanity: {passed} specs passed, {skipped} are of features that NFS has not"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(state: &str, message: &str) -> Spec {
        Spec {
            container_hierarchy_texts: None,
            leaf_node_type: "It".into(),
            leaf_node_text: "x".into(),
            state: state.into(),
            run_time: 1,
            failure: Some(Failure { message: message.into() }),
        }
    }

    #[test]
    fn an_unknown_skip_a_failure_and_an_empty_run_fail() {
        let reviewed = || REVIEWED.iter().map(|(reason, _)| spec("skipped", reason));
        let passes = || (0..FEWEST).map(|_| spec("passed", ""));
        let failed = |specs: &mut dyn Iterator<Item = Spec>| {
            let mut tally = Tally::default();
            judge(specs, &mut tally);
            tally.counts().1
        };
        assert_eq!(failed(&mut reviewed().chain(passes())), 0);
        assert_eq!(failed(&mut reviewed()), 1);
        assert_eq!(failed(&mut reviewed().skip(1).chain(passes())), 1);
        for bad in
            [spec("skipped", "not today"), spec("failed", ""), spec("panicked", ""), spec("timedout", "")]
        {
            assert_eq!(failed(&mut reviewed().chain(passes()).chain([bad])), 1);
        }
    }
}
