//! The suite `cluster`: a node that joined by a bootstrap token, one Deployment, one Service, one outage and two
//! rotations of its certificate on a real control plane.

use super::{
    load::{STEADY, deployment},
    rotation,
    verdict::Verdict,
};
use crate::{
    cluster::{self, AGENT, API_SERVER, Audit, AuditLog, Cluster, Etcd, Look, Node, Options},
    out,
    test::tally::{Outcome, Tally},
};
use anyhow::{Context, Result, ensure};
use berth_harness::{
    tools,
    wait::{self, PATIENCE},
};
use std::{collections::BTreeSet, net::SocketAddr, time::Instant};

/// Pods of the Deployment.
const PODS: usize = 3;

/// Answers that are asked for while nothing but the Service's tables is there.
const ANSWERS: usize = 50;

/// Runs the suite. Each step counts as a test; the steps after one that failed do not run.
///
/// # Errors
/// The cluster does not start or does not end.
pub(crate) fn suite(tally: &mut Tally) -> Result<()> {
    let dir = tools::cache()?.join("suite");
    let options = Options { bootstrap: true, ..Options::new(Node::Berth, Etcd::New, Audit::OfNodes) };
    let cluster = out::timed("start a cluster", || cluster::start(&dir, &options))?;
    let (_, failed) = tally.counts();
    steps(&cluster, tally);
    if tally.counts().1 > failed {
        let kept = crate::root().join("target/cluster");
        cluster.keep_logs(&kept)?;
        out::line(&format!("the cluster's logs are in {}", kept.display()));
    }
    cluster.end()
}

fn steps(cluster: &Cluster, tally: &mut Tally) {
    let mut step = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
        let begun = Instant::now();
        let outcome = match work() {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        let passed = outcome == Outcome::Passed;
        tally.add(&format!("cluster/{name}"), outcome, begun.elapsed());
        passed
    };
    let mut state = None;
    let certificate = "a_serving_certificate_waits_for_its_approval";
    let rotation = "certificates_rotate_and_nothing_is_listed";
    let _all_passed = step(certificate, &mut || cluster.approve_serving_certificate())
        && step("a_deployment_of_three_gets_ready", &mut || rolled_out(cluster))
        && step("its_service_answers_by_cluster_ip_and_from_outside", &mut || answers(cluster))
        && step("nothing_is_asked_where_nothing_changes", &mut || {
            let mut log = cluster.audit()?;
            cluster.quiet(&mut log)?;
            state = Some((cluster.look()?, log));
            Ok(())
        })
        && step("the_service_answers_without_api_server_and_agent", &mut || outage(cluster))
        && step("an_outage_changes_nothing", &mut || {
            let (before, log) = state.as_mut().context("there was no look before")?;
            after(cluster, before, log)
        })
        && step(rotation, &mut || rotation::client_certificates(cluster));
}

fn rolled_out(cluster: &Cluster) -> Result<()> {
    cluster.apply(STEADY, &deployment(STEADY, PODS))?;
    wait::ok("the pods are ready", 2 * PATIENCE, || {
        let ready = cluster.look()?.of(STEADY).filter(|pod| pod.ready).count();
        ensure!(ready == PODS, "{ready} of {PODS} pods are ready");
        Ok(())
    })
}

/// The Service's field at this path of kubectl.
fn field(cluster: &Cluster, path: &str) -> Result<String> {
    cluster.kubectl(&["get", "service", STEADY, "-o", &format!("jsonpath={{{path}}}")])
}

/// Each pod answers: from the cluster by the ClusterIP, from this machine by the node port.
fn answers(cluster: &Cluster) -> Result<()> {
    let ip = field(cluster, ".spec.clusterIP")?;
    let ask = format!("exec 3<>/dev/tcp/{ip}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let port = SocketAddr::new(cluster.address()?, field(cluster, ".spec.ports[0].nodePort")?.parse()?);
    let names: BTreeSet<String> = cluster
        .look()?
        .names()
        .into_iter()
        .filter(|name| name.starts_with(STEADY))
        .map(str::to_owned)
        .collect();
    let all = |what: &str, ask: &dyn Fn() -> Result<String>| {
        let mut seen = BTreeSet::new();
        wait::ok(&format!("each pod answers {what}"), PATIENCE, || {
            seen.insert(ask()?);
            ensure!(seen == names, "{seen:?} of {names:?} answered");
            Ok(())
        })
    };
    let by_cluster_ip = || {
        let said = cluster.run(&["timeout", "5", "bash", "-c", &ask])?;
        Ok(said.lines().last().unwrap_or_default().trim().to_owned())
    };
    all("by the ClusterIP", &by_cluster_ip)?;
    all("by the node port", &|| cluster.http(port))
}

/// Kills the API server and the agent, and starts the agent while the API server is away.
fn outage(cluster: &Cluster) -> Result<()> {
    let port = SocketAddr::new(cluster.address()?, field(cluster, ".spec.ports[0].nodePort")?.parse()?);
    let all_answer = || (0..ANSWERS).try_for_each(|_| cluster.http(port).map(drop));
    cluster.kill(API_SERVER)?;
    cluster.kill(AGENT)?;
    all_answer().context("without the agent")?;
    let before = cluster.agent_starts()?;
    cluster.start(AGENT)?;
    cluster.agent_runs(before)?;
    all_answer().context("with an agent that has no API server")
}

/// Ends the outage and compares with the time before.
fn after(cluster: &Cluster, before: &Look, log: &mut AuditLog) -> Result<()> {
    log.news()?;
    cluster.start(API_SERVER)?;
    cluster.api_server_ready()?;
    let asked = cluster.quiet(log)?;
    let look = cluster.look()?;
    // The sets of the node itself (pods, Services, EndpointSlices) are few pods' worth here.
    let pods = look.pods.len() + PODS;
    let all = |_: &str| true;
    let verdict = Verdict::of("outage", before.until(&look, &[STEADY]), &asked, pods, all);
    ensure!(verdict.is_good(), "{verdict:#?}");
    Ok(())
}
