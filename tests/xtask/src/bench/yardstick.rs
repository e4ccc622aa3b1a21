//! Plain runc with the same input as the node's container: OCI spec, namespaces and mounted root file system.

use anyhow::{Context, Result, ensure};
use berth_harness::{node::Node, process::Process, socket::Pod, tools, wait};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Bundle equal to that of a running pod's container, and the runc that runs the bundle.
pub(crate) struct Yardstick {
    runc: PathBuf,
    /// State directory of runc (`--root`).
    root: PathBuf,
    /// Directory of the bundles, one per run.
    dir: PathBuf,
    spec: Value,
    cgroup: String,
}

/// A run of the bundle.
pub(crate) struct Run {
    id: String,
    pid: Process,
}

impl Yardstick {
    /// Copies the bundle of a running pod's first container.
    pub(crate) fn of(node: &Node, pod: &Pod) -> Result<Yardstick> {
        let id = pod.0["containers"][0]["id"].as_str().context("the pod has no running container")?;
        let state = node.dir.join("containerd/state/io.containerd.runtime.v2.task");
        let bundle = state.join(&node.roots.containerd_namespace).join(id);
        let text = fs::read(bundle.join("config.json"))
            .with_context(|| format!("read the bundle {}", bundle.display()))?;
        let mut spec: Value = serde_json::from_slice(&text)?;
        let rootfs = bundle.join("rootfs");
        ensure!(rootfs.join("bin").exists(), "{} is not mounted", rootfs.display());
        spec["root"]["path"] = json!(rootfs);
        let dir = node.dir.join("yardstick");
        fs::create_dir_all(&dir)?;
        Ok(Yardstick {
            runc: tools::find("runc")?,
            root: node.roots.runtime_state.join("yardstick"),
            dir,
            spec,
            cgroup: node.cgroup.clone(),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    /// Writes a bundle. The time of writing is not counted as runc's.
    pub(crate) fn bundle(&self, id: &str) -> Result<()> {
        let mut spec = self.spec.clone();
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/yardstick/{id}", self.cgroup));
        let bundle = self.dir.join(id);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?).context("write a bundle")
    }

    /// Runs `runc run -d` and measures its time.
    pub(crate) fn run(&self, id: &str) -> Result<(Run, Duration)> {
        let bundle = self.dir.join(id);
        let pid_file = bundle.join("pid");
        let (out, err) = (File::create(bundle.join("out"))?, File::create(bundle.join("err"))?);
        let mut command = self.command();
        command.args(["run", "--detach", "--bundle"]).arg(&bundle).arg("--pid-file").arg(&pid_file).arg(id);
        command.stdout(out).stderr(err);
        let begun = Instant::now();
        let status = command.status().context("run runc")?;
        let took = begun.elapsed();
        let told = || fs::read_to_string(bundle.join("err")).unwrap_or_default();
        ensure!(status.success(), "runc run: {status}: {}", told());
        let pid = fs::read_to_string(&pid_file)?.trim().parse()?;
        let pid = Process::of(pid).with_context(|| format!("the container ended at once: {}", told()))?;
        Ok((Run { id: id.into(), pid }, took))
    }

    /// Runs `runc kill` and, once the process is gone, `runc delete`. Returns the time of the two commands.
    pub(crate) fn end(&self, run: &Run) -> Result<Duration> {
        // PID 1 of a namespace ignores SIGTERM until its trap is set.
        let out = self.dir.join(&run.id).join("out");
        wait::until("the container says that it is ready", Duration::from_secs(20), || {
            fs::read_to_string(&out).is_ok_and(|text| text.contains("ready"))
        })?;
        let kill = self.timed(&["kill", &run.id, "TERM"])?;
        wait::until("the container ends", Duration::from_secs(20), || !run.pid.alive())?;
        let delete = self.timed(&["delete", &run.id])?;
        fs::remove_dir_all(self.dir.join(&run.id))?;
        Ok(kill + delete)
    }

    fn timed(&self, args: &[&str]) -> Result<Duration> {
        let mut command = self.command();
        command.args(args);
        let begun = Instant::now();
        let out = command.output().context("run runc")?;
        let took = begun.elapsed();
        ensure!(out.status.success(), "runc {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(took)
    }
}
