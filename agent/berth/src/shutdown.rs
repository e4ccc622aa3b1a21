//! `berth shutdown`: the graceful end of pods before the machine goes down (the kubelet's graceful node shutdown).
//!
//! A unit of the service manager that is stopped before the agent's calls it. A restart of the agent does not, so that pods
//! live through that.

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

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What SIGKILL and the record of an exit may take after the grace.
const AFTER_GRACE: Duration = Duration::from_secs(5);

/// Between two looks at the pods.
const LOOK: Duration = Duration::from_millis(200);

/// Options of `berth shutdown`.
#[derive(Debug, Args)]
pub(crate) struct ShutdownArgs {
    /// The longest grace of a pod, whatever its own is (`shutdownGracePeriod`).
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

/// Tells the agent and waits until no process of a pod runs.
///
/// # Errors
/// The agent does not answer, or processes run on after the grace.
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
        bail!("cannot end the pods: the agent gives another answer than was asked for");
    };
    let until = Instant::now() + Duration::from_secs(u64::from(grace)) + AFTER_GRACE;
    // By the kernel: an agent that has just started does not know its pods yet.
    let cgroups = CgroupTree::open(roots).context("cannot find the cgroup hierarchies")?;
    loop {
        let left = cgroups.pods_with_processes().context("cannot look for the pods' processes")?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            bail!("processes of these pods run on after {grace} s: {}", left.join(", "));
        }
        sleep(LOOK).await;
    }
}
