//! Watcher of one shim: forwards its log, observes its end, and ends an unused shim.

use super::{
    Shims,
    spawn::{self, Handle},
};
use std::{sync::Weak, time::Duration};
use tokio::{io::AsyncReadExt, sync::watch};

/// Time for a shim without containers to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// Time for a shim to end after SIGTERM.
const KILL: Duration = Duration::from_secs(5);

/// Runs until the shim has ended or the node's runtime stops; in the latter case the shim keeps running.
pub(super) async fn run(handle: Handle, owner: Weak<Shims>, mut stop: watch::Receiver<bool>) {
    let Handle { shim, mut log, end } = handle;
    let mut buffer = vec![0_u8; 4096];
    let mut readable = true;
    let mut deadline: Option<(tokio::time::Instant, bool)> = None;
    loop {
        let due = deadline.map_or_else(tokio::time::Instant::now, |(at, _)| at);
        tokio::select! {
            () = end.wait() => break,
            read = log.read(&mut buffer), if readable => match read {
                Ok(n) => pass_on(&shim.id, buffer.get(..n).unwrap_or_default()),
                Err(_) => readable = false,
            },
            () = shim.unwanted.notified() => {
                deadline = Some((tokio::time::Instant::now() + GRACE, false));
            }
            () = tokio::time::sleep_until(due), if deadline.is_some() => {
                let unused = owner.upgrade().is_none_or(|o| o.is_unused(&shim.address));
                deadline = match deadline {
                    _ if !unused => None,
                    Some((_, true)) => {
                        spawn::kill(&shim);
                        None
                    }
                    _ => {
                        tracing::info!(shim = shim.id, pid = shim.pid, "ending unused shim");
                        spawn::terminate(&shim);
                        Some((tokio::time::Instant::now() + KILL, true))
                    }
                };
            }
            _stopped = stop.wait_for(|s| *s) => return,
        }
    }
    tracing::debug!(shim = shim.id, pid = shim.pid, "shim ended");
    if let Some(owner) = owner.upgrade() {
        owner.forget(&shim.address);
    }
    spawn::clear(&shim.dir);
}

fn pass_on(id: &str, bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        tracing::debug!(shim = id, "{line}");
    }
}
