//! `berth reset`: removes the state that outlives the agent. Pods, their output and their addresses
//! stay; an agent that is started later adopts them.

use crate::lock;
use anyhow::Context as _;
use berth_core::roots::Roots;
use berth_network::{Network, NetworkConfig};
use std::time::Duration;

/// Time for connections that the programs translate, once new ones are left to the host's stack.
const DRAIN: Duration = Duration::from_secs(2);

/// Options of `berth reset`.
#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    /// Stay until SIGTERM or SIGINT once everything is removed: for a DaemonSet, whose pods have to stay.
    #[arg(long)]
    stay: bool,
}

/// Carries out `berth reset`.
pub(crate) fn run(roots: &Roots, args: &ResetArgs) -> anyhow::Result<()> {
    remove(roots)?;
    if args.stay {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("start the async runtime")?.block_on(crate::agent::told_to_end())?;
    }
    Ok(())
}

/// Detaches and removes the programs and maps of Services, ends cluster DNS and removes its
/// addresses from the node, and restores sysctls and nft tables. Fails while an agent runs.
fn remove(roots: &Roots) -> anyhow::Result<()> {
    crate::logging::to_stderr();
    if !roots.runtime_state.is_dir() {
        tracing::info!(state = %roots.runtime_state.display(), "no state of a node to reset");
        return Ok(());
    }
    let _lock = lock::take(&roots.agent_lock())?;
    // Connections that are short end before the programs are gone.
    match berth_services::drain(roots) {
        Ok(true) => std::thread::sleep(DRAIN),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "cannot leave new connections to the host's stack first"),
    }
    let detached = berth_services::detach(roots).map_err(anyhow::Error::from_boxed);
    detached.context("remove the programs of Services")?;
    let ids = roots.services_file();
    berth_sys::fs::remove_if_there(&ids).with_context(|| format!("remove {}", ids.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        let dns = berth_dns::Client::new(roots.dns_socket());
        // No answer means that no helper runs.
        if dns.status().await.is_ok() {
            dns.end().await.context("end cluster DNS")?;
            berth_helper::socket::closed(&roots.dns_socket()).await;
        }
        let network = Network::open(roots, NetworkConfig::default()).context("open the network")?;
        network.restore_host().await.context("restore the host's network")
    })?;
    berth_network::remove_kube_proxy_handover().context("remove the table for kube-proxy's connections")?;
    let removed = berth_dns::address::remove(roots).context("remove cluster DNS' addresses")?;
    tracing::info!(addresses = ?removed, "node reset; pods stay");
    Ok(())
}
