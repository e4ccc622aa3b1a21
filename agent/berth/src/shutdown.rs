//! `berth shutdown`: terminates the pods before the machine shuts down (the kubelet's graceful node
//! shutdown).
//!
//! A unit of the service manager runs it when the unit is stopped, before the agent's unit. A
//! restart of the agent does not stop that unit, so that pods survive the restart.

use anyhow::{Context as _, bail};
use berth_api::{
    client::Client,
    message::{Reply, Request},
};
use berth_core::roots::Roots;
use berth_node::cgroup::CgroupTree;
use clap::Args;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Deadline for the agent's reply.
const ANSWER: Duration = Duration::from_secs(5);

/// Time for SIGKILL and the record of the exit after the grace period.
const AFTER_GRACE: Duration = Duration::from_secs(5);

/// Interval of the check for running processes of pods.
const INTERVAL: Duration = Duration::from_millis(200);

/// Options of `berth shutdown`.
#[derive(Debug, Args)]
pub(crate) struct ShutdownArgs {
    /// Upper limit of every pod's grace period (the kubelet's `shutdownGracePeriod`).
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

/// Sends the request and waits until no process of a pod runs.
///
/// # Errors
/// The agent does not answer, or processes still run after the grace period.
pub(crate) fn run(roots: &Roots, args: &ShutdownArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(end_pods(roots, args.grace))
}

async fn end_pods(roots: &Roots, grace: u32) -> anyhow::Result<()> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let Reply::ShuttingDown = client.ask(&Request::Shutdown { grace }, ANSWER).await? else {
        bail!("cannot terminate the pods: the agent's reply does not fit the request");
    };
    let until = Instant::now() + Duration::from_secs(u64::from(grace)) + AFTER_GRACE;
    // The cgroups tell, not the agent: an agent that has just started does not know its pods yet.
    let cgroups = CgroupTree::open(roots).context("cannot find the cgroup hierarchies")?;
    loop {
        let left = cgroups.pods_with_processes().context("cannot look for the pods' processes")?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            bail!("processes of these pods still run after {grace} s: {}", left.join(", "));
        }
        sleep(INTERVAL).await;
    }
}
