//! The suite `nfs`: the CSI driver against a real NFS server and the kernel's own client, in a VM. The driver's own tests
//! of calls (`csi/nfs/tests/driver`) and csi-sanity run there without an agent; then, in another VM, pods of the node's own
//! agent have NFS volumes, while the server is there and while it is away.

use super::{cache::Cache, checks, image, machine::Start, payload};
use crate::{out, peers, setup::succeed, test::tally::Tally};
use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Time limit of the script.
const LIMIT: Duration = Duration::from_secs(1500);

/// Runs the suite in a VM with this kernel. `tests` is the program of the driver's tests.
///
/// # Errors
/// No VM can be started.
pub(crate) fn suite(kernel: &str, tests: &Path, tally: &mut Tally) -> Result<()> {
    let cache = Cache::open()?;
    ensure!(super::Machine::running(&cache.dir(super::RUN)?).is_none(), super::LEFT_RUNNING);
    let sanity = peers::get(&["csi-sanity"])?.join("csi-sanity");
    let driver = out::timed("build berth-csi-nfs", tools::csi_nfs)?;
    let programs = [("berth-csi-nfs", driver.as_path()), ("csi-sanity", &sanity), ("driver-tests", tests)];
    let start = Start { stay: false, options: "" };
    let mut machine = super::start(&cache, kernel, start, |dir| make(dir, &programs))?;
    let (_, before) = tally.counts();
    let done = checks::script(&mut machine, "nfs", LIMIT, tally);
    if done.is_err() || tally.counts().1 > before {
        let kept = super::keep_logs(&cache, &mut machine)?;
        out::line(&format!("the VM's logs are in {}", kept.display()));
    }
    machine.end()?;
    cache.empty_dir(super::RUN)?;
    done
}

/// Time limit of the script with the agent, beside the time without the server.
const LIMIT_OF_AGENT: Duration = Duration::from_secs(1500);

/// Time limit of a shutdown with the server away. systemd itself waits 90 s for what does not stop.
const SHUTDOWN: Duration = Duration::from_secs(180);

/// Runs the checks of the agent's NFS volumes in a VM with this kernel; the server is away for that time.
///
/// # Errors
/// No VM can be started.
pub(crate) fn agent_suite(kernel: &str, away: Duration, tally: &mut Tally) -> Result<()> {
    let cache = Cache::open()?;
    ensure!(super::Machine::running(&cache.dir(super::RUN)?).is_none(), super::LEFT_RUNNING);
    let driver = out::timed("build berth-csi-nfs", tools::csi_nfs)?;
    let mut machine = super::boot(&cache, kernel, false, false, &[("berth-csi-nfs", driver.as_path())])?;
    let (_, before) = tally.counts();
    let variables = format!("NFS_AWAY={}", away.as_secs());
    let done = checks::script_with(&mut machine, "nfs_agent", &variables, LIMIT_OF_AGENT + away, tally);
    let done = done.and_then(|()| {
        if tally.counts().1 > before {
            let kept = super::keep_logs(&cache, &mut machine)?;
            out::line(&format!("the VM's logs are in {}", kept.display()));
        }
        checks::reboot(&mut machine, "nfs_agent, with the server away", SHUTDOWN, tally)
    });
    machine.end()?;
    cache.empty_dir(super::RUN)?;
    done
}

/// Makes the second disk and returns its path.
fn make(dir: &Path, programs: &[(&str, &Path)]) -> Result<PathBuf> {
    let payload = dir.join("payload");
    for (name, from) in programs {
        payload::program(from, &payload.join("usr/local/bin").join(name))?;
    }
    fs::create_dir_all(payload.join("root")).context("cannot make the second disk")?;
    let checks = crate::root().join("tests/vm/checks");
    succeed(Command::new("cp").args(["-r", "--preserve=mode"]).arg(checks).arg(payload.join("root")))?;
    let disk = dir.join("payload.tar");
    image::tar(&payload, &disk)?;
    fs::remove_dir_all(&payload).with_context(|| format!("cannot remove {}", payload.display()))?;
    Ok(disk)
}
