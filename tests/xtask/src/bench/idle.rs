//! Cost of an idle node: many pods, each with a readiness probe every ten seconds.

use super::{Figure, pod_start::exec_helpers};
use crate::out;
use anyhow::{Context, Result, ensure};
use berth_harness::{image, node::Node, process::Process};
use std::{collections::BTreeSet, thread, time::Duration};

/// Measures CPU and memory of the agent and its helpers.
pub(crate) fn run(node: &Node, pods: usize, span: Duration) -> Result<Vec<Figure>> {
    for n in 0..pods {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: idle-{n}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: app\n    image: {}\n    command: [sh, -c, \"mkdir /www; echo ok > /www/index.html; exec \
             httpd -f -p 80 -h /www\"]\n    resources: {{requests: {{cpu: 10m}}, limits: {{cpu: 100m, memory: 32Mi}}}}\n    readinessProbe: {{httpGet: \
             {{port: 80}}, periodSeconds: 10}}\n",
            image::TEST
        );
        node.apply(&format!("idle-{n}.yaml"), &text)?;
    }
    for n in 0..pods {
        node.ready(&format!("default/idle-{n}"))?;
    }
    out::line(&format!("{pods} pods are Ready; looking for {} s", span.as_secs()));
    // The work that follows the start of so many pods is not part of idling.
    thread::sleep(Duration::from_secs(10));
    let containerd = node.containerd.process().context("containerd does not run")?;
    let ours = own(node)?;
    let before: Vec<Duration> = ours.iter().map(|(_, p)| p.cpu()).collect();
    let containerd_before = containerd.cpu();
    thread::sleep(span);
    let minutes = span.as_secs_f64() / 60.0;
    let per_minute = |spent: Duration| spent.as_secs_f64() / minutes;
    let (mut cpu, mut rss) = (0.0, 0.0);
    for ((name, p), before) in ours.iter().zip(before) {
        ensure!(p.alive(), "{name} ended meanwhile");
        let (c, m) =
            (per_minute(p.cpu().saturating_sub(before)), f64::from(u32::try_from(p.rss() >> 10)?) / 1024.0);
        out::line(&format!("{name:12} {c:7.3} s of CPU a minute, {m:6.1} MB"));
        cpu += c;
        rss += m;
    }
    let theirs = per_minute(containerd.cpu().saturating_sub(containerd_before));
    out::line(&format!("containerd   {theirs:7.3} s of CPU a minute in the same time"));
    let unready: Vec<String> =
        node.pods()?.into_iter().filter(|(_, p)| !p.ready()).map(|(name, _)| name).collect();
    ensure!(unready.is_empty(), "not Ready at the end: {unready:?}");
    node.end_pods()?;
    let against = format!(
        "{pods} pods, each with an HTTP readiness probe every 10 s; containerd {theirs:.2} s a minute"
    );
    Ok(vec![
        Figure { name: "idle_cpu_s_per_min", value: cpu, unit: "s", n: pods, against: against.clone() },
        Figure { name: "rss_mb", value: rss, unit: "MB", n: pods, against },
    ])
}

/// The agent and all its helpers.
fn own(node: &Node) -> Result<Vec<(String, Process)>> {
    let agent = node.agent().context("the agent does not run")?;
    let logd = node.logd().context("logd does not run")?;
    let mut all = vec![("agent".to_owned(), agent), ("logd".to_owned(), logd)];
    let known: BTreeSet<Process> = all.iter().map(|(_, p)| *p).collect();
    // Pooled shims are containerd's processes and are counted with the pods that they wait for.
    let shims = node.containerd.shims();
    let helpers = exec_helpers(node).into_iter().filter(|p| !known.contains(p) && !shims.contains(p));
    all.extend(helpers.map(|p| ("helper".to_owned(), p)));
    Ok(all)
}
