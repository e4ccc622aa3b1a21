//! A kube-proxy beside this agent, and what one has left behind.
//!
//! While a kube-proxy runs in this network namespace it is told of, and its rules are left alone: it would write them again.
//! Both answer the same Services meanwhile; the hooks of this agent come first. Once none runs and this agent's hooks answer,
//! its rules are removed. Before that they carry the Services. Connections that it has translated go on to their ends.

use super::super::services_health::ServicesHealth;
use berth_core::error::Chain;
use std::{collections::HashSet, fs, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep},
};

/// Time between two looks. A kube-proxy that is replaced by its DaemonSet is away for longer.
const EVERY: Duration = Duration::from_secs(5);

/// Time between two looks at kube-proxy's connections, which read all connections that the kernel tracks.
const HANDOVER: Duration = Duration::from_secs(60);

/// The program's name, as the kernel has it.
const NAME: &str = "kube-proxy";

/// The task that looks for kube-proxy.
pub(super) struct KubeProxies {
    found: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl KubeProxies {
    /// Starts to look, in the processes below `proc`.
    pub(super) fn watch(proc: PathBuf, services: ServicesHealth) -> KubeProxies {
        let (tell, found) = watch::channel(None);
        KubeProxies { found, task: tokio::spawn(look(proc, services, tell)) }
    }

    /// What is to be said of kube-proxy on the status page.
    pub(super) fn found(&self) -> watch::Receiver<Option<String>> {
        self.found.clone()
    }

    /// Ends the task.
    pub(super) fn end(self) {
        self.task.abort();
    }
}

async fn look(proc: PathBuf, services: ServicesHealth, tell: watch::Sender<Option<String>>) {
    // Rules that another agent cannot have written since are not looked for again.
    let mut removed = false;
    // The last look at the connections that kube-proxy has translated, while there may be any.
    let mut handover = None;
    let mut legacy = Legacy::default();
    loop {
        let dir = proc.clone();
        // A look that panicked is made again.
        let running = spawn_blocking(move || running(&dir)).await.unwrap_or_default();
        let problem = match running {
            Some(pid) => {
                removed = false;
                Some(format!(
                    "kube-proxy runs too (process {pid}) and answers the same Services by rules of its own: remove it, for \
                     example by `kubectl -n kube-system delete daemonset kube-proxy`; its rules are removed once it is gone"
                ))
            }
            None if removed => {
                if handover.is_some_and(|looked: Instant| looked.elapsed() >= HANDOVER) {
                    handover = end_handover().await;
                }
                legacy.problem().await
            }
            None if services.answers().await.is_err() => None,
            None => match spawn_blocking(berth_network::remove_kube_proxy_rules).await {
                Ok(Ok(what)) => {
                    removed = true;
                    // Also one that an earlier agent has left.
                    handover = Some(Instant::now());
                    if !what.is_empty() {
                        tracing::info!(
                            removed = what.join(", "),
                            "the rules of a kube-proxy that is gone are removed"
                        );
                    }
                    legacy.problem().await
                }
                Ok(Err(error)) => Some(Chain(&error).to_string()),
                Err(_panicked) => None,
            },
        };
        tell.send_if_modified(|told| {
            let changed = *told != problem;
            if changed {
                if let Some(problem) = &problem {
                    tracing::warn!("{problem}");
                }
                told.clone_from(&problem);
            }
            changed
        });
        sleep(EVERY).await;
    }
}

/// Connections that kube-proxy has translated to these backends are forgotten: nobody else would, and a client that goes on
/// to send would never reach another.
pub(super) fn forget_connections(backends: &HashSet<SocketAddr>) {
    match berth_network::forget_kube_proxy_connections(backends) {
        Ok(0) => {}
        Ok(forgotten) => {
            tracing::info!(forgotten, "connections of kube-proxy to backends that serve no more")
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "cannot forget connections of kube-proxy to backends that serve no more");
        }
    }
}

/// Ends the hand-over once kube-proxy's connections have ended. Returns the time of this look; `None` once it has ended.
async fn end_handover() -> Option<Instant> {
    match spawn_blocking(berth_network::end_kube_proxy_handover).await {
        Ok(Ok(false)) => {
            tracing::info!("no connection that kube-proxy has translated is left");
            None
        }
        Ok(Ok(true)) => Some(Instant::now()),
        Ok(Err(error)) => {
            tracing::debug!(error = %Chain(&error), "cannot tell whether kube-proxy's connections have ended");
            Some(Instant::now())
        }
        Err(_panicked) => Some(Instant::now()),
    }
}

/// The chains that a kube-proxy has left in the tables of `iptables-legacy`, which stay.
#[derive(Default)]
struct Legacy {
    looked: Option<Instant>,
    problem: Option<String>,
}

impl Legacy {
    /// What is to be said of them, by a look that is a minute old at most.
    async fn problem(&mut self) -> Option<String> {
        if self.looked.is_none_or(|at| at.elapsed() >= HANDOVER) {
            self.looked = Some(Instant::now());
            match spawn_blocking(berth_network::legacy_kube_proxy_tables).await {
                Ok(Ok(tables)) => self.problem = said_of_legacy(&tables),
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "cannot read the tables of iptables-legacy");
                }
                Err(_panicked) => {}
            }
        }
        self.problem.clone()
    }
}

fn said_of_legacy(tables: &[String]) -> Option<String> {
    (!tables.is_empty()).then(|| {
        format!(
            "a kube-proxy that is gone has left chains in iptables-legacy (tables: {}), which Berth cannot remove safely: \
             connections that pass no hook may still meet them; remove them by `kube-proxy --cleanup`, or reboot the node",
            tables.join(", ")
        )
    })
}

/// A kube-proxy in this process's network namespace.
fn running(proc: &std::path::Path) -> Option<u32> {
    let own = fs::read_link(proc.join("self/ns/net")).ok()?;
    let entries = fs::read_dir(proc).ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let of = |file: &str| proc.join(pid.to_string()).join(file);
        fs::read_to_string(of("comm")).is_ok_and(|name| name.trim_end() == NAME)
            && fs::read_link(of("ns/net")).is_ok_and(|net| net == own)
    })
    .min()
}
