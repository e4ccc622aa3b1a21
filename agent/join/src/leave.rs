//! `berth leave`: the agent ends, and the node's identity is deleted. The Node object stays at the API server, which lets
//! no node delete it; the command says how.

use crate::{Error, block_on, files::Files, service, tell};
use berth_api::client::Client;
use berth_core::roots::Roots;
use clap::Args;
use std::{path::PathBuf, time::Duration};

/// Deadline of the agent's answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Most pods that are named.
const NAMED: usize = 5;

/// Options of `berth leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Leave although pods run on this node; they run on with nobody to look after them.
    #[arg(long)]
    force: bool,
    /// Say what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// Directory of configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    etc: PathBuf,
}

/// Takes this machine out of its cluster.
///
/// # Errors
/// Pods run on the node, the agent cannot be ended, or a file cannot be removed.
pub fn leave(roots: &Roots, args: &LeaveArgs) -> Result<(), Error> {
    block_on(run(roots, args))
}

async fn run(roots: &Roots, args: &LeaveArgs) -> Result<(), Error> {
    let files = Files::below(&args.etc, roots);
    let there = files.present();
    // The files of a kubelet have the same names and are its own.
    if there.is_empty() || !files.is_ours() {
        tell("This node has not joined a cluster by `berth join`; there is nothing to delete");
        return Ok(());
    }
    if args.dry_run {
        there.iter().for_each(|path| tell(&format!("  would delete {}", path.display())));
        return Ok(());
    }
    let running = pods(roots).await;
    if !args.force
        && let Some(running) = running.as_ref().filter(|pods| !pods.is_empty())
    {
        let named = running.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = running.len().saturating_sub(NAMED);
        return Err(Error::PodsRun(if more > 0 { format!("{named} and {more} more") } else { named }));
    }
    if service::is_there() && files.unit.exists() {
        service::stop().await?;
        tell("  ended berth.service");
    } else if running.is_some() {
        tell("  the agent runs, and no unit is there to end it: end it by hand");
    }
    for path in &there {
        Files::remove(path)?;
        tell(&format!("  deleted {}", path.display()));
    }
    if service::is_there() {
        service::reload().await?;
    }
    tell(&format!(
        "Left the cluster. What remains: kubectl delete node {}; `berth reset` here",
        roots.node_name
    ));
    Ok(())
}

/// Names of the pods that the agent has and that are none of a directory; `None` where no agent answers.
async fn pods(roots: &Roots) -> Option<Vec<String>> {
    let mut client = Client::connect(&roots.agent_socket()).await.ok()?;
    let pods = client.pods(ANSWER).await.ok()?;
    // A pod of a file is none of the cluster's.
    let of_cluster = pods.into_iter().filter(|pod| pod.file.is_none() && !is_over(&pod.object));
    Some(of_cluster.map(|pod| pod.key.to_string()).collect())
}

fn is_over(object: &serde_json::Value) -> bool {
    matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::NewFile;
    use berth_core::ids::NodeName;
    use serde_json::json;

    #[test]
    fn leaving_deletes_what_a_join_wrote_and_says_so_before() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(&dir.path().join("node"), NodeName::new("n1").unwrap(), "c");
        let etc = dir.path().join("etc");
        let files = Files::below(&etc, &roots);
        let args = |dry_run| LeaveArgs { force: false, dry_run, etc: etc.clone() };
        leave(&roots, &args(false)).unwrap();
        for path in [&files.kubeconfig, &files.bootstrap, &files.ca, &files.options] {
            NewFile { path: path.clone(), text: String::new(), mode: 0o600 }.write().unwrap();
        }
        leave(&roots, &args(true)).unwrap();
        assert_eq!(files.present().len(), 4);
        std::fs::remove_file(&files.options).unwrap();
        leave(&roots, &args(false)).unwrap();
        assert_eq!(files.present().len(), 3, "a kubelet's files are left alone");
        NewFile { path: files.options.clone(), text: String::new(), mode: 0o644 }.write().unwrap();
        leave(&roots, &args(false)).unwrap();
        assert_eq!(files.present(), Vec::<PathBuf>::new());
    }

    #[test]
    fn pods_that_are_over_hold_up_nobody() {
        assert!(is_over(&json!({"status": {"phase": "Succeeded"}})));
        assert!(!is_over(&json!({"status": {"phase": "Running"}})) && !is_over(&json!({})));
    }
}
