//! `berth reset`: takes away what is made to outlive the agent. Pods, their output and their addresses stay; an agent
//! started later finds them.

use crate::lock;
use anyhow::Context as _;
use berth_core::roots::Roots;
use berth_network::{Network, NetworkConfig};

/// Detaches and removes the programs and maps of Services, ends cluster DNS and takes its addresses off the node, and
/// puts sysctls and nft tables back. Refused while an agent runs.
pub(crate) fn run(roots: &Roots) -> anyhow::Result<()> {
    crate::logging::to_stderr();
    if !roots.runtime_state.is_dir() {
        tracing::info!(state = %roots.runtime_state.display(), "nothing of a node is here");
        return Ok(());
    }
    let _lock = lock::take(&roots.runtime_state)?;
    let detached = berth_services::detach(roots).map_err(anyhow::Error::from_boxed);
    detached.context("remove the programs of Services")?;
    let ids = berth_api::services::file(roots);
    berth_sys::fs::remove_if_there(&ids).with_context(|| format!("remove {}", ids.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        let dns = berth_dns::Client::new(roots.dns_socket());
        // Where nobody answers there is none to end.
        if dns.status().await.is_ok() {
            dns.end().await.context("end cluster DNS")?;
            dns.closed().await;
        }
        let network = Network::open(roots, NetworkConfig::default()).context("open the network")?;
        network.restore_host().await.context("put the host's network back")
    })?;
    let removed = berth_dns::address::remove(roots).context("take cluster DNS' addresses away")?;
    tracing::info!(addresses = ?removed, "node reset; pods stay");
    Ok(())
}
