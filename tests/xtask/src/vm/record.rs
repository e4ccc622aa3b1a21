//! Recordings of the real kubelet on cgroup version 2 (`tests/peers`), made in a VM without Berth.

use super::{cache::Cache, image, machine::Start, payload};
use crate::{out, peers, setup::succeed};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use berth_harness::tools;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Directory of the recorder's files in the VM.
const PLACE: &str = "/root/peers";

/// CNI plugins of the recorder's network.
const PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// Recordings on cgroup version 1. The version 2 recordings are stored as differences from these.
const BASE: [&str; 5] = ["spec", "status", "events", "output", "images.json"];

/// Time limit for all shapes.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// Factor on the recorder's timeouts, because the processor is emulated.
const SLOW: u32 = 5;

/// The version 1 recordings come from a machine without AppArmor; the VM disables AppArmor to be comparable.
const START: Start<'_> = Start { stay: false, options: "apparmor=0" };

/// Records all shapes, or those of `only`, in a VM with this kernel and replaces `tests/golden/v2`. After a
/// failed shape the other recordings are still stored.
///
/// # Errors
/// No VM can be started, or a shape cannot be recorded.
pub(super) fn run(cache: &Cache, kernel: &str, only: Option<&str>, kinds: Option<&str>) -> Result<()> {
    let peers = crate::root().join("tests/peers");
    let kubelet = peers::get(&["kubelet"])?.join("kubelet");
    out::timed("build the recorder", || build(&peers))?;
    let mut machine = super::start(cache, kernel, START, |dir| make(dir, &peers, &kubelet))?;
    let script = format!(
        "cd {PLACE} && ./record -shapes shapes -base golden -golden v2 -tools tools -kubelet . -slow {SLOW} \
         -only '{}' -kinds '{}'",
        only.unwrap_or_default(),
        kinds.unwrap_or_default()
    );
    let recorded = out::timed("record", || machine.run(&script, LIMIT, out::line));
    let fetched = recorded.and_then(|code| {
        let mut text = String::new();
        let pack = format!("tar -C {PLACE}/v2 -cz . | base64 -w 1000");
        let packed = machine.run(&pack, Duration::from_secs(120), |line| text.push_str(line))?;
        ensure!(packed == 0, "cannot pack the recordings: {text}");
        put(&BASE64.decode(text).context("cannot read the recordings")?)?;
        ensure!(code == 0, "the recorder ended with {code}");
        Ok(())
    });
    match fetched {
        Ok(()) => {
            machine.end()?;
            cache.empty_dir(super::RUN).map(drop)
        }
        Err(error) => Err(super::with_logs(cache, machine, error)),
    }
}

fn golden() -> PathBuf {
    crate::root().join("tests/golden")
}

fn build(peers: &Path) -> Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-o", "bin/record", "./cmd/record"]);
    succeed(go.env("CGO_ENABLED", "0").current_dir(peers))
}

/// Makes the second disk and returns its path.
fn make(dir: &Path, peers: &Path, kubelet: &Path) -> Result<PathBuf> {
    let payload = dir.join("payload");
    let place = payload.join(PLACE.trim_start_matches('/'));
    for name in payload::PROGRAMS {
        payload::program(&tools::find(name)?, &place.join("tools").join(name))?;
    }
    for name in PLUGINS {
        payload::program(&tools::dir()?.join(name), &place.join("tools").join(name))?;
    }
    payload::program(&peers.join("bin/record"), &place.join("record"))?;
    payload::program(kubelet, &place.join("kubelet"))?;
    // Containers run the same busybox as in the recordings on version 1.
    payload::program(Path::new("/bin/busybox"), &payload.join("usr/bin/busybox"))?;
    let base = place.join("golden");
    fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
    let copy = |from: &Path, to: &Path| succeed(Command::new("cp").arg("-r").args([from, to]));
    for name in BASE {
        copy(&golden().join(name), &base)?;
    }
    copy(&crate::root().join("tests/shapes"), &place)?;
    // Shapes that are not recorded in this run keep their earlier recordings.
    let before = golden().join("v2");
    if before.is_dir() {
        copy(&before, &place)?;
    }
    let disk = dir.join("payload.tar");
    image::tar(&payload, &disk)?;
    fs::remove_dir_all(&payload).with_context(|| format!("cannot remove {}", payload.display()))?;
    Ok(disk)
}

/// Replaces the recordings in the repository by those of the VM.
fn put(archive: &[u8]) -> Result<()> {
    let (to, new) = (golden().join("v2"), golden().join("v2.new"));
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&new).arg("-xz").stdin(Stdio::piped());
    let mut tar = tar.spawn().context("cannot run tar")?;
    let mut input = tar.stdin.take().context("tar has no input")?;
    input.write_all(archive).context("cannot unpack the recordings")?;
    drop(input);
    ensure!(tar.wait().context("cannot wait for tar")?.success(), "cannot unpack the recordings");
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::rename(&new, &to).with_context(|| format!("cannot put {} in place", to.display()))
}
