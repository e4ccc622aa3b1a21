//! Mounts of others below a pod's directory, with files that nobody may lose: they outlive the agent's death, `berth reset`
//! and the pod itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, Result, ensure};
use berth_harness::{
    fuse::{Fuse, PlainFiles},
    node::Node,
    tools::Build,
    wait::{self, PATIENCE},
};
use berth_sys::mount::{BindOpts, bind, is_mount_point, tmpfs, unmount};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use support::{apply, on_a_node, shell};

/// What is mounted at a place below the pod's directory, and at one that stays.
struct Sentinel {
    in_pod: PathBuf,
    kept: PathBuf,
}

impl Sentinel {
    /// Mounts something at `kept` by `mount`, puts its file there, and binds it into the pod's directory.
    fn new(kept: &Path, in_pod: &Path, mount: impl FnOnce(&Path) -> Result<()>) -> Result<Sentinel> {
        for dir in [kept, in_pod] {
            fs::create_dir_all(dir)?;
        }
        mount(kept).with_context(|| format!("mount at {}", kept.display()))?;
        if !kept.join("precious").exists() {
            fs::write(kept.join("precious"), "precious")?;
        }
        bind(kept, in_pod, BindOpts { recursive: true, ..BindOpts::default() })?;
        Ok(Sentinel { in_pod: in_pod.to_owned(), kept: kept.to_owned() })
    }

    fn is_whole(&self) -> Result<()> {
        let text = fs::read_to_string(self.kept.join("precious"));
        ensure!(text.is_ok_and(|t| t == "precious"), "{} has lost its file", self.kept.display());
        Ok(())
    }

    fn is_mounted(&self) -> Result<()> {
        ensure!(is_mount_point(&self.in_pod)?, "{} is no mount any more", self.in_pod.display());
        self.is_whole()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        for dir in [&self.in_pod, &self.kept] {
            // The one in the pod is gone by then.
            unmount(dir).ok();
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let done = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A file system in a file.
fn loop_mount(image: &Path, at: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(8 << 20)?;
    run("mkfs.ext4", &["-q", &image.to_string_lossy()])?;
    run("mount", &["-o", "loop", &image.to_string_lossy(), &at.to_string_lossy()])
}

/// The directory of a pod's volume on the node.
fn volume(node: &Node, pod: &str) -> Result<(PathBuf, PathBuf)> {
    let dir = node.roots.pod_state.join("pods").join(node.ready(pod)?.uid());
    let volume = dir.join("volumes/kubernetes.io~empty-dir/v");
    ensure!(volume.is_dir(), "{} is missing", volume.display());
    Ok((dir, volume))
}

fn with_volume(name: &str) -> String {
    let pod = shell(name, "volumes: [{name: v, emptyDir: {}}]", "trap 'exit 0' TERM; sleep infinity & wait");
    format!("{pod}    volumeMounts: [{{name: v, mountPath: /v}}]\n")
}

#[test]
fn files_on_mounts_below_a_pods_directory_survive_its_end_a_crash_and_a_reset() {
    // Beside the node, whose end unmounts all that is in its directory.
    let outside = tempfile::Builder::new().prefix("berth-sentinel-").tempdir().unwrap();
    on_a_node(Build::Plain, |node| {
        apply(node, "victim", &with_volume("victim"))?;
        let (dir, volume) = volume(node, "default/victim")?;
        let kept = |name: &str| outside.path().join(name);
        let plain = BindOpts::default();
        let source = kept("source");
        fs::create_dir(&source)?;
        let files = PlainFiles([("precious".to_owned(), "precious".to_owned())].into());
        let mut server = None;
        let sentinels = [
            Sentinel::new(&kept("bind"), &volume.join("bind"), |at| Ok(bind(&source, at, plain)?))?,
            Sentinel::new(&kept("tmpfs"), &volume.join("deep/tmpfs"), |at| Ok(tmpfs(at, None, 0o755)?))?,
            Sentinel::new(&kept("fuse"), &volume.join("fuse"), |at| {
                server = Some(Fuse::mount(at, files)?);
                Ok(())
            })?,
            Sentinel::new(&kept("loop"), &volume.join("loop"), |at| loop_mount(&kept("image"), at))?,
            // Beside the pod's volumes, as by a plugin that the node does not know.
            Sentinel::new(&kept("other"), &dir.join("volumes/example~plugin/other"), |at| {
                Ok(bind(&source, at, plain)?)
            })?,
            Sentinel::new(&kept("second"), &volume.join("bind"), |at| Ok(tmpfs(at, None, 0o755)?))?,
        ];
        let all_mounted = || sentinels.iter().try_for_each(Sentinel::is_mounted);
        all_mounted()?;
        node.kill_agent()?;
        all_mounted().context("after the agent's death")?;
        node.start_agent()?;
        node.ready("default/victim")?;
        all_mounted().context("after the agent's next start")?;
        node.stop_agent()?;
        let reset = node.berth(&["reset"])?;
        ensure!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
        all_mounted().context("after a reset")?;
        node.start_agent()?;
        node.ready("default/victim")?;
        all_mounted().context("after the agent's start after a reset")?;
        // A crash in the middle of the end.
        node.remove("victim.yaml")?;
        node.kill_agent()?;
        node.start_agent()?;
        // The agent that finds the pod without a manifest removes it as an orphan.
        wait::until("the pod's directory is gone", PATIENCE, || !dir.exists())?;
        sentinels.iter().try_for_each(Sentinel::is_whole).context("after the pod's end")?;
        ensure!(server.as_ref().is_some_and(|s: &Fuse| s.answered() > 0), "the file system was never asked");
        drop(sentinels);
        drop(server);
        Ok(())
    });
}

#[test]
fn a_mount_whose_server_is_silent_holds_up_neither_the_end_of_its_pod_nor_others() {
    on_a_node(Build::Plain, |node| {
        apply(node, "victim", &with_volume("victim"))?;
        let (dir, volume) = volume(node, "default/victim")?;
        let at = volume.join("fuse");
        fs::create_dir(&at)?;
        let files = PlainFiles([("precious".to_owned(), "precious".to_owned())].into());
        let server = Fuse::mount(&at, files)?;
        ensure!(fs::read_to_string(at.join("precious"))? == "precious");
        server.set_silent(true);
        node.remove("victim.yaml")?;
        apply(node, "other", &with_volume("other"))?;
        node.ready("default/other")?;
        node.gone("default/victim", PATIENCE)?;
        ensure!(!dir.exists(), "{} is still there", dir.display());
        drop(server);
        Ok(())
    });
}
