//! The service manager: systemd, by its command.

use crate::Error;
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// The directory that exists where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Deadline of a command: the agent has a minute and a half to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(100);

/// Whether systemd is this machine's service manager.
pub(crate) fn is_there() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Starts the agent now and with each boot.
pub(crate) async fn start() -> Result<(), Error> {
    systemctl(&["daemon-reload"]).await?;
    systemctl(&["enable", "berth.service"]).await?;
    systemctl(&["restart", "berth.service"]).await
}

/// Ends the agent, also for later boots.
pub(crate) async fn stop() -> Result<(), Error> {
    systemctl(&["disable", "--now", "berth.service"]).await
}

/// Lets systemd forget a unit whose file is gone.
pub(crate) async fn reload() -> Result<(), Error> {
    systemctl(&["daemon-reload"]).await
}

async fn systemctl(args: &[&str]) -> Result<(), Error> {
    let failed = |reason: String| Error::Service { command: format!("systemctl {}", args.join(" ")), reason };
    let mut command = Command::new("systemctl");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await;
    let ended = ended.map_err(|_late| failed(format!("no end within {} s", PATIENCE.as_secs())))?;
    let ended = ended.map_err(|e| failed(e.to_string()))?;
    if ended.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    Err(failed(if text.is_empty() { ended.status.to_string() } else { text }))
}
