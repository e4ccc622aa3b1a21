//! The suite `cluster`: the certificates of a node that joined by a bootstrap token.

use super::{load::STEADY, verdict::Verdict};
use crate::cluster::{AGENT, Cluster};
use anyhow::{Context, Result, ensure};
use berth_harness::wait::{self, PATIENCE};
use std::fs;

/// Life of the client certificates while they rotate. The agent renews one after 14 to 18 seconds.
const LIFE: &str = "20s";

/// Client certificates that the node gets by rotation.
const ROTATIONS: usize = 2;

/// The node bootstraps anew while its pods run, and then renews short-lived certificates: nothing is listed,
/// no pod is touched.
pub(super) fn client_certificates(cluster: &Cluster) -> Result<()> {
    cluster.sign_for(LIFE)?;
    cluster.kill(AGENT)?;
    let starts = cluster.agent_starts()?;
    fs::remove_file(cluster.node_kubeconfig()).context("cannot remove the node's kubeconfig")?;
    let mut log = cluster.audit()?;
    cluster.start(AGENT)?;
    cluster.agent_runs(starts)?;
    let mut seen = cluster.node_certificate("client")?;
    wait::ok("the node has bootstrapped anew", PATIENCE, || {
        ensure!(cluster.node_kubeconfig().exists(), "there is no kubeconfig yet");
        Ok(())
    })?;
    cluster.quiet(&mut log)?;
    let before = cluster.look()?;
    log.news()?;
    let mut rotations = 0;
    wait::ok("the certificate rotates", 3 * PATIENCE, || {
        let now = cluster.node_certificate("client")?;
        if now != seen {
            rotations += 1;
            seen = now;
        }
        ensure!(rotations > ROTATIONS, "{rotations} certificates");
        Ok(())
    })?;
    let asked = log.news()?;
    let lists: Vec<_> =
        asked.iter().filter(|asked| asked.verb == "list" && !asked.is_of_a_certificate()).collect();
    ensure!(lists.is_empty(), "a rotation is no reason to list: {lists:?}");
    let requested =
        asked.iter().filter(|a| a.is_of_a_certificate() && a.verb == "create" && a.code == 201).count();
    ensure!(requested >= ROTATIONS, "{requested} certificates were requested");
    let others: Vec<_> =
        asked.into_iter().filter(|asked| !asked.is_of_a_certificate() && asked.verb != "watch").collect();
    let look = cluster.look()?;
    let pods = look.pods.len();
    let verdict = Verdict::of("rotation", before.until(&look, &[STEADY]), &others, pods, |_| true);
    ensure!(verdict.is_good(), "{verdict:#?}");
    Ok(())
}
