//! The node's addresses and uplinks. This module owns them; pods' `hostIP`, Services and the status
//! page read them from a watch.
//!
//! A task waits for the kernel's events of links, addresses and default routes, reads these again
//! and chooses by [`HostNetwork::choose`]. Without events they are read at an interval.

use berth_services::{DeviceEvents, HostNetwork, HostNetworkConfig, read_network};
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};

/// Interval of reads beside the kernel's events, in case an event was lost.
const SELDOM: Duration = Duration::from_secs(120);

/// Interval of reads without the kernel's events.
const WITHOUT_EVENTS: Duration = Duration::from_secs(5);

/// Time for which a burst of events is gathered into one read.
const SETTLE: Duration = Duration::from_millis(20);

/// Watch of the node's addresses and uplinks; changes only where these do.
pub(crate) type Host = watch::Receiver<Arc<HostNetwork>>;

/// Reads the addresses for the first time and starts the task. Blocks for some 100 microseconds.
pub(crate) fn start(cfg: HostNetworkConfig) -> (Host, JoinHandle<()>) {
    // Opened before the first read, so that no change between the two is missed.
    let events = DeviceEvents::open(cfg.uplinks.clone())
        .inspect_err(|error| tracing::warn!(%error, "cannot receive the kernel's events of devices; they are read every few seconds"))
        .ok();
    let first = read(&cfg)
        .unwrap_or_else(|| HostNetwork { node_ips: cfg.node_ips.clone(), ..HostNetwork::default() });
    log(&first);
    let (tx, host) = watch::channel(Arc::new(first));
    (host, tokio::spawn(follow(cfg, events, tx)))
}

fn read(cfg: &HostNetworkConfig) -> Option<HostNetwork> {
    read_network(&cfg.uplinks)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot read the node's devices and addresses; tried again"),
        )
        .ok()
        .map(|kernel| HostNetwork::choose(cfg, &kernel))
}

fn log(host: &HostNetwork) {
    let uplinks: Vec<&str> = host.uplinks.values().map(|u| &*u.name).collect();
    tracing::info!(node_ips = ?host.node_ips, ?uplinks, "addresses of the node");
    for problem in &host.problems {
        tracing::warn!("{problem}");
    }
}

async fn follow(cfg: HostNetworkConfig, events: Option<DeviceEvents>, tx: watch::Sender<Arc<HostNetwork>>) {
    #[expect(
        deprecated,
        reason = "an OwnedFd stays the same descriptor and open, which is what the other one asks for"
    )]
    let events_fd =
        events.as_ref().and_then(|events| AsyncFd::new(events.as_fd().try_clone_to_owned().ok()?).ok());
    let pause = if events_fd.is_some() { SELDOM } else { WITHOUT_EVENTS };
    loop {
        if tokio::time::timeout(pause, changed(events_fd.as_ref(), events.as_ref())).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        let again = cfg.clone();
        let Ok(Some(now)) = spawn_blocking(move || read(&again)).await else {
            tokio::time::sleep(WITHOUT_EVENTS).await;
            continue;
        };
        let before = tx.borrow().clone();
        if *before != now {
            if (&before.node_ips, &before.uplinks, &before.problems)
                != (&now.node_ips, &now.uplinks, &now.problems)
            {
                log(&now);
            }
            // Without receivers the task ends below.
            let _before = tx.send_replace(Arc::new(now));
        }
        if tx.is_closed() {
            return;
        }
    }
}

/// Waits for an event that may change addresses or uplinks; for ever without events.
async fn changed(events_fd: Option<&AsyncFd<OwnedFd>>, events: Option<&DeviceEvents>) {
    let (Some(events_fd), Some(events)) = (events_fd, events) else { return std::future::pending().await };
    while let Ok(mut ready) = events_fd.readable().await {
        ready.clear_ready();
        if events.drain() {
            return;
        }
    }
    // Fails only while the async runtime ends.
    std::future::pending().await
}
