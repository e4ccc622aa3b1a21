//! The Service data plane, measured by a separate program whose figures are passed on.

use super::Figure;
use crate::{cargo, out};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::tools;
use serde::Deserialize;
use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Figures of that program, with their units.
const FIGURES: [(&str, &str); 9] = [
    ("service_new_conn_ratio", "ratio"),
    ("service_keepalive_ratio", "ratio"),
    ("service_keepalive_runs", "runs a request"),
    ("cni_new_conn_ratio", "ratio"),
    ("nodeport_new_conn_ratio", "ratio"),
    ("update_p99_us", "µs"),
    ("fill_10k_s", "s"),
    ("restart_sync_s", "s"),
    ("datapath_mem_mb", "MB"),
];

/// A figure in the program's output.
#[derive(Debug, Deserialize)]
struct Told {
    name: String,
    value: f64,
    n: usize,
    against: String,
}

/// Builds the optimised programs and runs the measurement.
pub(crate) fn run(rounds: usize, only: &[String]) -> Result<Vec<Figure>> {
    let programs = out::timed("build service-bench and what it runs, optimised", programs)?;
    let mut command = Command::new(programs.join("service-bench"));
    command.arg("--programs").arg(&programs).arg("--reference").arg(tools::dir()?);
    command.args(["--rounds", &rounds.to_string()]);
    for name in only {
        command.args(["--only", name]);
    }
    let done = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("run service-bench")?;
    ensure!(done.status.success(), "service-bench: {}", done.status);
    let told: Vec<Told> = serde_json::from_slice(&done.stdout).context("read its figures")?;
    told.into_iter().map(figure).collect()
}

fn figure(told: Told) -> Result<Figure> {
    let Some((name, unit)) = FIGURES.iter().find(|(name, _)| *name == told.name) else {
        bail!("service-bench gives an unknown figure {}", told.name);
    };
    Ok(Figure { name, value: told.value, unit, n: told.n, against: told.against })
}

fn programs() -> Result<PathBuf> {
    let mut build = cargo::command(&["build", "--quiet", "--release", "--locked"]);
    for package in ["berth-load", "berth-cni", "berth-tests-services"] {
        build.args(["--package", package]);
    }
    let done = build.status().context("run cargo")?;
    ensure!(done.success(), "service-bench does not build");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(target.join("release"))
}
