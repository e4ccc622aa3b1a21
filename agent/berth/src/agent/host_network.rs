//! Follows the node's addresses and uplinks: the one owner of the answer, which pods' `hostIP`, Services and the status
//! page read from a watch.
//!
//! A task waits for the kernel's word of links, addresses and default routes, reads them again and chooses by
//! [`HostNetwork::choose`]. Where the kernel cannot be listened to, or cannot be read, it is looked at now and then.

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

/// Between two looks where the kernel tells of changes: the net beneath.
const SELDOM: Duration = Duration::from_secs(120);

/// Between two looks where it does not.
const UNTOLD: Duration = Duration::from_secs(5);

/// A burst of changes makes one look.
const SETTLE: Duration = Duration::from_millis(20);

/// What others read: it is made anew only where it is another one.
pub(crate) type Host = watch::Receiver<Arc<HostNetwork>>;

/// Looks for the first time, and starts the task. Blocks for some 100 microseconds.
pub(crate) fn start(cfg: HostNetworkConfig) -> (Host, JoinHandle<()>) {
    // First, so that nothing is missed between the look and the listening.
    let events = DeviceEvents::open(cfg.uplinks.clone())
        .inspect_err(|error| tracing::warn!(%error, "the kernel does not tell of devices: they are looked at every few seconds"))
        .ok();
    let first = look(&cfg)
        .unwrap_or_else(|| HostNetwork { node_ips: cfg.node_ips.clone(), ..HostNetwork::default() });
    tell(&first);
    let (tx, host) = watch::channel(Arc::new(first));
    (host, tokio::spawn(follow(cfg, events, tx)))
}

fn look(cfg: &HostNetworkConfig) -> Option<HostNetwork> {
    read_network(&cfg.uplinks)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot read the node's devices and addresses; tried again"),
        )
        .ok()
        .map(|kernel| HostNetwork::choose(cfg, &kernel))
}

fn tell(host: &HostNetwork) {
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
    let told =
        events.as_ref().and_then(|events| AsyncFd::new(events.as_fd().try_clone_to_owned().ok()?).ok());
    let pause = if told.is_some() { SELDOM } else { UNTOLD };
    loop {
        // In any case after the pause.
        if tokio::time::timeout(pause, changed(told.as_ref(), events.as_ref())).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        let again = cfg.clone();
        let Ok(Some(now)) = spawn_blocking(move || look(&again)).await else {
            tokio::time::sleep(UNTOLD).await;
            continue;
        };
        let before = tx.borrow().clone();
        if *before != now {
            if (&before.node_ips, &before.uplinks, &before.problems)
                != (&now.node_ips, &now.uplinks, &now.problems)
            {
                tell(&now);
            }
            // Whether anybody still listens is asked below.
            let _before = tx.send_replace(Arc::new(now));
        }
        if tx.is_closed() {
            return;
        }
    }
}

/// Ends when the kernel has told of something that matters.
async fn changed(told: Option<&AsyncFd<OwnedFd>>, events: Option<&DeviceEvents>) {
    let (Some(told), Some(events)) = (told, events) else { return std::future::pending().await };
    while let Ok(mut ready) = told.readable().await {
        ready.clear_ready();
        if events.drain() {
            return;
        }
    }
    // The runtime ends.
    std::future::pending().await
}
