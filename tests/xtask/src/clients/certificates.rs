//! Certificates that rotate all the time under a hundred pods, an exec session and a log that is followed: nothing is
//! listed, nothing restarts, no session breaks.

use super::{Stage, live::Live};
use crate::cluster::{AGENT, Asked};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::{
    image::BUSYBOX,
    wait::{self, PATIENCE},
};
use std::{fs, path::PathBuf, time::Duration};

/// The pods to which nothing happens.
const PODS: usize = 100;
/// Client certificates, and serving certificates, that the node gets by rotation.
const ROTATIONS: usize = 6;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What is in the place of a number of rotations.
struct Seen {
    purpose: &'static str,
    file: PathBuf,
    rotations: usize,
}

/// Waits for six rotations of both certificates and looks at everything before and after.
pub(super) fn rotate(stage: &Stage<'_>) -> Result<String> {
    let cluster = stage.cluster;
    cluster.apply("many", &many())?;
    wait::ok("all pods are ready", 6 * PATIENCE, || {
        let ready = cluster.look()?.of("many").filter(|pod| pod.ready).count();
        ensure!(ready == PODS, "{ready} of {PODS} pods are ready");
        Ok(())
    })?;
    short_lived(stage)?;
    let mut log = cluster.audit()?;
    cluster.quiet(&mut log)?;
    let before = cluster.look()?;
    log.news()?;
    let mut session = stage.kubectl("kubectl").start(&["exec", "-i", "web", "--", "cat"])?;
    let mut watch = stage.kubectl("kubectl").start(&["get", "pods", "--watch-only"])?;
    let mut seen = ["client", "server"].map(|purpose| Seen { purpose, file: PathBuf::new(), rotations: 0 });
    for own in &mut seen {
        own.file = cluster.node_certificate(own.purpose)?;
    }
    let patience = Duration::from_secs(stage.args.life) * (u32::try_from(ROTATIONS)? + 2);
    let mut said = 0_usize;
    wait::ok("the certificates rotate", patience, || {
        std::thread::sleep(PAUSE);
        alive(&mut session, &mut watch, &mut said)?;
        if let Some(name) = cluster.waiting_request("serving") {
            cluster.kubectl(&["certificate", "approve", &name])?;
        }
        for own in &mut seen {
            let now = cluster.node_certificate(own.purpose)?;
            own.rotations += usize::from(now != own.file);
            own.file = now;
        }
        let counts: Vec<String> = seen.iter().map(|s| format!("{} {}", s.rotations, s.purpose)).collect();
        ensure!(seen.iter().all(|s| s.rotations >= ROTATIONS), "rotations: {}", counts.join(", "));
        Ok(())
    })?;
    alive(&mut session, &mut watch, &mut said)?;
    session.close();
    let (code, _) = session.end(PATIENCE)?;
    ensure!(code == 0, "the session ends with {code}");
    let asked = log.news()?;
    let watches = judge(&asked)?;
    let differences = before.until(&cluster.look()?, &["many"]);
    ensure!(differences.told.is_empty(), "{:#?}", differences.told);
    let counts: Vec<String> = seen.iter().map(|s| format!("{} {}", s.rotations, s.purpose)).collect();
    metrics(stage)?;
    Ok(format!(
        "{} certificates of {} s; {said} lines of a session; {watches} watches begun anew, no list",
        counts.join(" and "),
        stage.args.life
    ))
}

/// Lets the controllers sign short-lived certificates, and the node get its first ones.
fn short_lived(stage: &Stage<'_>) -> Result<()> {
    let cluster = stage.cluster;
    cluster.sign_for(&format!("{}s", stage.args.life))?;
    let starts = cluster.agent_starts()?;
    let old = cluster.node_certificate("client")?;
    cluster.kill(AGENT)?;
    fs::remove_file(cluster.node_kubeconfig()).context("cannot remove the node's kubeconfig")?;
    // The node asks for another serving certificate where it has none.
    fs::remove_file(cluster.node_pki().join("kubelet-server-current.pem"))
        .context("cannot remove the serving certificate")?;
    cluster.start(AGENT)?;
    cluster.agent_runs(starts)?;
    wait::ok("the node has bootstrapped anew", PATIENCE, || {
        ensure!(cluster.node_certificate("client")? != old, "the client certificate is the old one");
        Ok(())
    })?;
    cluster.approve_serving_certificate()
}

/// The session answers, and kubectl still watches.
fn alive(session: &mut Live, watch: &mut Live, said: &mut usize) -> Result<()> {
    *said += 1;
    let line = format!("line {said}\n");
    session.send(line.as_bytes())?;
    if let Err(error) = session.says(&line, PATIENCE) {
        bail!("the session is broken: {error:#}");
    }
    ensure!(watch.runs()?, "kubectl watches no longer: {}", String::from_utf8_lossy(&watch.output()));
    Ok(())
}

/// Fails for a list, and for a write that is not about the node itself or its certificates; the watches that began.
fn judge(asked: &[Asked]) -> Result<usize> {
    let of_node = asked.iter().filter(|a| !a.is_of_a_certificate() && a.user == crate::cluster::NODE);
    let lists: Vec<_> = of_node.clone().filter(|a| a.verb == "list").collect();
    ensure!(lists.is_empty(), "a rotation is no reason to list: {lists:?}");
    let writes: Vec<_> = of_node.clone().filter(|a| a.is_write() && !a.is_of_the_node()).take(10).collect();
    // Reviews of callers of the node's API are asked for all the time.
    let writes: Vec<_> = writes.into_iter().filter(|a| !a.resource.ends_with("reviews")).collect();
    ensure!(writes.is_empty(), "a rotation is no reason to write: {writes:?}");
    Ok(of_node.filter(|a| a.verb == "watch").count())
}

/// The metrics say that the certificates live shortly, and how old those were that were replaced.
fn metrics(stage: &Stage<'_>) -> Result<()> {
    let text = stage.node_api("metrics")?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .with_context(|| format!("no {name}"))
    };
    let life = f64::from(u32::try_from(stage.args.life)?);
    for name in ["client", "server"] {
        let ttl = value(&format!("kubelet_certificate_manager_{name}_ttl_seconds"))?;
        ensure!(ttl > 0.0 && ttl <= life, "the {name} certificate lives for {ttl} s");
    }
    let rotations = value("kubelet_certificate_manager_server_rotation_seconds_count")?;
    ensure!(rotations >= 6.0, "{rotations} rotations");
    for name in [
        "kubelet_certificate_manager_client_expiration_renew_errors",
        "kubelet_server_expiration_renew_errors",
    ] {
        let errors = value(name)?;
        ensure!(errors == 0.0, "{name} {errors}");
    }
    Ok(())
}

fn many() -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many}}\nspec:\n  replicas: {PODS}\n  \
         selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata: {{labels: {{app: many, part: many}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers:\n      - name: main\n        image: {BUSYBOX}\n        \
         imagePullPolicy: Never\n        command: [sleep, \"1000000\"]\n"
    )
}
