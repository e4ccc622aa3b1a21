//! Starting `berth logd` and keeping it running.
//!
//! The agent only starts logd: logd continues when the agent ends. Where a service manager runs
//! logd, [`ensure_running`] finds it answering and starts nothing.

use crate::{client::Client, error::Error};
use berth_core::{error::Chain, roots::Roots};
use berth_sys::service;
use std::{
    convert::Infallible,
    ffi::OsStr,
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// A logd that does not answer within this time counts as silent.
const SILENT: Duration = Duration::from_secs(2);

/// Time within which a started logd must answer.
const STARTS: Duration = Duration::from_secs(10);

/// A started logd that does not listen after this time is started again.
const STILLBORN: Duration = Duration::from_millis(500);

/// logd's own messages are truncated when they exceed this many bytes.
const OUTPUT_MAX: u64 = 1024 * 1024;

/// File for logd's own messages, if no service manager takes them.
pub fn output_file(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("logd.out")
}

/// Returns once a logd answers, and calls `spawn` if none does. Returns whether `spawn` was called.
///
/// `spawn` starts the program and returns without waiting for it, for example by
/// [`spawn_detached`]. It also does whatever else the helper needs, such as a cgroup of its own.
///
/// A stopped or stuck logd keeps its lock, so that a second one ends by itself. Then this function
/// fails with [`Error::Deadline`] and output waits in the FIFOs.
pub async fn ensure_running(
    roots: &Roots,
    spawn: impl AsyncFn() -> Result<(), Error>,
) -> Result<bool, Error> {
    let client = Client::new(roots.logd_socket());
    if client.ping_within(SILENT).await.is_ok() {
        return Ok(false);
    }
    let late = || Error::Deadline { op: "start", after: STARTS };
    let until = Instant::now().checked_add(STARTS).ok_or_else(late)?;
    spawn().await?;
    let mut spawned = Instant::now();
    loop {
        match client.ping_within(SILENT).await {
            Ok(_) => return Ok(true),
            // Nothing listened for so long: the process died at its start. If it is only slow, the
            // next one takes over.
            Err(Error::Socket { .. }) if spawned.elapsed() > STILLBORN => {
                spawn().await?;
                spawned = Instant::now();
            }
            Err(_) => {}
        }
        if Instant::now() >= until {
            return Err(late());
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Runs for ever: starts logd when its socket closes, and has the client hold the FIFOs of all
/// streams.
pub async fn supervise(
    roots: &Roots,
    client: &Client,
    spawn: impl AsyncFn() -> Result<(), Error>,
) -> Infallible {
    let mut wait = Duration::from_millis(10);
    loop {
        match ensure_running(roots, &spawn).await {
            Ok(_) => {
                let since = Instant::now();
                // Both run side by side: a request that waits for logd must not delay its restart.
                tokio::select! {
                    () = client.closed() => {}
                    never = adopt(roots, client) => match never {},
                }
                // A logd that dies right after each start is not restarted in a tight loop.
                if since.elapsed() > Duration::from_secs(1) {
                    wait = Duration::from_millis(10);
                    continue;
                }
            }
            Err(error) => tracing::error!(error = %Chain(&error), "logd does not run"),
        }
        sleep(wait).await;
        wait = wait.saturating_mul(2).min(Duration::from_secs(2));
    }
}

async fn adopt(roots: &Roots, client: &Client) -> Infallible {
    while let Err(error) = client.adopt(roots).await {
        tracing::warn!(error = %Chain(&error), "streams of logd cannot be listed");
        sleep(Duration::from_secs(1)).await;
    }
    std::future::pending().await
}

/// Starts logd so that it outlives the agent, with its messages in [`output_file`]. See
/// [`spawn_detached_to`].
pub fn spawn_detached(
    roots: &Roots,
    exe: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<u32, Error> {
    spawn_detached_to(&output_file(roots), exe, args)
}

/// Starts a program that outlives the agent: no open files but the standard ones, working directory
/// `/`, messages appended to the file `output`, whose directory is created. The program makes its
/// own session, as [`crate::server::run`] does. Must be called in a tokio runtime, which reaps the
/// process if it ends before the agent. Returns the process id.
pub fn spawn_detached_to(
    output: &Path,
    exe: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<u32, Error> {
    let start = || {
        if let Some(dir) = output.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let output = OpenOptions::new().create(true).append(true).mode(0o640).open(output)?;
        bound(&output)?;
        let mut command = tokio::process::Command::new(exe);
        command.args(args).current_dir("/").kill_on_drop(false).env_remove(service::NOTIFY_SOCKET);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn()?;
        child.id().ok_or_else(|| io::Error::other("it ended at once"))
    };
    start().map_err(|source| Error::Spawn { path: exe.to_owned(), source })
}

fn bound(output: &std::fs::File) -> io::Result<()> {
    if output.metadata()?.len() > OUTPUT_MAX { output.set_len(0) } else { Ok(()) }
}

/// Truncates [`output_file`] if it is too long and is this process's standard error.
pub(crate) fn bound_own_output(roots: &Roots) {
    let (stderr, file) = (io::stderr(), std::fs::metadata(output_file(roots)));
    let (Ok(stat), Ok(file)) = (rustix::fs::fstat(&stderr), file) else { return };
    let same = stat.st_ino == file.ino() && stat.st_dev == file.dev();
    if same && file.len() > OUTPUT_MAX {
        // On failure the next client's connection tries again.
        let _again = rustix::fs::ftruncate(&stderr, 0);
    }
}
